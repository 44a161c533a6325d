"""The API over vLLM servers. They are a fake of its protocol; the tiny model in this process answers."""

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
from typer.testing import CliRunner

from searchr3.cli import app
from searchr3.model import SearchR3
from searchr3.serving.remote import Remote
from searchr3.serving.settings import settings
from searchr3.vllm_backend import VLLMModel

from .conftest import NAME, QUERIES, Shelf, endless, running, streamed, until

CLOSE = {"atol": 1e-4}
TURNS = [{"role": "user", "content": "Hello <|embed_token|>"}]


@pytest.fixture
def remote(
    tiny_model: Path, chat_server: Any, fake_vllm: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Remote]:
    """Makes a backend whose servers are fakes of `model`."""
    monkeypatch.setattr("searchr3.endpoint.FIRST_WAIT", 0.01)
    monkeypatch.setattr("searchr3.serving.remote.FRESH", 0.0)

    def make(model: SearchR3 | None = None, name: str = "", **options: Any) -> Remote:
        fake_vllm(model or SearchR3(tiny_model))
        at = chat_server.url + name
        return Remote(VLLMModel(tiny_model, at, at), **options)

    return make


@pytest.fixture
def client(remote: Callable[..., Remote]) -> Iterator[httpx2.Client]:
    with running(remote(text_tokens=200), searcher=Shelf2(), rule=Doubt()) as client:
        yield client


class Shelf2(Shelf):
    """Documents in the tiny model's space."""

    def scores(self, vectors: np.ndarray, k: int, paths: Any = (), types: Any = ()) -> np.ndarray:
        return np.full((len(vectors), 3), 0.5)


class Doubt:
    """Thinks about the first of several queries."""

    def thinks_about(self, vectors: np.ndarray, documents: Any) -> np.ndarray:
        assert documents(vectors, 3).shape == (len(vectors), 3)
        return np.arange(len(vectors)) == 0


def embed(client: httpx2.Client, input: Any, model: str = NAME, **more: Any) -> Any:
    response = client.post("/v1/embeddings", json={"input": input, "model": model, **more})
    assert response.status_code == 200, response.text
    return response.json()


def vectors(found: Any) -> np.ndarray:
    return np.array([one["embedding"] for one in found["data"]])


def test_vectors_and_thoughts_are_those_of_the_model(client: httpx2.Client, reference: SearchR3) -> None:
    texts = QUERIES * 8  # more than one request of them
    np.testing.assert_allclose(vectors(embed(client, texts)), reference.encode_document(texts), **CLOSE)
    task = {"instruction": "Find code."}
    np.testing.assert_allclose(
        vectors(embed(client, QUERIES, "tiny:query", **task)),
        reference.encode_query(QUERIES, **task),
        **CLOSE,
    )
    for most in (0, 6):
        found = embed(client, QUERIES, "tiny:think", max_thinking_tokens=most, **task)
        thoughts = reference.generate(QUERIES, most, **task)
        expected = reference.encode_query(QUERIES, thoughts, **task)
        np.testing.assert_allclose(vectors(found), expected, **CLOSE)
        for one, thought in zip(found["data"], thoughts, strict=True):
            ids = thought.token_ids
            told = {"text": thought.text, "tokens": len(ids), "emitted": thought.emitted}
            assert one["reasoning"] == told
        read = sum(map(len, reference.conversation.reasoning_prompts(QUERIES, **task)))
        assert found["usage"]["prompt_tokens"] == read
    auto = embed(client, QUERIES[:2], "tiny:auto", max_thinking_tokens=6)
    assert ["reasoning" in one for one in auto["data"]] == [True, False]


def test_a_thought_streams_with_the_vector_at_the_end(client: httpx2.Client, reference: SearchR3) -> None:
    asked, most = {"max_thinking_tokens": 9, "stream": True}, 0
    for query in QUERIES[:3]:
        body = {"input": query, "model": "tiny:think", **asked}
        *pieces, (name, last) = streamed(client.post("/v1/embeddings", json=body).text)
        (thought,) = reference.generate([query], 9)
        assert {kind for kind, _ in pieces} == {"reasoning"} and name == "embedding"
        assert "".join(json.loads(data)["text"] for _, data in pieces).strip() == thought.text
        expected = reference.encode_query([query], [thought])
        np.testing.assert_allclose(vectors(json.loads(last)), expected, **CLOSE)
        most = max(most, len(pieces))
    assert most > 1  # a piece waits until its last character is whole

    *pieces, (name, last) = streamed(client.post("/search", json={"query": query, **asked}).text)
    assert name == "answer" and json.loads(last)["reasoning"]["text"] == thought.text


