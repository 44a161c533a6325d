"""From bytes to text with lines or pages."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from searchr3.errors import DataError
from searchr3.search.html_text import html_text
from searchr3.search.readers import decoded, read


@pytest.mark.parametrize(
    "raw",
    ["naïve café — ✓".encode(), "naïve café — ✓".encode("utf-8-sig"), "naïve café — ✓".encode("utf-16")],
)
def test_unicode_is_read_with_and_without_a_mark(raw: bytes) -> None:
    assert decoded(raw) == "naïve café — ✓"


def test_an_older_encoding_is_told_from_the_text() -> None:
    text = "Der Müller läuft über die Brücke, während die Vögel zwitschern und die Bäume grünen. " * 5
    assert decoded(text.encode("latin-1")) == text


def test_a_page_says_its_encoding_and_a_wrong_name_does_no_harm() -> None:
    page = '<meta charset="{}"><p>Привет'
    assert decoded(page.format("windows-1251").encode("cp1251"), html=True).endswith("Привет")
    assert decoded(page.format("no-such-thing").encode(), html=True).endswith("Привет")


def test_what_is_no_text_is_told() -> None:
    with pytest.raises(DataError, match=r"^binary$"):
        read(b"\x7fELF\0\0", "text")
    assert read(b" \n ", "text") == []


@pytest.mark.parametrize(
    ("html", "seen"),
    [
        ("<p>one<![if !IE]><p>two<![endif]>", "one\n\ntwo"),
        ("<p>one<![foo]><p>two<![%1]>", "one\n\ntwo"),
        ("<head><meta name=a><title>A title</title><h1>Head</h1>seen", "A title\n\n# Head\nseen"),
    ],
)
def test_html_that_is_not_as_it_should_be_is_read_as_browsers_do(html: str, seen: str) -> None:
    assert html_text(html)[0] == seen


def test_html_is_what_a_reader_sees_on_its_own_lines() -> None:
    html = """<!doctype html><html><head><title>Fees &amp; terms</title><style>p {}</style></head>
<body><script>if (a < b) {}</script>
<h1>Refunds</h1>
<p>They take
<b>five</b> days.</p>
<ul><li>one<li>two</ul>
<pre>a
  b</pre>
<table><tr><td>x</td><td>y</td></tr></table></body></html>"""
    text, lines = html_text(html)
    assert text.split("\n") == [
        "Fees & terms", "", "# Refunds", "", "They take five days.", "",
        "- one", "- two", "", "a", "  b", "", "x", "y",
    ]  # fmt: skip
    number = dict(zip(text.split("\n"), lines, strict=True))
    assert [number[key] for key in ("Fees & terms", "# Refunds", "They take five days.", "  b", "y")] == [
        1, 3, 4, 8, 9,
    ]  # fmt: skip


@given(st.text(alphabet="<>/abpre h1script\n&;'\"!-=", max_size=200))
def test_broken_html_is_read_as_far_as_it_goes(html: str) -> None:
    text, lines = html_text(html)
    assert len(lines) == (text.count("\n") + 1 if text else len(lines))
    assert all(1 <= number <= html.count("\n") + 1 for number in lines)
    assert lines == sorted(lines)


def test_comments_and_stray_brackets_hide_no_text_and_no_line() -> None:
    html = """<p>one <!-- <b>hidden
--> if a < b and <a title="x > y <z>">then</a>
<p>two <3 <img alt="never closed"""
    assert html_text(html) == (
        'one if a < b and then\n\ntwo <3 <img alt="never closed',
        [1, 3, 3],
    )


@pytest.mark.parametrize(
    "part",
    [
        "<",
        "<a ",
        "<a b='",
        '<a b="',
        "<!--",
        "<!",
        "<![",
        "<?",
        "</",
        "</a <",
        "<script>",
        "<a/",
        "&#",
        "<pre>x",
        "<b>a</b> ",
    ],
)
def test_a_page_of_nothing_but_beginnings_is_read_in_no_time(part: str) -> None:
    """Of which the parser of some Pythons would need hours."""
    html_text(part * 50_000)


def pdf(*pages: str) -> bytes:
    """A PDF of these pages, written by hand, so that no other library is needed for it."""
    kids = " ".join(f"{4 + 2 * i} 0 R" for i in range(len(pages)))
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        f"<< /Type /Pages /Kids [{kids}] /Count {len(pages)} >>",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
    ]
    for i, text in enumerate(pages):
        stream = f"BT /F1 12 Tf 72 700 Td ({text}) Tj ET"
        objects.append(
            f"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 612 792] /Contents {5 + 2 * i} 0 R "
            "/Resources << /Font << /F1 3 0 R >> >> >>"
        )
        objects.append(f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream")
    out, places = io.BytesIO(b"%PDF-1.4\n"), []
    out.seek(0, io.SEEK_END)
    for number, content in enumerate(objects, start=1):
        places.append(out.tell())
        out.write(f"{number} 0 obj\n{content}\nendobj\n".encode())
    start = out.tell()
    rows = "".join(f"{place:010} 00000 n \n" for place in places)
    out.write(f"xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{rows}".encode())
    out.write(f"trailer << /Size {len(objects) + 1} /Root 1 0 R >>\nstartxref\n{start}\n%%EOF".encode())
    return out.getvalue()


def test_a_pdf_has_pages_and_empty_ones_are_left_out() -> None:
    sections = read(pdf("first words", "", "third words"), "pdf")
    assert [(one.text.strip(), one.lines, one.page) for one in sections] == [
        ("first words", (1,), True),
        ("third words", (3,), True),
    ]


@pytest.mark.parametrize(
    ("raw", "words"),
    [(b"%PDF-1.4 broken", "not a PDF that can be read"), (pdf("", ""), "without text; it may be scanned")],
)
def test_a_pdf_that_gives_no_text_is_told(raw: bytes, words: str) -> None:
    with pytest.raises(DataError, match=words):
        read(raw, "pdf")
