"""The gate: who is let in, how much they bring, how long they stay, and what is told of it."""

import contextlib
import logging
import re
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest

from searchr3.serving.settings import KEYS, read_keys
from searchr3.serving.worker import Worker
from searchr3.tasks import Task

from .conftest import KEY, NAME, Patient, Shelf, endless, until

Serving = Callable[..., Any]
BODY = {"model": NAME, "input": "x"}
THINK = {"model": f"{NAME}:think", "input": "x"}


def kind(response: httpx2.Response) -> str:
    return str(response.json()["error"]["code"])


def post(client: httpx2.Client, **more: Any) -> httpx2.Response:
    return client.post("/v1/embeddings", json=BODY, **more)


def traffic(client: Any) -> Any:
    return client.extensions["server"].traffic


def test_without_the_key_there_is_health_and_the_page_alone(serving: Serving, patient: Patient) -> None:
    patient.go.set()
    with serving(patient, bounds={"keys": read_keys({KEYS: KEY})}, searcher=Shelf()) as client:
        for path in ("/health", "/health/live", "/docs", "/openapi.json"):
            assert client.get(path).status_code == 200
        for header in ({}, {"Authorization": "Bearer another-key-of-length"}):
            refused = [client.get(path, headers=header) for path in ("/metrics", "/v1/models", "/nowhere")]
            for path in ("/search", "/v1/embeddings"):
                refused.append(client.post(path, headers=header, content=b"{"))
            for response in refused:
                assert response.status_code == 401 and kind(response) == "invalid_api_key"
                assert response.headers["www-authenticate"] == "Bearer"
        allowed = {"Authorization": f"Bearer {KEY}"}
        assert post(client, headers=allowed).status_code == 200
        assert client.get("/metrics", headers=allowed).status_code == 200


def test_a_browser_is_not_led_here_by_another_name(serving: Serving, patient: Patient) -> None:
    patient.go.set()
    with serving(patient) as client:
        for host in ("evil.example", "evil.example:80", "localhost.evil.example", ""):
            response = post(client, headers={"Host": host})
            assert response.status_code == 421 and kind(response) == "wrong_host"
        for host in ("localhost", "LocalHost:9", "127.0.0.1:1", "[::1]:8000"):
            assert post(client, headers={"Host": host}).status_code == 200
        # a page of another site may send this without asking; it is not taken for JSON
        content, headers = b'{"model": "tiny", "input": "x"}', {"Content-Type": "text/plain"}
        assert client.post("/v1/embeddings", content=content, headers=headers).status_code == 422


def test_every_answer_has_the_headers(serving: Serving, patient: Patient) -> None:
    patient.go.set()
    with serving(patient) as client:
        answers = [post(client), client.get("/health"), client.get("/nowhere")]
        answers.append(post(client, headers={"Host": "elsewhere.example"}))
        for response in answers:
            assert response.headers["x-content-type-options"] == "nosniff"
            assert "default-src 'none'" in response.headers["content-security-policy"]
            assert response.headers["cache-control"] == "no-store" and "server" not in response.headers
        assert len({response.headers["x-request-id"] for response in answers}) == len(answers)
        assert post(client, headers={"X-Request-ID": "mine-1"}).headers["x-request-id"] == "mine-1"
        made = post(client, headers={"X-Request-ID": "a b\u00e9".encode()}).headers["x-request-id"]
        assert re.fullmatch("[0-9a-f]{32}", made)


def test_a_body_that_is_too_large(serving: Serving, patient: Patient) -> None:
    patient.go.set()
    with serving(patient, bounds={"body_bytes": 1000}) as client:
        assert post(client).status_code == 200
        large = b'{"input": "' + b"x" * 3000 + b'"}'
        headers = {"Content-Type": "application/json"}
        for content in (large, (part for part in [large[:1500], large[1500:]])):  # its length told, and not
            response = client.post("/v1/embeddings", content=content, headers=headers)
            assert response.status_code == 413 and kind(response) == "body_too_large"
        assert patient.entered == 1


def test_too_many_at_once_are_told_to_wait(serving: Serving, patient: Patient) -> None:
    with serving(patient, bounds={"requests": 3}) as client, ThreadPoolExecutor(3) as pool:
        accepted = [pool.submit(post, client) for _ in range(3)]
        until(lambda: patient.entered == 3)
        response = post(client)
        assert response.status_code == 429 and kind(response) == "rate_limit_exceeded"
        assert int(response.headers["retry-after"]) >= 1
        assert client.get("/health").status_code == 200  # not a request to the model
        patient.go.set()
        assert [one.result().status_code for one in accepted] == [200] * 3
        assert post(client).status_code == 200


@pytest.mark.parametrize("streams", [False, True])
def test_what_would_wait_too_long_is_told_when_to_come_back(
    serving: Serving, patient: Patient, streams: bool
) -> None:
    patient.go.set()
    with serving(patient) as client:
        if streams:  # it has begun already
            text = client.post("/v1/embeddings", json={**THINK, "input": "busy", "stream": True}).text
            assert '"rate_limit_exceeded"' in text
            return
        response = client.post("/v1/embeddings", json={**THINK, "input": "busy"})
        assert response.status_code == 429 and kind(response) == "rate_limit_exceeded"
        assert response.headers["retry-after"] == "8"


def test_a_request_whose_time_is_over(serving: Serving, patient: Patient) -> None:
    with serving(patient, bounds={"seconds": 0.3}) as client:
        response = post(client)
        assert response.status_code == 408 and kind(response) == "timeout"
        until(lambda: patient.left == 1 and traffic(client).active == 0)
        text = client.post("/v1/embeddings", json={**THINK, "stream": True}).text
        assert text.startswith("event: reasoning") and "event: error" in text and '"timeout' in text
        until(lambda: patient.left == 2 and traffic(client).active == 0)


