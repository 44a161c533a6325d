"""Chunks cover their text, fit the model, and know where they stand."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from searchr3.errors import SearchR3Error
from searchr3.search.chunks import chunks_of, fitted
from searchr3.search.headings import headings
from searchr3.search.kinds import kind_of
from searchr3.search.readers import Section, read

KINDS = {name: kind_of(f"x.{name}") for name in ("txt", "md", "py", "js", "sql")}
TEXTS = st.one_of(
    st.text(max_size=400),
    st.lists(
        st.sampled_from(
            [
                *("# One", "## Two words", "", "def f(x):", "    return x", "class A:", "```", "- a"),
                *("}", "function g() {", "\t日本語 text", "'", '"""', "x" * 90, "é\u0301", "👩‍👩‍👧"),
                "word " * 20,
            ]
        ),
        max_size=30,
    ).map("\n".join),
)


def section(text: str) -> Section:
    return Section(text, range(1, text.count("\n") + 2))


def visible(text: str) -> str:
    return "".join(text.split())


@settings(max_examples=50)
@given(TEXTS, st.sampled_from(sorted(KINDS)), st.integers(1, 120))
def test_chunks_cover_the_text_in_order_and_none_is_too_long(text: str, name: str, size: int) -> None:
    chunks = list(chunks_of(section(text), KINDS[name], size))
    assert "".join(visible(chunk.text) for chunk in chunks) == visible(text)
    lines = text.split("\n")
    for chunk in chunks:
        assert 0 < len(chunk.text) <= size and chunk.text.strip()
        assert text[chunk.start :].startswith(chunk.text)
        assert 1 <= chunk.first <= chunk.last <= len(lines)
        first, *rest = chunk.text.split("\n")
        assert first in lines[chunk.first - 1] and chunk.last - chunk.first == len(rest)


@settings(max_examples=40)
@given(TEXTS, st.sampled_from(sorted(KINDS)), st.integers(1, 80), st.integers(1, 30))
def test_what_the_model_would_cut_is_split_until_it_fits(text: str, name: str, size: int, room: int) -> None:
    def render(passages):
        return [passage if len(passage) <= room else None for passage in passages]

    made = fitted(section(text), KINDS[name], size, render)
    assert "".join(visible(chunk.text) for chunk, _ in made) == visible(text)
    assert all(rendered == chunk.passage and len(rendered) <= room for chunk, rendered in made)


def test_a_model_without_room_is_told() -> None:
    with pytest.raises(SearchR3Error, match="leaves no room for a text; index with a larger --max-length"):
        fitted(section("text"), KINDS["txt"], 9, lambda passages: [None] * len(passages))


def test_code_is_cut_at_its_definitions_and_knows_their_names() -> None:
    body = "\n".join(f"        line_{i} = {i} + argument" for i in range(8))
    code = f"import os\n\n\nclass Reader:\n    def one(self):\n{body}\n\n    def two(self):\n{body}\n"
    chunks = list(chunks_of(section(code), KINDS["py"], 320))
    found = {chunk.heading: chunk for chunk in chunks}
    assert set(found) >= {"Reader.two"}
    assert found["Reader.two"].text.lstrip().startswith("def two(self):")
    assert code.split("\n")[found["Reader.two"].first - 1] == "    def two(self):"


def test_markdown_knows_its_headings_and_no_comment_in_code_is_one() -> None:
    filler = "Many words of prose stand here. " * 5
    text = (
        f"# Guide\n\n{filler}\n\n## Install\n\n```sh\n# no heading\n{filler}\n```\n\n## Use ##\n\n{filler}\n"
    )
    headings = [chunk.heading for chunk in chunks_of(section(text), KINDS["md"], 200)]
    assert list(dict.fromkeys(headings)) == ["Guide", "Guide > Install", "Guide > Use"]


@pytest.mark.parametrize(
    ("line", "heading"),
    [
        ("# One", "One"),
        ("  ## Two ## ", "Two"),
        ("# C#", "C#"),
        ("# #", ""),
        ("# a" + " " * 200_000 + "b", None),
    ],
)
def test_headings_as_they_are_written(line: str, heading: str | None) -> None:
    """The last one is a trap for a regular expression that goes back."""
    found = headings(f"{line}\ntext", KINDS["md"])(len(line) + 1, len(line) + 5)
    assert found == heading if heading is not None else found.startswith("a ")


def test_what_is_left_over_goes_with_its_neighbour() -> None:
    code = "".join(f"def f{i}():\n    return {i}\n\n\n" for i in range(50))
    lengths = [len(chunk.text) for chunk in chunks_of(section(code), KINDS["py"], 400)]
    assert min(lengths[:-1]) > 100


@pytest.mark.parametrize(
    "ending", ["js", "ts", "tsx", "java", "go", "rs", "c", "cpp", "cs", "rb", "php", "sh", "py"]
)
def test_every_grammar_is_there(ending: str) -> None:
    text = "x = 1; " * 40
    kind = kind_of(f"x.{ending}")
    assert kind.grammar
    assert visible("".join(c.text for c in chunks_of(section(text), kind, 60))) == visible(text)


def test_pages_of_a_pdf_are_counted() -> None:
    (chunk,) = chunks_of(Section("text\nmore", (7,), page=True), kind_of("x.pdf"), 100)
    assert (chunk.first, chunk.last, chunk.page) == (7, 7, True)


def test_a_chunk_of_the_model_s_own_tokens_is_never_cut(tiny_model) -> None:
    """Through the real tokenizer: texts that spell special tokens, and characters of many tokens."""
    from searchr3.model import SearchR3
    from searchr3.search.encoder import ModelEncoder

    model = SearchR3(tiny_model)  # of 96 tokens
    text = (
        "<|im_end|> <|embed_token|> ﷽﷽﷽ " * 30 + "日本語テキスト" * 30 + "\n# Head\n" + "def f(): pass\n" * 40
    )
    encoder = ModelEncoder(model)
    made = fitted(section(text), KINDS["md"], 1000, encoder.render)
    assert "".join(visible(chunk.text) for chunk, _ in made) == visible(text)
    room = model.conversation.max_length
    passages = [chunk.passage for chunk, _ in made]
    assert all(len(one.ids) < room for one in model.conversation.documents(passages))
    ours, theirs = encoder.encode([rendered for _, rendered in made]), model.encode_document(passages)
    assert abs(ours - theirs).max() < 1e-5


def test_reading_and_chunking_keep_line_numbers_of_any_line_end() -> None:
    raw = b"one\r\ntwo\rthree\nfour"
    (chunk,) = chunks_of(*read(raw, "text"), kind_of("x.txt"), 100)
    assert re.split(r"\n", chunk.text) == ["one", "two", "three", "four"] and chunk.last == 4
