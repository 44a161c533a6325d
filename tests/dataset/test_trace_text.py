"""What is asked for, and what of an answer is kept."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from searchr3.conversation import EMBED_TOKEN
from searchr3.dataset.trace_text import BLIND, DOCUMENT_CHARACTERS, SHOWN, TracePrompt, clean_trace, quotes
from searchr3.errors import DataError

SECRET_WORDS = "the wanted document"

pieces = st.lists(
    st.sampled_from(
        [
            "<think>",
            "</think>",
            "<Thinking>",
            "</thinking>",
            "a",
            "b ",
            "\n",
            " ",
            "\x00",
            "</s>",
            EMBED_TOKEN,
            "<|im_end|>",
        ]
    )
)


# Prompts


def test_blind_shows_nothing_of_the_document():
    message = TracePrompt.load(None).render("figs", SECRET_WORDS, 40)
    assert "figs" in message and "40 words" in message
    assert message == TracePrompt.load(None).render("figs", "quite another", 40)
    assert SECRET_WORDS in TracePrompt.load(None, shows_document=True).render("figs", SECRET_WORDS, 40)
    assert "{" not in message


def test_a_long_document_is_cut():
    message = TracePrompt(SHOWN, True).render("", "x" * 10**6, 1)
    assert len(message) < DOCUMENT_CHARACTERS + len(SHOWN)


@given(st.text(), st.text())
def test_braces_of_the_texts_are_only_text(query, document):
    """A query that spells a place gets nothing put into it."""
    prompt = TracePrompt("{query}|{document}|{words}", True)
    assert prompt.render(query, document, 7) == f"{query}|{document[:DOCUMENT_CHARACTERS]}|7"
    assert prompt.render("{document}", "secret", 7) == "{document}|secret|7"


def test_other_braces_of_a_prompt_stay(tmp_path):
    path = tmp_path / "prompt.txt"
    path.write_text('Answer as {"terms": []}: {query}\n')
    assert TracePrompt.load(path).render("figs", "", 7) == 'Answer as {"terms": []}: figs'


@pytest.mark.parametrize(
    ("text", "shown", "words"),
    [
        ("no place", False, "{query}"),
        ("{query}", True, "{document}"),
        ("{query} {document}", False, "--show-document"),
        (b"\xff", False, "UTF-8"),
        (None, False, "No such file"),
    ],
)
def test_a_prompt_without_its_places_is_refused(tmp_path, text, shown, words):
    path = tmp_path / "prompt.txt"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=r"prompt\.txt") as error:
        TracePrompt.load(path, shown)
    assert words in str(error.value)


def test_ours_have_their_places(tmp_path):
    for text, shown in ((BLIND, False), (SHOWN, True)):
        path = tmp_path / "prompt.txt"
        path.write_text(text)
        assert TracePrompt.load(path, shown) == TracePrompt.load(None, shown)


# Cleaning


@pytest.mark.parametrize(
    ("answer", "trace"),
    [
        ("  figs,\n\n* sweet\tfruit ", "figs, * sweet fruit"),
        ("<think>Hm.\n</think>figs", "figs"),
        ("<THINK>Hm</THINK>figs<think>again</think> ripe", "figs ripe"),
        ("Hm, what is it?</think>\nfigs", "figs"),
        ("figs <think>and then", "figs"),
        ("<think>never ends", ""),
        ("figs<|im_end|>", "figs"),
        (f"figs {EMBED_TOKEN}<|eot_id|></s>", "figs"),
        ("fi\x00gs\x1b[31m", "fi gs [31m"),
        ("", ""),
    ],
)
def test_a_trace_is_what_was_said_and_not_thought(answer, trace):
    assert clean_trace(answer, words=9) == trace


def test_an_embed_token_inside_is_only_text(tiny_model):
    from searchr3 import SearchR3

    trace = clean_trace(f"about {EMBED_TOKEN} tokens {EMBED_TOKEN}", words=9)
    assert trace == f"about {EMBED_TOKEN} tokens"
    chat = SearchR3(tiny_model).conversation
    (ids,) = chat.thought_ids([trace])
    assert chat.embed_id not in ids


def test_length_and_the_half_word_of_a_cut_answer():
    assert clean_trace("one two three four", words=3) == "one two three"
    assert clean_trace("one two thr", words=9, cut_off=True) == "one two"
    assert clean_trace("one two three four", words=3, cut_off=True) == "one two three"
    assert clean_trace("supercalifrag", words=9, cut_off=True) == ""
    assert clean_trace("无花果，水果", words=9, cut_off=True) == "无花果，水果", (
        "no space would end its last word"
    )
    assert clean_trace("无花果 sweet frui\ufffd", words=9, cut_off=True) == "无花果 sweet"


@given(pieces, st.integers(1, 5), st.booleans())
def test_cleaning_leaves_one_short_line_and_does_it_once(parts, words, cut_off):
    trace = clean_trace("".join(parts), words, cut_off)
    assert len(trace.split()) <= words
    assert trace == " ".join(trace.split()) and trace.isprintable()
    assert "think" not in trace.lower()
    assert not trace.endswith((EMBED_TOKEN, "</s>"))
    assert clean_trace(trace, words) == trace


# Quoting

DOCUMENT = "We are open from nine to five on all days but Sunday, and closed in August."


def test_a_run_of_eight_words_is_a_quotation():
    assert quotes("hours: OPEN from nine\nto five, on all days", [DOCUMENT])
    assert not quotes("hours: open from nine to five on all", [DOCUMENT])
    assert not quotes("open hours, Sunday, August, closed, nine, five, days, all", [DOCUMENT])
    assert quotes("open from nine to five on all days", ["another one", DOCUMENT])


def test_code_is_quoted_whatever_its_spelling():
    code = "def read_lines(path): return open(path).read().splitlines()"
    assert quotes("readLines path return open path read splitlines", [code])


def test_a_short_document_is_quoted_as_a_whole():
    assert quotes("perhaps: opening hours on Sunday", ["Opening hours on Sunday"])
    assert not quotes("perhaps: opening hours", ["Opening hours on Sunday"])
    assert not quotes("Paris, capital of France", ["Paris"]), "one may well foresee a name"


def test_what_the_query_says_itself_is_no_quotation():
    query = "are you open from nine to five on all days?"
    assert not quotes("open from nine to five on all days", [DOCUMENT], query)
    assert quotes("open from nine to five on all days but sunday", [DOCUMENT], query)


def test_a_character_is_half_a_word():
    document = "中华人民共和国国务院今天发布了关于进一步加强环境保护的通知"
    assert not quotes("中华人民共和国国务院，环境保护", [document]), "a long name is no quotation"
    assert quotes("中华人民共和国国务院今天发布了关于", [document])


words = st.lists(st.sampled_from("abcdef"), max_size=20)


@given(words, words, words)
def test_a_document_is_found_wherever_it_stands(before, document, after):
    trace = " ".join([*before, *document, *after])
    assert quotes(trace, [" ".join(document)]) == (len(document) >= 4)


@given(words, words)
def test_quoting_is_sharing_a_run(said, text):
    length = min(8, len(text))
    runs = [text[start : start + length] for start in range(len(text) - length + 1)]
    shared = any(said[at : at + length] in runs for at in range(len(said)))
    assert quotes(" ".join(said), [" ".join(text)]) == (length >= 4 and shared)
