"""Asking a server of OpenAI's protocols over HTTP: patiently, many at a time, careful with the key.

What is asked, and how an answer is read, is the business of those who build on `Endpoint`.
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import re
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, ClassVar, Generic, Self, TypeVar

import httpx2

from searchr3.errors import EndpointError
from searchr3.server_address import Key, is_local
from searchr3.version import __version__

R = TypeVar("R")
T = TypeVar("T")

FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds of the backoff
PATIENCE = 600.0  # seconds: the longest Retry-After that is waited for, unless the caller has less time

_AGAIN = {408, 409, 425, 429}
_FILTERED = re.compile(r"content.?(filter|policy|management)|moderation|flagged", re.IGNORECASE)
_TOO_LONG = re.compile(
    r"context.?(length|window|size)|(prompt|input|message|text)s? (is|are) too (long|large)"
    r"|batch.?size|tokens per request",
    re.IGNORECASE,
)
_NO_CREDIT = re.compile(r"insufficient.(quota|balance|credit)", re.IGNORECASE)


class NoAnswer(Exception):
    """One request brought nothing usable; others may. The text says why, in a few words."""


class Unreachable(EndpointError):
    """No server answers at the address, or it asks to come back later than we wait."""


class Rejected(NoAnswer):
    """The server does not take this request, however often it is asked."""


class TooLong(Rejected):
    """The server takes no request of this length."""


def retry_after(value: str | None, now: datetime) -> float:
    """Seconds that a Retry-After header asks to wait: a number, or a date (RFC 9110, 10.2.3); 0 for none."""
    try:
        seconds = float(value or 0)
    except ValueError:
        try:
            seconds = (parsedate_to_datetime(value or "").astimezone(UTC) - now).total_seconds()
        except (ValueError, TypeError, OverflowError):
            seconds = 0.0
    return 0.0 if math.isnan(seconds) else max(0.0, seconds)


class Endpoint(ABC, Generic[R]):
    """A server to ask; an asynchronous context manager.

    After 408, 409, 425, 429, 5xx, a timeout, a lost connection and an answer that is none a request is tried
    again; the wait before it doubles each time, give or take half of it. A Retry-After holds for all.

    Args:
        url: what is posted to, see `address`.
        key: sent as a bearer token; None for a server that wants none.
        timeout: seconds for one attempt.
        attempts: how often one request is tried.
        concurrency: most requests at a time (the caller's promise; connections are kept for so many).
        patience: seconds, the longest Retry-After that is waited for.

    Attributes:
        option: where the user gave the address, for errors.
        mends: status → what mends it.
        answered: whether such requests were answered before. Until then a 400 stops everything, for it is
            likely to be about what all requests have in common; after it a 400 is about the one query.
    """

    option: ClassVar[str]
    mends: ClassVar[Mapping[int, str]]

    def __init__(
        self,
        url: str,
        key: Key | None = None,
        timeout: float = 120.0,
        attempts: int = 7,
        concurrency: int = 8,
        patience: float = PATIENCE,
    ):
        self.url, self.key, self.timeout, self.attempts = url, key, timeout, attempts
        self.concurrency, self.patience = concurrency, patience
        self.answered, self._reached = False, False
        self._quiet_until = 0.0

    async def __aenter__(self) -> Self:
        headers = {"Content-Type": "application/json", "User-Agent": f"searchr3/{__version__}"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key.value}"
        self._client = httpx2.AsyncClient(
            headers=headers,
            timeout=httpx2.Timeout(self.timeout, connect=min(20.0, self.timeout)),
            limits=httpx2.Limits(max_connections=self.concurrency),
            trust_env=not is_local(self.url),  # a proxy would look for `localhost` on its own machine
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    @abstractmethod
    def read(self, response: httpx2.Response) -> R | str:
        """The answer, or what is wrong with it: then it is asked for again."""

    async def ask(self, body: str) -> R:
        """Send one request, its body as JSON text.

        Raises:
            NoAnswer: this request cannot be answered, or could not be within all attempts.
            EndpointError: no request could: key, model, address, credit.
        """
        trouble = ""
        for attempt in range(self.attempts):
            if attempt:
                backoff = min(LONGEST_WAIT, FIRST_WAIT * 2 ** (attempt - 1))
                await asyncio.sleep(backoff * random.uniform(0.5, 1.5))
            await self._keep_quiet()
            try:
                async with asyncio.timeout(self.timeout):
                    response = await self._client.post(self.url, content=body)
            except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
                if not self._reached:  # then the address is wrong rather than the network
                    raise self._unreachable(error) from None
                trouble = self._lost(error)
            except (httpx2.RequestError, TimeoutError) as error:
                trouble = self._lost(error)
            else:
                self._reached = True
                if response.is_success:
                    reply = self.read(response)
                    if not isinstance(reply, str):
                        self.answered = True
                        return reply
                    trouble = reply
                else:
                    trouble = self._refused(response)
        raise NoAnswer(f"{trouble} ({self.attempts} attempts)")

    async def stream(self, body: str) -> AsyncGenerator[str, None]:
        """Send one request, once. Yields the data of the server-sent events that answer it.

        Raises:
            NoAnswer: it cannot be answered, or the answer broke off.
            EndpointError: no request could be.
        """
        await self._keep_quiet()
        try:
            async with self._client.stream("POST", self.url, content=body) as response:
                self._reached = True
                if not response.is_success:
                    await response.aread()
                    raise NoAnswer(self._refused(response))
                async for line in response.aiter_lines():
                    if line.startswith("data:"):
                        yield line.removeprefix("data:").strip()
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise self._unreachable(error) from None
        except httpx2.RequestError as error:
            raise NoAnswer(self._lost(error)) from None

    async def get(self, url: str, seconds: float) -> httpx2.Response:
        """Ask for another address of this server, once.

        Raises:
            NoAnswer: there is none.
        """
        try:
            async with asyncio.timeout(seconds):
                return await self._client.get(url)
        except (httpx2.RequestError, TimeoutError) as error:
            raise NoAnswer(self._lost(error)) from None

    def _unreachable(self, error: Exception) -> Unreachable:
        why = self._readable(str(error)) or "no connection"
        return Unreachable(
            f"{self.url}: cannot be reached ({why}); check {self.option}, and whether the server runs"
        )

    def _lost(self, error: Exception) -> str:
        if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
            return self._readable(str(error)) or "no connection"
        late = isinstance(error, TimeoutError | httpx2.TimeoutException)
        return f"no answer in {self.timeout:g} s" if late else "the connection was lost"

    async def _keep_quiet(self) -> None:
        while (left := self._quiet_until - asyncio.get_running_loop().time()) > 0:
            await asyncio.sleep(left + random.uniform(0, FIRST_WAIT))  # not all at the same moment

    def _refused(self, response: httpx2.Response) -> str:
        """What to remember of a refusal after which to try again; raises after any other."""
        status, says = response.status_code, self.says(response)
        trouble = f"{status}: {says}" if says else f"{status} {response.reason_phrase}".strip()
        out_of_credit = status == 429 and _NO_CREDIT.search(response.text)
        if (status in _AGAIN or status >= 500) and not out_of_credit:
            wait = retry_after(response.headers.get("retry-after"), datetime.now(UTC))
            if wait > self.patience:
                raise Unreachable(f"{self.url}: {trouble}; it asks to wait for {wait:.0f} s: come back then")
            now = asyncio.get_running_loop().time()
            self._quiet_until = max(self._quiet_until, now + wait)
            return trouble
        of_the_query = status in (400, 403, 422)
        if status == 413 or (of_the_query and _TOO_LONG.search(response.text)):
            raise TooLong(trouble)
        if of_the_query and _FILTERED.search(response.text):
            raise Rejected(trouble)
        if status in (400, 422) and self.answered:  # others were answered, so it is about this one
            raise Rejected(trouble)
        if response.is_redirect:
            raise EndpointError(f"{self.url}: {status}, it has moved; give the new address to {self.option}")
        mend = self.mends.get(status, "see what the server says")
        if status in (401, 403):
            mend += (
                f" in {self.key.variable}"
                if self.key
                else "; none was sent: name its variable with --key-variable"
            )
        raise EndpointError(f"{self.url}: {trouble}; {mend}")

    def says(self, response: httpx2.Response) -> str:
        """The server's own words on what is wrong, on one line and without the key."""
        try:
            said: Any = response.json()
        except (ValueError, RecursionError):
            said = response.text
        for name in ("error", "message", "detail"):
            if isinstance(said, Mapping) and said.get(name):
                said = said[name]
        return self._readable(said if isinstance(said, str) else json.dumps(said))

    def _readable(self, text: str) -> str:
        line = " ".join((self.key.hide(text) if self.key else text).split())
        return "".join(letter for letter in line if letter.isprintable())[:300]


async def ask_all(
    parts: Sequence[T], ask: Callable[[T], Awaitable[R]], concurrency: int, first_alone: bool = True
) -> list[R]:
    """What is answered to each part, in their order; so many are asked at a time.

    The first is asked alone, so that a wrong key or name is told once. The first error stops the others.
    """
    found: dict[int, R] = {}

    async def work(waiting: Iterator[tuple[int, T]]) -> None:
        for number, part in waiting:
            found[number] = await ask(part)

    waiting = iter(enumerate(parts))
    for number, part in waiting if first_alone else ():
        found[number] = await ask(part)
        break
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(work(waiting))
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [found[number] for number in range(len(parts))]
