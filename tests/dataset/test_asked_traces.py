"""Asking for many traces: several at a time, kept as they come, and when to stop."""

from __future__ import annotations

import pytest

from searchr3.dataset import Document, Query, RetrievalDataset, load_dataset
from searchr3.dataset.answer_log import read_answers
from searchr3.dataset.asked_traces import ask_for_traces, closing_lines, estimate_for, log_path
from searchr3.dataset.disk import Table
from searchr3.dataset.endpoint import ChatEndpoint, chat_url
from searchr3.dataset.trace_plan import AskSettings, Prices, TracePlan
from searchr3.errors import EndpointError, SearchR3Error


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("searchr3.endpoint.FIRST_WAIT", 0.01)


def data(count):
    corpus = {f"d{n}": Document("", f"document {n} about something") for n in range(count)}
    queries = {f"q{n}": Query(f"number {n}") for n in range(count)}
    return RetrievalDataset(
        "data", corpus, queries, {"stage1": {f"q{n}": {f"d{n}": 1} for n in range(count)}}
    )


def ask(
    server, output, count=20, concurrency=4, max_failed=0.1, limit=None, tell=lambda *_: None, **settings
):
    plan = TracePlan(data(count), ["stage1"], AskSettings("m", **settings), limit)
    endpoint = ChatEndpoint(chat_url(server.url), concurrency=concurrency, attempts=3)
    return ask_for_traces(plan, endpoint, output, max_failed, tell)


def failing(*numbers, **how):
    """Fails for the queries of these numbers."""
    bad = {f"number {number}" for number in numbers}
    return lambda _, body: how if body["messages"][0]["content"].rpartition("Query: ")[2] in bad else {}


def test_every_query_gets_its_own_trace(chat_server, tmp_path):
    """Answers come in another order than they were asked for."""
    chat_server.script = lambda number, _: {"delay": 0.02 * (number % 4 == 0)}
    told = []
    outcome = ask(chat_server, tmp_path / "out", tell=lambda *news: told.append(news))
    wanted = {f"q{n}": f"concepts of number {n}" for n in range(20)}
    assert outcome.traces == wanted
    assert {key: query.reasoning for key, query in load_dataset(tmp_path / "out").queries.items()} == wanted
    assert (outcome.asked, outcome.prompt_tokens, outcome.answer_tokens) == (20, 2000, 200)
    assert told == [("asking", done, 20) for done in range(1, 21)]
    assert len(read_answers(log_path(tmp_path / "out"))) == 20


def test_data_on_disk_get_their_traces_there(chat_server, tmp_path):
    data(6).save(tmp_path / "data")
    plan = TracePlan(load_dataset(tmp_path / "data", on_disk=True), ["stage1"], AskSettings("m"))
    outcome = ask_for_traces(plan, ChatEndpoint(chat_url(chat_server.url)), tmp_path / "out")
    filled = outcome.filled().queries
    assert isinstance(filled, Table) and dict(filled) == load_dataset(tmp_path / "out").queries
    assert all(query.reasoning for query in filled.values())
    assert not any(query.reasoning for query in plan.dataset.queries.values())
    assert "6 of 6 queries have a trace" in closing_lines(outcome, tmp_path / "out")[0]


def test_requests_go_out_together_and_never_more_than_allowed(chat_server, tmp_path):
    chat_server.script = lambda *_: {"delay": 0.15}
    ask(chat_server, tmp_path / "out", count=25, concurrency=6)
    assert chat_server.most_at_once == 6


def test_the_first_is_asked_alone(chat_server, tmp_path):
    """So a wrong key costs one request."""
    chat_server.script = lambda *_: {"status": 401, "delay": 0.1}
    with pytest.raises(EndpointError, match="401"):
        ask(chat_server, tmp_path / "out", concurrency=8)
    assert len(chat_server.requests) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_stop_in_the_middle_keeps_what_was_answered(chat_server, tmp_path):
    chat_server.script = lambda number, _: {"status": 401} if number >= 7 else {}
    with pytest.raises(EndpointError, match=r"401.* traces are kept: the same command goes on$"):
        ask(chat_server, tmp_path / "out", concurrency=2)
    assert not (tmp_path / "out").exists()
    kept = {row["query"] for row in read_answers(log_path(tmp_path / "out"))}
    assert len(kept) == 7
    chat_server.requests.clear()
    chat_server.script = lambda *_: {}
    outcome = ask(chat_server, tmp_path / "out", concurrency=2)
    assert len(outcome.traces) == 20
    assert len(chat_server.requests) == outcome.asked == 13
    assert not kept & {f"q{query.split()[1]}" for query in chat_server.queries}


