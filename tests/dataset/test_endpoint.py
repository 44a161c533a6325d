"""Asking a chat completions server: patience, limits, and a key that stays where it is."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from searchr3.dataset.endpoint import ChatEndpoint, chat_url
from searchr3.endpoint import NoAnswer, retry_after
from searchr3.errors import EndpointError
from searchr3.server_address import Key, find_key, is_local

SECRET = "sk-very-secret-0123456789"
BODY = json.dumps({"model": "m", "messages": [{"role": "user", "content": "Query: figs"}]})


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("searchr3.endpoint.FIRST_WAIT", 0.01)


def ask(server, times=1, key=None, answered=False, **options):
    """What `times` requests, one after another, bring: replies, or the errors of `NoAnswer`."""

    async def run():
        endpoint = ChatEndpoint(chat_url(server.url), key, **options)
        endpoint.answered = answered
        said = []
        async with endpoint:
            for _ in range(times):
                try:
                    said.append(await endpoint.ask(BODY))
                except NoAnswer as error:
                    said.append(str(error))
        return said

    return asyncio.run(run())


def script(*answers):
    """The answers in turn; after them good ones."""
    return lambda number, body: answers[number] if number < len(answers) else {}


def test_an_answer_comes_with_its_tokens(chat_server):
    (reply,) = ask(chat_server)
    assert (reply.text, reply.finish, reply.prompt_tokens, reply.answer_tokens) == (
        "concepts of figs",
        "stop",
        100,
        10,
    )
    (head,) = chat_server.heads
    assert head["path"] == "/v1/chat/completions"
    assert head["content-type"] == "application/json"
    assert "authorization" not in head


def test_the_key_is_a_bearer_token(chat_server):
    ask(chat_server, key=Key("SOME_KEY", SECRET))
    assert chat_server.heads[0]["authorization"] == f"Bearer {SECRET}"


@pytest.mark.parametrize(
    "trouble",
    [
        {"status": 500},
        {"status": 503, "text": "loading"},
        {"status": 408},
        {"status": 429, "json": {"error": "you exceeded your current quota, see your billing details"}},
        {"status": 500, "text": "[" * 100_000},
        {"text": '{"choices": [{"message": {"content": "a"}}], "usage": {"prompt_tokens": Infinity}}'},
        {"status": 429, "json": {"error": {"message": "slow down", "code": "rate_limit_exceeded"}}},
        {"drop": True},
        {"text": '{"choices": [{"mess'},
        {"text": "<html>gateway</html>"},
        {"json": {"choices": []}},
        {"json": {"choices": [{"message": None}]}},
        {"json": {"choices": [{"message": {"content": 7}}]}},
        {"json": [1]},
        {"json": {"error": {"message": "overloaded"}}},
        {"delay": 1.5},
    ],
    ids=str,
)
def test_what_may_pass_is_asked_again(chat_server, trouble):
    chat_server.script = script(trouble, trouble)
    (reply,) = ask(chat_server, timeout=1.0 if "delay" in trouble else 60.0)
    assert reply.text == "concepts of figs"
    assert len(chat_server.requests) == 3


def test_the_attempts_have_an_end(chat_server):
    chat_server.script = lambda *_: {"status": 502, "json": {"error": "no upstream"}}
    assert ask(chat_server, attempts=3) == ["502: no upstream (3 attempts)"]
    assert len(chat_server.requests) == 3


def test_waits_grow(chat_server, monkeypatch):
    monkeypatch.setattr("searchr3.endpoint.FIRST_WAIT", 0.1)
    chat_server.script = script(*[{"status": 500}] * 3)
    ask(chat_server)
    waits = [
        late - early for early, late in zip(chat_server.arrivals, chat_server.arrivals[1:], strict=False)
    ]
    for wait, least in zip(waits, (0.05, 0.1, 0.2), strict=True):
        assert wait >= least * 0.95


def test_retry_after_holds_for_all(chat_server):
    """One request is told to wait: another, which was told nothing, waits too."""
    chat_server.script = script({"status": 429, "headers": {"Retry-After": "1"}})

    async def run():
        async with ChatEndpoint(chat_url(chat_server.url)) as endpoint:
            first = asyncio.create_task(endpoint.ask(BODY))
            while not endpoint._quiet_until:  # until it was told
                await asyncio.sleep(0.01)
            await asyncio.gather(first, endpoint.ask(BODY))

    asyncio.run(run())
    told, *others = chat_server.arrivals
    assert len(others) == 2
    assert all(at - told >= 0.95 for at in others)


def test_nobody_waits_for_hours(chat_server):
    chat_server.script = lambda *_: {"status": 429, "headers": {"Retry-After": "7200"}}
    with pytest.raises(EndpointError, match="7200 s"):
        ask(chat_server)
    assert len(chat_server.requests) == 1


@pytest.mark.parametrize(
    ("status", "says", "words"),
    [
        (400, {"error": {"message": "use max_completion_tokens"}}, ["max_completion_tokens", "--set"]),
        (401, {"error": {"message": "bad key"}}, ["401: bad key", "--key-variable"]),
        (
            400,
            {"error": "max_tokens is too large: this model gives 4096 at most"},
            ["too large", "--max-tokens"],
        ),
        (402, {"detail": "no money"}, ["no money", "credit"]),
        (403, {"error": "not yours"}, ["403: not yours"]),
        (404, {"error": {"message": "no model m"}}, ["no model m", "--model"]),
        (429, {"error": {"message": "quota", "code": "insufficient_quota"}}, ["quota", "credit"]),
        (405, {}, ["405"]),
        (308, {}, ["has moved", "--endpoint"]),
    ],
)
def test_what_no_patience_mends_stops_at_once(chat_server, status, says, words):
    answer = {"status": status, "json": says, "headers": {"Location": "http://127.0.0.1:1/"}}
    chat_server.script = lambda *_: answer
    with pytest.raises(EndpointError) as error:
        ask(chat_server)
    assert len(chat_server.requests) == 1
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (400, {"error": {"message": "This model's maximum context length is 8192 tokens"}}),
        (400, {"error": {"code": "content_filter", "message": "held back"}}),
        (403, {"error": {"message": "your input was flagged"}}),
        (400, {"error": "prompt is too long: 9000 tokens"}),
        (413, "too much"),
    ],
)
def test_a_fault_of_one_query_is_that_query_s(chat_server, status, says):
    chat_server.script = script({"status": status, "json": says})
    failed, reply = ask(chat_server, times=2)
    assert failed.startswith(f"{status}: ")
    assert reply.text == "concepts of figs"


def test_after_an_answer_a_400_is_about_its_query(chat_server):
    chat_server.script = script({}, {"status": 400, "json": {"message": "odd text"}})
    _, failed, third = ask(chat_server, times=3)
    assert failed == "400: odd text"
    assert third.text
    chat_server.script = lambda *_: {"status": 400, "json": {"message": "odd text"}}
    assert ask(chat_server, answered=True) == ["400: odd text"]
    for status in (401, 404):
        chat_server.script = lambda *_, status=status: {"status": status}
        with pytest.raises(EndpointError):
            ask(chat_server, answered=True)


def test_no_server_is_told_at_once():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = time.monotonic()
    with pytest.raises(EndpointError, match=rf"127.0.0.1:{port}.*cannot be reached.*--endpoint"):
        asyncio.run(_ask_at(f"http://127.0.0.1:{port}"))
    assert time.monotonic() - started < 5


async def _ask_at(url):
    async with ChatEndpoint(chat_url(url)) as endpoint:
        return await endpoint.ask(BODY)


def test_a_proxy_is_not_asked_for_this_machine(chat_server, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    assert ask(chat_server)[0].text == "concepts of figs"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 418, 429, 500])
def test_no_error_repeats_the_key(chat_server, status):
    """Not even when the server does."""

    def echo(number, body):
        return {"status": status, "json": {"error": {"message": f"key {SECRET} in {body}"}}}

    chat_server.script = echo
    try:
        (said,) = ask(chat_server, key=Key("SOME_KEY", SECRET), attempts=2)
    except EndpointError as error:
        said = str(error)
    assert str(status) in said and "***" in said
    assert SECRET not in said


def test_no_answer_repeats_the_key(chat_server):
    chat_server.script = lambda *_: {"says": f"your key is {SECRET}"}
    assert ask(chat_server, key=Key("SOME_KEY", SECRET))[0].text == "your key is ***"
    chat_server.script = lambda *_: {"says": "EMPTY is a word"}
    assert ask(chat_server, key=Key("SOME_KEY", "EMPTY"))[0].text == "EMPTY is a word"
    assert SECRET not in repr(Key("SOME_KEY", SECRET))


def test_errors_hold_nothing_that_steers_a_terminal(chat_server):
    chat_server.script = lambda *_: {"status": 404, "text": "a\x1b[31m\r\n\x07b" + "x" * 5_000}
    with pytest.raises(EndpointError) as error:
        ask(chat_server)
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 600


def test_half_a_character_does_no_harm(chat_server):
    chat_server.script = lambda *_: {"text": '{"choices": [{"message": {"content": "a \\ud800 b"}}]}'}
    assert ask(chat_server)[0].text == "a ? b"


def test_an_answer_in_parts_is_what_was_said(chat_server):
    parts = [
        {"type": "thinking", "thinking": []},
        {"type": "text", "text": "a "},
        {"type": "text", "text": "b"},
    ]
    chat_server.script = lambda *_: {"says": parts}
    assert ask(chat_server)[0].text == "a b"


def test_a_refusal_is_no_answer(chat_server):
    choice = {"message": {"content": None, "refusal": "I cannot"}, "finish_reason": "stop"}
    chat_server.script = lambda *_: {"json": {"choices": [choice]}}
    assert (ask(chat_server)[0].text, ask(chat_server)[0].finish) == ("", "refusal")


def test_half_a_character_in_the_reason_for_the_end_can_be_written_down(chat_server):
    chat_server.script = lambda *_: {"says": "a \ud800", "finish": "st\ud800"}
    (reply,) = ask(chat_server)
    assert (reply.text, reply.finish) == ("a ?", "st?")


# Addresses and keys


@pytest.mark.parametrize(
    ("base", "url"),
    [
        ("http://localhost:8000", "http://localhost:8000/v1/chat/completions"),
        ("http://localhost:8000/", "http://localhost:8000/v1/chat/completions"),
        (" http://localhost:8000/v1 ", "http://localhost:8000/v1/chat/completions"),
        ("https://a.org/v1/chat/completions", "https://a.org/v1/chat/completions"),
        ("https://a.org/api", "https://a.org/api/v1/chat/completions"),
        ("https://a.org/v1beta/openai/", "https://a.org/v1beta/openai/chat/completions"),
        ("http://[::1]:8000", "http://[::1]:8000/v1/chat/completions"),
    ],
)
def test_a_base_address_with_or_without_its_version(base, url):
    assert chat_url(base) == url
    assert chat_url(url) == url


@pytest.mark.parametrize(
    "url",
    [
        "localhost:8000",
        "ftp://a.org",
        "",
        "http://",
        "http://a:port",
        f"https://u:{SECRET}@a.org",
        f"https://a.org?key={SECRET}",
    ],
)
def test_no_address_is_one_line_without_what_may_be_a_key(url):
    with pytest.raises(EndpointError, match=r"^--endpoint: ") as error:
        chat_url(url)
    assert SECRET not in str(error.value)


@pytest.mark.parametrize(
    "url", ["http://localhost", "http://127.0.0.1:80", "http://[::1]", "http://me.localhost/"]
)
def test_this_machine_is_known(url):
    assert is_local(url)


@pytest.mark.parametrize(
    "url", ["http://10.0.0.5", "http://localhost.evil.org", "http://127.evil.org", "https://a.org"]
)
def test_others_are_not_this_machine(url):
    assert not is_local(url)


def test_the_usual_key_is_not_sent_where_others_can_read_it(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", f" {SECRET}\n")
    for url in ("https://a.org", "http://localhost:8000"):
        assert find_key(url) == Key("OPENAI_API_KEY", SECRET)
    assert find_key("http://gpu-box:8000") is None
    monkeypatch.setenv("BOX_KEY", "box")
    assert find_key("http://gpu-box:8000", "BOX_KEY") == Key("BOX_KEY", "box")
    monkeypatch.delenv("OPENAI_API_KEY")
    assert find_key("https://a.org") is None


def test_a_key_that_is_none_is_told_without_it(monkeypatch):
    with pytest.raises(EndpointError, match="name the one that holds the key") as error:
        find_key("https://a.org", "gsk_secret")  # the key itself, by mistake
    assert "gsk_secret" not in str(error.value)
    for wrong in ("two words", "caf\u00e9", "a\nb"):
        monkeypatch.setenv("BOX_KEY", wrong)
        with pytest.raises(EndpointError, match=r"^BOX_KEY: ") as error:
            find_key("https://a.org", "BOX_KEY")
        assert wrong not in str(error.value)


# Retry-After

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


@given(st.integers(0, 10**6))
def test_retry_after_as_seconds_and_as_a_date(seconds):
    assert retry_after(str(seconds), NOW) == seconds
    assert retry_after(format_datetime(NOW + timedelta(seconds=seconds), usegmt=True), NOW) == seconds


@given(st.one_of(st.none(), st.text()))
def test_retry_after_is_never_negative_whatever_it_says(value):
    assert retry_after(value, NOW) >= 0


@pytest.mark.parametrize("value", [None, "", "soon", "-5", "nan", format_datetime(NOW - timedelta(days=1))])
def test_retry_after_that_asks_for_nothing(value):
    assert retry_after(value, NOW) == 0
