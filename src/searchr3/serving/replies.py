"""What goes back: JSON, errors in OpenAI's shape, and server-sent events."""

from __future__ import annotations

import asyncio
import logging
import math
from base64 import b64encode
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from typing import Any

import numpy as np
import orjson
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from searchr3.files import json_text
from searchr3.serving.backend import Busy, Closed, Faulty, Refused, Unavailable

log = logging.getLogger(__name__)

Event = tuple[str | None, Any]  # its name, and its data: JSON, or text as it is

KINDS = {
    400: ("invalid_request_error", None),
    401: ("authentication_error", "invalid_api_key"),
    404: ("invalid_request_error", "not_found"),
    408: ("timeout_error", "timeout"),
    413: ("invalid_request_error", "body_too_large"),
    421: ("invalid_request_error", "wrong_host"),
    422: ("invalid_request_error", None),
    429: ("rate_limit_error", "rate_limit_exceeded"),
    500: ("server_error", None),
    502: ("server_error", "bad_gateway"),
    503: ("server_error", "unavailable"),
}
"""Type and code of an error, by status."""


class ApiError(Exception):
    """An answer that is an error: status, one line with the mend, and the field that it is about."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    @classmethod
    def of(cls, error: BaseException) -> ApiError:
        """What a client is told of an error; of a defect of ours no more than that."""
        if isinstance(error, ApiError):
            return error
        if isinstance(error, Refused):
            return cls(422, str(error))
        if isinstance(error, Busy):
            return cls(429, str(error), headers={"Retry-After": str(max(1, math.ceil(error.seconds)))})
        if isinstance(error, Faulty):
            return cls(502, str(error))
        if isinstance(error, Closed | Unavailable):
            return cls(503, str(error), headers={"Retry-After": "5"})
        if isinstance(error, TimeoutError):
            return cls(408, "the time for a request is over; ask for less at once, or later")
        return cls(500, "the server failed at this; its log tells more under the request's id")

    def body(self) -> dict[str, Any]:
        """As OpenAI shapes it."""
        kind, code = KINDS.get(self.status, ("invalid_request_error", None))
        told = {"message": self.message, "type": kind, "param": self.param, "code": self.code or code}
        return {"error": told}


class Json(Response):
    """JSON in which arrays may stand."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return encoded(content)


def encoded(value: Any) -> bytes:
    """`value` as JSON; arrays are lists; half a character, which is no UTF-8, becomes a question mark."""
    try:
        return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    except TypeError:
        return json_text(value).encode("utf-8", "replace")


def as_base64(vector: np.ndarray) -> str:
    """A vector as OpenAI's clients read it: its little-endian float32 bytes in base64."""
    return b64encode(np.ascontiguousarray(vector, dtype="<f4").tobytes()).decode("ascii")


def told(error: BaseException, request: str) -> ApiError:
    """`ApiError.of`; a defect is logged by its name and place: its message may hold users' texts."""
    answer = ApiError.of(error)
    if answer.status == 500:
        place = error.__traceback__
        while place and place.tb_next:
            place = place.tb_next
        where = f"{place.tb_frame.f_code.co_filename}:{place.tb_lineno}" if place else "?"
        log.error("%s failed: %s at %s", request, type(error).__name__, where)
        log.debug("%s", request, exc_info=error)
    return answer


class Events(StreamingResponse):
    """Server-sent events. The source is ended when the response is, however that comes about."""

    media_type = "text/event-stream"

    def __init__(self, first: bytes, rest: AsyncGenerator[bytes, None]):
        async def all_of_them() -> AsyncIterator[bytes]:
            yield first
            async for one in rest:
                yield one

        super().__init__(all_of_them())
        self.rest = rest

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self.rest.aclose()


async def events(source: AsyncGenerator[Event, None], deadline: float, request: str) -> Events:
    """A response that sends what `source` yields, until the loop's time is `deadline`.

    The first event is awaited here, so that what is refused is refused with its status. A later error is the
    last event, named "error".
    """
    first = written(await anext(source))

    async def rest() -> AsyncGenerator[bytes, None]:
        try:
            while True:
                left = deadline - asyncio.get_running_loop().time()
                yield written(await asyncio.wait_for(anext(source), max(0.0, left)))
        except StopAsyncIteration:
            return
        except Exception as error:
            yield written(("error", told(error, request).body()))
        finally:
            await source.aclose()

    return Events(first, rest())


def written(event: Event) -> bytes:
    """An event as the stream has it."""
    name, data = event
    text = data.encode() if isinstance(data, str) else encoded(data)
    return (f"event: {name}\n".encode() if name else b"") + b"data: " + text + b"\n\n"
