"""A server on this machine that tests may make say, or fail, what they want."""

import json
import re
import threading
import time
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class ChatServer(ThreadingHTTPServer):
    """A server on this machine that speaks chat completions, and says what a test wants of it.

    Attributes:
        script: (number of the request, its body) → what to change of a good answer: `status`, `headers`,
            `json` or `text` of the body, `says` (the message), `finish`, `delay` in seconds, `drop` the
            connection; `events`, server-sent, one by one as they come.
        models: (status, names) of what it says that it serves; a status of 0: it says nothing.
        left: how many clients went while events were sent.
        requests: the bodies that came; `arrivals` their times, `heads` their headers.
        most_at_once: most requests that were worked on at the same time.
    """

    daemon_threads = True
    request_queue_size = 256

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _ChatHandler)
        self.script: Callable[[int, dict[str, Any]], dict[str, Any]] = lambda number, body: {}
        self.requests: list[dict[str, Any]] = []
        self.heads: list[dict[str, str]] = []
        self.arrivals: list[float] = []
        self.at_once = self.most_at_once = self.left = 0
        self.models: tuple[int, list[str]] = (200, [])
        self.lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_port}"

    @property
    def queries(self) -> list[str]:
        """Whose query each request was about, by our own prompt."""
        return [query_of(body) for body in self.requests]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is no news."""


def query_of(body: dict[str, Any]) -> str:
    if "messages" not in body:  # embeddings, which every script answers itself
        return ""
    return re.findall(r"^Query: (.*)$", body["messages"][-1]["content"], re.MULTILINE)[-1]


class _ChatHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ChatServer

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        server = self.server
        with server.lock:
            number = len(server.requests)
            server.requests.append(body)
            server.arrivals.append(time.monotonic())
            server.heads.append(
                {"path": self.path, **{key.lower(): value for key, value in self.headers.items()}}
            )
            server.at_once += 1
            server.most_at_once = max(server.most_at_once, server.at_once)
        try:
            answer = server.script(number, body)
            time.sleep(answer.get("delay", 0))
        finally:
            with server.lock:
                server.at_once -= 1
        if answer.get("drop"):
            self.close_connection = True
            return
        if "events" in answer:
            self._stream(answer["events"])
            return
        says = answer.get("says", f"concepts of {query_of(body)}")
        choice = {
            "message": {"role": "assistant", "content": says},
            "finish_reason": answer.get("finish", "stop"),
        }
        good = {"choices": [choice], "usage": {"prompt_tokens": 100, "completion_tokens": 10}}
        text = answer.get("text", json.dumps(answer.get("json", good)))
        self._answer(answer.get("status", 200), text, answer.get("headers", {}))

    def do_GET(self) -> None:
        status, names = self.server.models
        if not status:
            self.close_connection = True
            return
        self._answer(status, json.dumps({"object": "list", "data": [{"id": name} for name in names]}), {})

    def _answer(self, status: int, text: str, headers: dict[str, str]) -> None:
        body = text.encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _stream(self, events: Iterable[str]) -> None:
        self.close_connection = True
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        try:
            for event in events:
                self.wfile.write(f"data: {event}\n\n".encode())
        except OSError:
            with self.server.lock:
                self.server.left += 1

    def log_message(self, *_: Any) -> None:
        pass
