"""Who is let in, how much they bring and how long they stay; an ASGI middleware around every route.

A request is refused before its body is read where that can be: wrong host (421), no key (401), shutting down
(503), too many at once (429). Then the body is read, up to its bound (413), the route is called, and both end
when the time is over (408) or the client has gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import re
import time
from collections.abc import Collection
from uuid import uuid4

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from searchr3.serving.metrics import Metrics, Traffic
from searchr3.serving.replies import ApiError, encoded, told
from searchr3.serving.settings import Settings, is_local

log = logging.getLogger(__name__)

PART = 1 << 16  # bytes of an answer that are sent at once
GRACE = 5.0  # seconds for the end of an answer that had begun when the time was over
HEADERS = {
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}
"""Of every answer, unless a route sets its own."""
_ID = re.compile(r"[\w.:-]{1,64}", re.ASCII)
_HOST = re.compile(r"\[?([^\]]*?)\]?(?::\d+)?")
_GONE = 499  # status of a request whose client has gone, in log and metrics


class Gate:
    """The middleware.

    Every POST is bounded, as all that uses the model is one; a list of paths would not do, for a route takes
    more spellings than its own, such as one with a line break behind it. The others are answered at any time.

    Args:
        open: paths that need no key.
        known: paths that are named in log and metrics.
    """

    def __init__(
        self,
        app: ASGIApp,
        settings: Settings,
        traffic: Traffic,
        metrics: Metrics,
        open: Collection[str],
        known: Collection[str],
    ):
        self.app, self.settings, self.traffic, self.metrics = app, settings, traffic, metrics
        self.open, self.known = frozenset(open), frozenset(known)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        visit = _Visit(scope, send, self.settings.seconds)
        try:
            self._check(visit)
            if visit.works:
                await self._serve(visit, receive)
            else:  # HEAD is a GET whose body the server does not send
                asked = {**scope, "method": "GET"} if visit.method == "HEAD" else scope
                await self.app(asked, receive, visit.send)
        except Exception as error:
            answer = told(error, visit.id)
            if not visit.status:
                await visit.refuse(answer)
        finally:
            self._note(visit)

    def _check(self, visit: _Visit) -> None:
        """Raise ApiError where a request is refused for what its head says."""
        settings = self.settings
        if settings.is_local and not settings.keys:
            # a page in a browser on this machine could reach us by a name of its own that means this address
            found = _HOST.fullmatch(visit.header(b"host").decode("latin-1"))
            if not (found and is_local(found[1])):
                raise ApiError(421, "this server is for this machine alone; ask it as localhost or 127.0.0.1")
        if visit.path not in self.open and not settings.allows(visit.header(b"authorization")):
            message = "no such API key; send the header Authorization: Bearer KEY"
            raise ApiError(401, message, headers={"WWW-Authenticate": "Bearer"})
        if not visit.works:
            return
        if self.traffic.draining:
            raise ApiError(503, "the server is shutting down; ask again later", headers={"Retry-After": "5"})
        if self.traffic.active >= settings.requests:
            wait = str(max(1, math.ceil(self.traffic.seconds)))
            raise ApiError(
                429, f"too many requests at once; try again in {wait} s", headers={"Retry-After": wait}
            )

    async def _serve(self, visit: _Visit, receive: Receive) -> None:
        visit.enter(self.traffic)
        try:
            async with asyncio.timeout_at(visit.deadline) as visit.limit:
                await self._watched(visit, await self._body(visit, receive), receive)
        except TimeoutError:
            if (
                not visit.status
            ):  # else the connection ends in the middle of the answer: its reader is too slow
                raise
        finally:
            visit.leave()

    async def _body(self, visit: _Visit, receive: Receive) -> bytes:
        most = self.settings.body_bytes
        length = visit.header(b"content-length")
        parts, size, more = [], int(length) if length.isdigit() else 0, True
        if size <= most:
            size = 0
            while more and size <= most:
                message = await receive()
                if message["type"] == "http.disconnect":
                    visit.gone = True
                    return b""
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                more = message.get("more_body", False)
        if size > most:
            raise ApiError(413, f"the body is larger than {most} bytes; send fewer texts at once")
        return b"".join(parts)

    async def _watched(self, visit: _Visit, body: bytes, receive: Receive) -> None:
        """Call the route, and leave it when the client goes."""
        if visit.gone:
            return
        given = False
        gone = asyncio.Event()

        async def replay() -> Message:
            nonlocal given
            if not given:
                given = True
                return {"type": "http.request", "body": body, "more_body": False}
            await gone.wait()
            return {"type": "http.disconnect"}

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            gone.set()

        work = asyncio.ensure_future(self.app(visit.scope, replay, visit.send))
        watching = asyncio.ensure_future(watch())
        try:
            await asyncio.wait({work, watching}, return_when=asyncio.FIRST_COMPLETED)
            if work.done():
                work.result()
            elif not visit.complete:
                visit.gone = True
        finally:
            for task in (work, watching):
                task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.gather(work, watching, return_exceptions=True)

    def _note(self, visit: _Visit) -> None:
        status = visit.status if visit.complete or not visit.gone else _GONE
        route = visit.path if visit.path in self.known else "other"
        self.metrics.count(route, status, visit.seconds)
        log.info("%s %s %s %d %.0f ms", visit.id, visit.method, route, status, 1000 * visit.seconds)


class _Visit:
    """A request and how far its answer is; `works`: it may use the model."""

    def __init__(self, scope: Scope, send: Send, seconds: float):
        self.scope, self._send = scope, send
        self.start = time.perf_counter()
        self.deadline = asyncio.get_running_loop().time() + seconds
        self.limit: asyncio.Timeout | None = None
        self.traffic: Traffic | None = None
        self.status, self.complete, self.gone = 0, False, False
        self.path: str = scope["path"]
        self.method: str = scope["method"] if scope["method"].isalpha() else "?"
        self.works = self.method == "POST"
        self.headers = dict(scope["headers"])
        given = self.header(b"x-request-id").decode("latin-1")
        self.id = given if _ID.fullmatch(given) else uuid4().hex
        scope.setdefault("state", {}).update(id=self.id, deadline=self.deadline)

    def enter(self, traffic: Traffic) -> None:
        """It takes one of the places."""
        self.traffic = traffic
        traffic.active += 1

    def leave(self) -> None:
        """It gives its place back, before its answer ends: the client may ask again at once."""
        self.limit = None
        if self.traffic:
            self.traffic.active -= 1
            self.traffic.took(self.seconds)
            self.traffic = None

    @property
    def seconds(self) -> float:
        """Since it came."""
        return time.perf_counter() - self.start

    def header(self, name: bytes) -> bytes:
        """A header of the request, empty if it has none."""
        return bytes(self.headers.get(name, b""))

    async def send(self, message: Message) -> None:
        """What the route sends, with our headers; once it begins, its reader may take a little longer."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            own = {name.lower() for name, _ in message["headers"]}
            ours = {**HEADERS, "x-request-id": self.id}
            pairs = [(name.encode(), value.encode()) for name, value in ours.items()]
            message["headers"] = [*message["headers"], *(pair for pair in pairs if pair[0] not in own)]
            if self.limit and not self.limit.expired():
                self.limit.reschedule(self.deadline + GRACE)
        body = message.get("body", b"")
        while len(body) > PART:  # in parts, so that a slow reader makes us wait, and is not kept in memory
            await self._send({**message, "body": body[:PART], "more_body": True})
            body = body[PART:]
        last = message["type"] == "http.response.body" and not message.get("more_body", False)
        if last:
            self.leave()
        await self._send({**message, "body": body} if "body" in message else message)
        self.complete = last

    async def refuse(self, error: ApiError) -> None:
        """Answer with an error."""
        body = encoded(error.body())
        headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers}
        pairs = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
        await self.send({"type": "http.response.start", "status": error.status, "headers": pairs})
        await self.send({"type": "http.response.body", "body": body})