def test_a_few_failures_are_listed(chat_server, tmp_path):
    chat_server.script = failing(
        3, 11, status=400, json={"error": {"code": "content_filter", "message": "no"}}
    )
    outcome = ask(chat_server, tmp_path / "out")
    assert outcome.failed == {"q3": "400: no", "q11": "400: no"}
    queries = load_dataset(tmp_path / "out").queries
    assert [key for key, query in queries.items() if query.reasoning is None] == ["q3", "q11"]
    result, more = closing_lines(outcome, tmp_path / "out", Prices(10, 100))
    assert result.endswith("18 of 20 queries have a trace")
    assert "cost 0.036" in more[0], "18 answers of 100 and 10 tokens"
    assert more[1].startswith("without a trace: 2; ") and "out.answers.jsonl" in more[1]
    assert more[2:] == ["- q3: 400: no", "- q11: 400: no"]
    reasons = {
        row["query"]: row["failed"] for row in read_answers(log_path(tmp_path / "out")) if "failed" in row
    }
    assert reasons == outcome.failed


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ({"says": ""}, "empty answer"),
        ({"says": "<think>so", "finish": "length"}, "--max-tokens"),
        ({"says": "see: document 3 about something"}, "quotes the document"),
        ({"finish": "content_filter"}, "filter"),
        ({"status": 500}, "3 attempts"),
    ],
)
def test_what_may_fail(chat_server, tmp_path, answer, why):
    chat_server.script = failing(3, **answer)
    outcome = ask(chat_server, tmp_path / "out")
    assert [*outcome.failed] == ["q3"] and why in outcome.failed["q3"]


def test_too_many_failures_write_nothing_and_are_asked_again(chat_server, tmp_path):
    """2 of 20 are a tenth and pass (above), 3 are more."""
    chat_server.script = failing(3, 11, 12, says="")
    with pytest.raises(EndpointError, match=r"3 of 20 queries .*--max-failed 0\.1.*17 traces are kept"):
        ask(chat_server, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    chat_server.requests.clear()
    assert len(ask(chat_server, tmp_path / "out", max_failed=0.2).failed) == 3
    assert len(chat_server.requests) == 3, "only the failed ones"


def test_nothing_more_is_spent_once_all_fails(chat_server, tmp_path):
    chat_server.script = lambda number, _: {"says": ""} if number >= 30 else {}
    with pytest.raises(EndpointError, match="16 queries in a row"):
        ask(chat_server, tmp_path / "out", count=300, max_failed=0.5)
    assert len(chat_server.requests) < 30 + 16 + 8


def test_nothing_more_is_spent_once_too_many_failed(chat_server, tmp_path):
    chat_server.script = lambda number, _: {"says": ""} if number % 2 else {}
    with pytest.raises(EndpointError, match="of 300 queries got no trace"):
        ask(chat_server, tmp_path / "out", count=300)
    assert len(chat_server.requests) < 75


def test_a_query_that_the_server_refuses_does_not_block_the_others_for_good(chat_server, tmp_path):
    """After an interruption it is the first to be asked: its 400 is still its own."""
    refused = failing(5, status=400, json={"error": "odd"})
    chat_server.script = lambda number, body: {"status": 401} if number >= 10 else refused(number, body)
    with pytest.raises(EndpointError, match="401"):
        ask(chat_server, tmp_path / "out", concurrency=1)
    chat_server.script = refused
    assert ask(chat_server, tmp_path / "out", concurrency=1).failed == {"q5": "400: odd"}


def test_a_trial_of_a_few_is_part_of_the_whole(chat_server, tmp_path):
    ask(chat_server, tmp_path / "out", limit=3)
    assert sum(query.reasoning is not None for query in load_dataset(tmp_path / "out").queries.values()) == 3
    with pytest.raises(SearchR3Error, match="exists already"):
        ask(chat_server, tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "trial")
    assert len(ask(chat_server, tmp_path / "out").traces) == 20
    assert len(chat_server.requests) == 20, "the first three were asked once"


def test_other_settings_ask_anew(chat_server, tmp_path):
    ask(chat_server, tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "first")
    plan = TracePlan(data(20), ["stage1"], AskSettings("m", temperature=0.0))
    estimate = estimate_for(plan, tmp_path / "out")
    assert (estimate.requests, estimate.answered, estimate.others) == (20, 0, 20)
    assert "20 answers in the log" in estimate.lines()[0]
    ask(chat_server, tmp_path / "out", temperature=0.0)
    assert len(chat_server.requests) == 40


def test_with_all_answers_there_nobody_is_asked(chat_server, tmp_path):
    ask(chat_server, tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "first")
    outcome = ask(chat_server, tmp_path / "out")
    assert (outcome.asked, len(chat_server.requests)) == (0, 20)
    assert load_dataset(tmp_path / "out").queries == load_dataset(tmp_path / "first").queries


def test_a_place_that_cannot_be_written_is_told_before_anything_is_paid(chat_server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SearchR3Error, match="cannot be written"):
        ask(chat_server, tmp_path / "file" / "out")
    assert chat_server.requests == []
