"""What is asked, what it may cost, and which answers count."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from searchr3.dataset import Document, Query, RetrievalDataset
from searchr3.dataset.splits import digest
from searchr3.dataset.trace_plan import AskSettings, Prices, TracePlan, read_body
from searchr3.dataset.trace_text import TracePrompt
from searchr3.endpoint import NoAnswer
from searchr3.errors import DataError, EndpointError

DATA = RetrievalDataset(
    "data",
    {
        "d0": Document("Figs", "sweet fruit of a tree that many gardens of the south have"),
        "d1": Document("", "the second best document about figs, which is a longer one"),
        "d2": Document("", "nothing"),
    },
    {
        "q0": Query("what are figs"),
        "q1": Query("has one", "own words"),
        "q2": Query("äöü" * 5),
        "q3": Query("no relevant document"),
        "q4": Query("of stage 2"),
        "q5": Query("of test"),
    },
    {
        "stage1": {"q0": {"d1": 1, "d0": 2, "d2": 0}, "q1": {"d0": 1}, "q2": {"d2": 1}, "q3": {"d2": 0}},
        "stage2": {"q4": {"d0": 1}},
        "test": {"q5": {"d0": 1}},
    },
)
BARE = TracePrompt("{query}")


def plan(splits=("stage1",), limit=None, dataset=DATA, **changes):
    return TracePlan(dataset, splits, AskSettings(**{"model": "m", "prompt": BARE, **changes}), limit)


def row(made, key, answer="fruit", **changes):
    asked = digest(made.request(key))
    return {"query": key, "asked": asked, "answer": answer, "finish": "stop", **changes}


def test_who_is_asked_for():
    """Queries of the splits with a relevant document and without a trace; evaluation never."""
    assert plan().relevant == {"q0": ["d0", "d1"], "q2": ["d2"]}
    assert [*plan(("stage1", "stage2")).relevant] == ["q0", "q2", "q4"]
    assert [*plan(limit=1).relevant] == ["q0"]
    with pytest.raises(DataError, match="no traces for the split 'test'"):
        plan(("stage1", "test"))


def test_a_request_is_one_message_and_the_settings():
    body = json.loads(plan(body={"seed": 7}).request("q0"))
    message = {"role": "user", "content": "what are figs"}
    settings = {"model": "m", "max_tokens": 128, "temperature": 0.7, "seed": 7}
    assert body == {**settings, "messages": [message]}
    changed = plan(body={"max_tokens": None, "max_completion_tokens": 9, "temperature": None})
    assert json.loads(changed.request("q0")) == {
        "model": "m",
        "max_completion_tokens": 9,
        "messages": [message],
    }


def test_the_document_shown_is_the_most_relevant_one():
    shown = plan(prompt=TracePrompt("{query}: {document}", True))
    assert shown.message("q0") == f"what are figs: {DATA.corpus['d0'].content}"


# The estimate


def test_the_estimate_s_arithmetic():
    """q0 has 13 bytes, q2 30: 5 and 10 tokens by a third, rounded up, and 16 each for the chat format."""
    estimate = plan(max_tokens=100).estimate({})
    assert (estimate.requests, estimate.answered) == (2, 0)
    assert estimate.prompt_tokens == 5 + 16 + 10 + 16
    assert estimate.answer_tokens == 200
    text = "\n".join(estimate.lines(Prices(2e6, 1e6)))
    assert "2" in text and "47" in text and "at most 200" in text
    assert "at most about 294.00 (prompts 94.00, answers 200.00)" in text
    assert "cost" not in "\n".join(estimate.lines())


def test_what_is_answered_is_not_estimated():
    estimate = plan().estimate({"q0": "fruit"}, rows=4)
    assert (estimate.requests, estimate.answered, estimate.others) == (1, 1, 3)
    assert estimate.prompt_tokens == 26
    nothing = plan().estimate({"q0": "a", "q2": "b"}, rows=2)
    assert (nothing.requests, nothing.prompt_tokens, nothing.answer_tokens) == (0, 0, 0)


def test_answers_without_a_limit_are_said_to_have_none():
    unlimited = plan(body={"max_tokens": None}).estimate({})
    assert unlimited.answer_tokens is None
    lines = "\n".join(unlimited.lines(Prices(1, 1)))
    assert "without limit" in lines and "that of the answers" in lines
    assert plan(body={"max_tokens": None, "max_completion_tokens": 300}).estimate({}).answer_tokens == 600


@given(st.integers(0, 10**9), st.integers(0, 10**9), st.floats(0, 100), st.floats(0, 100))
def test_prices_are_of_a_million(prompts, answers, price_in, price_out):
    cost = Prices(price_in, price_out).cost(prompts, answers)
    assert cost == pytest.approx(prompts / 1e6 * price_in + answers / 1e6 * price_out)


# Which answers count


def test_an_answer_counts_for_just_what_was_asked():
    made = plan()
    rows = [row(made, "q0")]
    assert made.known(rows) == {"q0": "fruit"}
    for other in (
        plan(model="another"),
        plan(temperature=0),
        plan(max_tokens=5),
        plan(prompt=TracePrompt("{query}!")),
        plan(body={"seed": 1}),
        plan(dataset=replace(DATA, queries={**DATA.queries, "q0": Query("what are dates")})),
    ):
        assert other.known(rows) == {}
    cut = plan(words=1).known([row(plan(), "q0", "two words")])
    assert cut == {"q0": "two"}, "a prompt without {words} asks nothing anew"


def test_a_document_that_was_shown_is_part_of_the_question():
    prompt = TracePrompt("{query}: {document}", True)
    rows = [row(plan(prompt=prompt), "q0")]
    changed = replace(DATA, corpus={**DATA.corpus, "d0": Document("", "another text")})
    assert plan(prompt=prompt).known(rows)
    assert not plan(prompt=prompt, dataset=changed).known(rows)


def test_what_does_not_count():
    made = plan()
    useless = [
        row(made, "q0", "<think>only"),
        row(made, "q0", DATA.corpus["d1"].text),
        row(made, "q0", "fruit", finish="content_filter"),
        {"query": "q0", "asked": digest(made.request("q0")), "failed": "empty answer"},
        {**row(made, "q0"), "query": "q77"},
        row(made, "q0", answer=7),
    ]
    assert made.known(useless) == {}
    assert made.known([row(made, "q0"), *useless]) == {"q0": "fruit"}
    assert made.known([row(made, "q0"), row(made, "q0", "sweet")]) == {"q0": "sweet"}


@pytest.mark.parametrize(
    ("answer", "finish", "why"),
    [
        ("", "stop", "empty"),
        ("<think>hm", "length", "--max-tokens"),
        ("fruit", "content_filter", "filter"),
        ("", "refusal", "refused"),
        (DATA.corpus["d0"].content, "stop", "quotes"),
        (f"They say: {DATA.corpus['d1'].text}", "stop", "quotes"),
    ],
)
def test_why_an_answer_is_no_trace(answer, finish, why):
    with pytest.raises(NoAnswer, match=why):
        plan().trace("q0", answer, finish)


def test_the_documents_of_others_may_be_quoted():
    """Only what is relevant to the query would give its answer away."""
    assert plan().trace("q2", DATA.corpus["d0"].content, "stop")


# --set


def test_further_keys_are_yaml():
    assert read_body(["a=1", "b=null", "c={d: [true]}", "e=x=y", "f="]) == {
        "a": 1,
        "b": None,
        "c": {"d": [True]},
        "e": "x=y",
        "f": None,
    }


@pytest.mark.parametrize(
    "setting", ["a", "=1", "model=x", "messages=[]", "stream=true", "n=2", "a={", "a=2020-01-01"]
)
def test_a_wrong_key_is_one_line(setting):
    with pytest.raises(EndpointError, match=r"^--set "):
        read_body([setting])