SPELLED = {
    "/v1/embeddings%0A": BODY,
    "/v1/chat/completions%0A": {"model": NAME, "messages": [{"role": "user", "content": "x"}]},
    "/search%0A": {"query": "x"},
}


@pytest.mark.parametrize("path", SPELLED)
def test_no_spelling_of_a_path_leads_past_the_bounds(serving: Serving, patient: Patient, path: str) -> None:
    """The routes take a line break behind their paths."""
    bounds = {"body_bytes": 1000, "requests": 1}
    with serving(patient, bounds=bounds, searcher=Shelf()) as client, ThreadPoolExecutor(1) as pool:
        assert client.post(path, json={"input": "x" * 3000}).status_code == 413
        accepted = pool.submit(client.post, path, json=SPELLED[path])
        until(lambda: patient.entered == 1)
        assert client.post(path, json=SPELLED[path]).status_code == 429
        patient.go.set()
        assert accepted.result().status_code == 200


def test_a_body_that_never_comes(serving: Serving, patient: Patient) -> None:
    with serving(patient, bounds={"seconds": 0.3}) as client, connected(client, b'{"input"', 500) as slow:
        assert b" 408 " in slow.recv(4096).split(b"\r\n")[0]
        assert patient.entered == 0


@pytest.mark.parametrize("streams", [False, True])
def test_a_client_that_goes_frees_its_place(serving: Serving, patient: Patient, streams: bool) -> None:
    body = b'{"model":"tiny:think","input":"x","stream":%s}' % (b"true" if streams else b"false")
    with serving(patient) as client:
        with connected(client, body, len(body)):
            until(lambda: patient.entered == 1)
            assert traffic(client).active == 1
        until(lambda: patient.left == 1 and traffic(client).active == 0)
        assert 'route="/v1/embeddings",status="499"' in client.get("/metrics").text


def test_a_client_that_goes_frees_its_row(
    serving: Serving, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model would go on for long, and after its first step waits until the client is known to be gone."""
    body = b'{"model":"tiny","messages":[{"role":"user","content":"go on"}],"max_tokens":900}'
    worker = Worker(endless(tiny_model), rows=2)
    engine, step = worker.engine, worker.engine.step

    def patiently() -> list[Task]:
        if worker.figures.steps:
            until(lambda: worker.thinking[0].gone)
        return step()

    monkeypatch.setattr(engine, "step", patiently)
    with serving(worker) as client:
        with connected(client, body, len(body), "/v1/chat/completions"):
            until(lambda: worker.figures.rows == 1)
        until(lambda: not worker.thinking and not worker.engine.busy)
        assert worker.engine is engine, "it failed meanwhile"
        assert worker.figures.said_chat == 0


def test_a_reader_that_is_too_slow_does_not_stay(
    serving: Serving, patient: Patient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer is larger than what the system keeps for a reader, who asks for nothing more."""
    monkeypatch.setattr("searchr3.serving.gate.GRACE", 0.2)
    patient.go.set()
    body = b'{"model":"tiny","input":[%s]}' % b",".join([b'"x"'] * 400_000)
    bounds = {"seconds": 4, "batch": 400_000}
    with serving(patient, bounds=bounds) as client, connected(client, body, len(body)) as slow:
        assert slow.recv(9) == b"HTTP/1.1 "
        until(lambda: traffic(client).active == 0)
        got = b""
        with contextlib.suppress(ConnectionResetError):
            while part := slow.recv(1 << 20):
                got += part
        head, _, rest = got.partition(b"\r\n\r\n")
        (whole,) = re.findall(rb"content-length: (\d+)", head)
        assert 0 < len(rest) < int(whole)


def connected(client: httpx2.Client, body: bytes, length: int, path: str = "/v1/embeddings") -> socket.socket:
    """A connection that has sent a request whose body shall have `length` bytes."""
    link = socket.create_connection((client.base_url.host, client.base_url.port), timeout=30)
    head = [f"POST {path} HTTP/1.1", "Host: localhost", "Content-Type: application/json"]
    link.sendall("\r\n".join([*head, f"Content-Length: {length}", "", ""]).encode() + body)
    return link


def test_a_defect_tells_nothing(serving: Serving, patient: Patient, caplog: pytest.LogCaptureFixture) -> None:
    patient.go.set()
    logging.getLogger("searchr3.serving").setLevel(logging.INFO)
    with caplog.at_level(logging.INFO, "searchr3.serving"), serving(patient) as client:
        for more in ({}, {"stream": True}):
            response = client.post("/v1/embeddings", json={**THINK, "input": "fail", **more})
            text = response.text
            assert "its log tells more" in text and "defect" not in text and "Traceback" not in text
        assert client.post("/v1/embeddings", json={**THINK, "input": "fail"}).status_code == 500
        post(client, headers={"X-Request-ID": "known"})
        client.get("/secret-of-a-user")
    assert "RuntimeError at " in caplog.text and "a defect that holds" not in caplog.text
    assert "known POST /v1/embeddings 200 " in caplog.text
    assert "GET other 404" in caplog.text and "secret-of-a-user" not in caplog.text


def test_shutting_down_finishes_what_was_accepted(serving: Serving, patient: Patient) -> None:
    with serving(patient) as client, ThreadPoolExecutor(1) as pool:
        accepted = pool.submit(post, client)
        until(lambda: patient.entered == 1)
        client.extensions["server"].handle_exit(15, None)
        refused = post(client)
        assert refused.status_code == 503 and "retry-after" in refused.headers
        health = client.get("/health")
        assert health.status_code == 503 and not health.json()["ready"]
        assert client.get("/health/live").status_code == 200
        patient.go.set()
        assert accepted.result().status_code == 200