def test_chat_is_that_of_this_process(client: httpx2.Client, tiny: httpx2.Client) -> None:
    asked = {"model": NAME, "messages": TURNS, "temperature": 0, "max_tokens": 7}
    here, there = (one.post("/v1/chat/completions", json=asked).json() for one in (tiny, client))
    assert there["choices"] == here["choices"] and there["usage"] == here["usage"]
    *events, done = streamed(client.post("/v1/chat/completions", json={**asked, "stream": True}).text)
    chunks = [json.loads(data)["choices"][0] for _, data in events]
    said = "".join(one["delta"].get("content", "") for one in chunks)
    assert done[1] == "[DONE]" and said == here["choices"][0]["message"]["content"]
    sampled = {**asked, "temperature": 1.0, "seed": 3}
    first, again = (client.post("/v1/chat/completions", json=sampled).json() for _ in range(2))
    assert first["choices"] == again["choices"]


def test_a_chat_that_names_no_number_asks_for_what_the_model_has_room_for(
    remote: Callable[..., Remote], chat_server: Any, reference: SearchR3
) -> None:
    prompt = reference.conversation.chat([(one["role"], one["content"]) for one in TURNS])
    backend = remote()
    backend._reading.context = len(prompt) + 5
    with running(backend) as client:
        for more, status in (({}, 200), ({"stream": True}, 200), ({"max_tokens": 6}, 422)):
            asked = {"model": NAME, "messages": TURNS, **more}
            assert client.post("/v1/chat/completions", json=asked).status_code == status
    assert [body["max_tokens"] for body in chat_server.requests] == [5, 5]


def test_events_come_while_the_model_speaks_and_who_goes_is_forgotten(
    remote: Callable[..., Remote], chat_server: Any, tiny_model: Path
) -> None:
    """The fake says no more than three pieces until the client has seen one and has gone."""
    backend, gone = remote(endless(tiny_model)), threading.Event()

    def after(place: int) -> None:
        if place == 2:
            assert gone.wait(30)

    chat_server.script.after = after
    with running(backend) as client:
        body = {"input": "x", "model": "tiny:think", "max_thinking_tokens": 400, "stream": True}
        with client.stream("POST", "/v1/embeddings", json=body) as response:
            events = response.iter_text()  # one that is let go closes the connection
            assert next(events).startswith("event: reasoning")
            assert backend.figures.rows == 1
        until(lambda: backend.figures.rows == 0)
        gone.set()
        until(lambda: chat_server.left == 1)
        assert backend.figures.said_thinking == 0 and backend.figures.waiting == 0


def test_no_more_than_so_many_at_once(remote: Callable[..., Remote], chat_server: Any) -> None:
    with running(remote(rows=2)) as client:
        script = chat_server.script
        chat_server.script = lambda number, body: {**script(number, body), "delay": 0.01}
        embed(client, [f"query {number}" for number in range(9)], "tiny:think", max_thinking_tokens=2)
        assert chat_server.most_at_once == 2


def test_limits_are_those_of_this_process(client: httpx2.Client, chat_server: Any) -> None:
    long = {"model": NAME, "input": ["x", "word " * 300]}
    chat = {"model": NAME, "messages": [{"role": "user", "content": "word " * 300}]}
    for path, body, message in [
        ("/v1/embeddings", long, "input[1] has"),
        ("/v1/embeddings", {**long, "input": "word " * 300, "reasoning": "on"}, "the query has"),
        ("/v1/chat/completions", chat, "the chat has"),
    ]:
        response = client.post(path, json=body)
        assert response.status_code == 422 and message in response.json()["error"]["message"]
    assert chat_server.requests == []


WRONG: dict[str, tuple[dict[str, Any], int]] = {
    "overloaded": ({"status": 503, "json": {"error": {"message": "secret"}}}, 503),
    "busy": ({"status": 429, "json": {"error": {"message": "secret"}}}, 503),
    "lost": ({"drop": True}, 503),
    "no JSON": ({"text": "<html>secret"}, 503),
    "no key": ({"status": 401, "json": {"error": {"message": "secret"}}}, 502),
    "no such model": ({"status": 404, "json": {"error": {"message": "secret"}}}, 502),
    "not understood": ({"status": 400, "json": {"error": {"message": "secret"}}}, 502),
    "too long": ({"status": 400, "json": {"error": {"message": "secret maximum context length"}}}, 422),
    "of another width": ({"json": {"data": [{"index": 0, "embedding": [1.0, 0.0]}]}}, 502),
}


@pytest.mark.parametrize("fault", WRONG)
def test_what_a_server_does_wrongly_is_told_and_tells_nothing(
    client: httpx2.Client, chat_server: Any, fault: str
) -> None:
    answer, status = WRONG[fault]
    chat_server.script = lambda number, body: answer
    response = client.post("/v1/embeddings", json={"input": "x", "model": NAME})
    assert response.status_code == status, response.text
    assert ("retry-after" in response.headers) is (status == 503)
    assert "secret" not in response.text and chat_server.url not in response.text
    if fault != "of another width":
        for more in ({}, {"stream": True}):
            body = {"input": "x", "model": "tiny:think", **more}
            response = client.post("/v1/embeddings", json=body)
            assert response.status_code == status, response.text


def test_a_request_that_the_server_does_not_take_is_told_alike_before_and_after_others(
    client: httpx2.Client, chat_server: Any
) -> None:
    good = chat_server.script
    for script, status in ((lambda *_: WRONG["not understood"][0], 502), (good, 200)) * 2:
        chat_server.script = script
        for more in ({}, {"reasoning": "on"}, {"reasoning": "on", "stream": True}):
            body = {"input": "x", "model": NAME, "max_thinking_tokens": 2, **more}
            assert client.post("/v1/embeddings", json=body).status_code == status


@pytest.mark.parametrize("more", [{}, {"reasoning": "on", "stream": True}])
def test_a_server_that_asks_for_time_keeps_nobody_waiting(
    client: httpx2.Client, chat_server: Any, more: dict[str, Any]
) -> None:
    """As one that starts anew behind a proxy: who asks may come back, and others are answered meanwhile."""
    good, body = chat_server.script, {"input": "x", "model": NAME, "max_thinking_tokens": 2, **more}
    chat_server.script = lambda *_: {"status": 503, "headers": {"Retry-After": "300"}}
    refused = client.post("/v1/embeddings", json=body)
    assert refused.status_code == 503 and "retry-after" in refused.headers
    assert len(chat_server.requests) == 1
    chat_server.script = good
    assert client.post("/v1/embeddings", json=body).status_code == 200


def test_a_stream_that_goes_wrong_ends_with_an_error(client: httpx2.Client, chat_server: Any) -> None:
    first = json.dumps({"choices": [{"index": 0, "text": "", "token_ids": [40], "finish_reason": None}]})
    for events, code in [
        ([first], "unavailable"),
        ([first, "[DONE]"], "unavailable"),
        ([first, '{"error": {"message": "secret"}}', "[DONE]"], "unavailable"),
        ([first, "{"], "unavailable"),
        ([first, '{"choices": [{"index": 0, "text": "a"}]}'], "bad_gateway"),
    ]:
        chat_server.script = lambda number, body, events=events: {"events": events}
        body = {"input": "x", "model": "tiny:think", "stream": True}
        answer = client.post("/v1/embeddings", json=body)
        name, data = streamed(answer.text)[-1] if answer.status_code == 200 else ("error", answer.text)
        assert name == "error" and json.loads(data)["error"]["code"] == code and "secret" not in data


def test_a_server_that_is_too_slow(remote: Callable[..., Remote], chat_server: Any) -> None:
    with running(remote(seconds=0.5), bounds={"seconds": 0.5}) as client:
        chat_server.script = lambda number, body: {"delay": 1.0}
        response = client.post("/v1/embeddings", json={"input": "x", "model": NAME})
        assert response.status_code == 408


def test_health_tells_what_is_wrong(remote: Callable[..., Remote], chat_server: Any) -> None:
    with running(remote(name="#known")) as client:
        for models, trouble in [
            ((200, ["known"]), None),
            ((200, ["other"]), "the server that thinks does not know the model by its name"),
            ((401, []), "the server that thinks answers 401"),
            ((0, []), "the server that thinks does not answer"),
        ]:
            chat_server.models = models
            health = client.get("/health")
            assert health.status_code == (503 if trouble else 200)
            assert (health.json()["ready"], health.json()["trouble"]) == (trouble is None, trouble)


def test_what_nobody_counts_is_no_figure(client: httpx2.Client) -> None:
    embed(client, "x", "tiny:think", max_thinking_tokens=2)
    figures = client.get("/metrics").text
    assert "searchr3_said_tokens_total" in figures and "searchr3_steps" not in figures


def test_a_server_that_is_not_there(tiny_model: Path) -> None:
    nobody = "http://127.0.0.1:9"
    with running(Remote(VLLMModel(tiny_model, nobody))) as client:
        assert client.get("/health").json()["trouble"] == "the server that thinks does not answer"
        for body in ({"input": "x", "model": NAME}, {"input": "x", "model": "tiny:think", "stream": True}):
            response = client.post("/v1/embeddings", json=body)
            assert response.status_code == 503 and nobody not in response.text


def test_the_command_hands_the_servers_on(
    tiny_model: Path, chat_server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("searchr3.cli.commands.hush_libraries", lambda: None)
    made: list[Any] = []

    class Stopped:
        def run(self, sockets: Any) -> None: ...

    monkeypatch.setattr("searchr3.serving.server.server", lambda service: made.append(service) or Stopped())
    wanted = ["serve", "--model", str(tiny_model), "--port", "0"]
    at = ["--backend", "vllm", "--url", chat_server.url]
    result = CliRunner().invoke(app, [*wanted, *at, "--rows", "3", "--max-text-tokens", "77"])
    assert result.exit_code == 0, result.output
    (service,) = made
    assert isinstance(service.backend, Remote) and service.backend.rows == 3
    assert service.settings.text_tokens == 77 == settings(text_tokens=77).text_tokens
    for options, message in [
        (["--backend", "vllm"], "go together"),
        (["--url", "http://localhost:1"], "go together"),
        ([*at, "--device", "cpu"], "leave out --device"),
        (["--backend", "vllm", "--url", "localhost:1"], "no web address"),
    ]:
        result = CliRunner().invoke(app, [*wanted, *options])
        assert result.exit_code == 1 and message in result.stderr
