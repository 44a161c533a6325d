"""Asking a server of OpenAI's protocols over HTTP: patiently, many at a time, careful with the key.

What is asked, and how an answer is read, is the business of those who build on `Endpoint`.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import math
import os
import random
import re
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, ClassVar, Generic, Self, TypeVar

import httpx2

from searchr3 import __version__
from searchr3.errors import EndpointError

R = TypeVar("R")
T = TypeVar("T")

KEY_VARIABLE = "OPENAI_API_KEY"
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds of the backoff
PATIENCE = 600.0  # seconds: the longest Retry-After that is waited for

_VERSION = re.compile(r"/v\d[^/]*(/|$)")
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


class TooLong(NoAnswer):
    """The server takes no request of this length."""


@dataclass(frozen=True)
class Key:
    """A secret and the environment variable that it came from. It never shows itself."""

    variable: str
    value: str = field(repr=False)

    def hide(self, text: str) -> str:
        return text.replace(self.value, "***")


def find_key(url: str, variable: str | None = None) -> Key | None:
    """The key for a server, from the environment.

    Without `variable` it is that of `OPENAI_API_KEY`, if that is set and nobody on the way could read it:
    `url` is https, or on this machine.

    Raises:
        EndpointError: `variable` is not set, or what is in it cannot be sent.
    """
    name = variable or KEY_VARIABLE
    value = os.environ.get(name, "").strip()
    if variable and not value:  # the name is not repeated: it may be the key itself, by mistake
        raise EndpointError(
            "--key-variable: there is no environment variable of that name; name the one that holds the key"
        )
    if not value or not (variable or url.startswith("https:") or is_local(url)):
        return None
    if not re.fullmatch(r"[!-~]+", value):
        raise EndpointError(f"{name}: holds a space or a letter that no key has; set it to the key alone")
    return Key(name, value)


def address(base: str, path: str, option: str) -> str:
    """The address of `path`, such as "/chat/completions", of a base address with or without its version.

    >>> address("http://localhost:8000", "/embeddings", "--endpoint")
    'http://localhost:8000/v1/embeddings'
    >>> address("https://example.org/api/v4/", "/embeddings", "--endpoint")
    'https://example.org/api/v4/embeddings'

    Args:
        option: where the user gave the base address, for errors.

    Raises:
        EndpointError: it is no such address, or holds what may be a key.
    """
    try:
        url = httpx2.URL(base.strip())
    except httpx2.InvalidURL:
        url = httpx2.URL("")
    if url.scheme not in ("http", "https") or not url.host:
        # not repeated here: it may hold a key
        raise EndpointError(f"{option}: no web address; write it as http://localhost:8000 or https://…/v1")
    if url.userinfo or url.query or url.fragment:
        raise EndpointError(
            f"{option}: leave out what stands before an @ or after a ? or #; "
            f"a key goes into the environment variable {KEY_VARIABLE}"
        )
    there = url.path.rstrip("/")
    if not there.endswith(path):
        there += path if _VERSION.search(there) else f"/v1{path}"
    return str(url.copy_with(path=there))


def is_local(url: str) -> bool:
    """Whether the address is on this machine."""
    host = httpx2.URL(url).host
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


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
    ):
        self.url, self.key, self.timeout, self.attempts = url, key, timeout, attempts
        self.concurrency = concurrency
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
                trouble = self._readable(str(error)) or "no connection"
                if not self._reached:  # then the address is wrong rather than the network
                    raise EndpointError(
                        f"{self.url}: cannot be reached ({trouble}); "
                        f"check {self.option}, and whether the server runs"
                    ) from None
            except (httpx2.RequestError, TimeoutError) as error:
                late = isinstance(error, TimeoutError | httpx2.TimeoutException)
                trouble = f"no answer in {self.timeout:g} s" if late else "the connection was lost"
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
            if wait > PATIENCE:
                raise EndpointError(
                    f"{self.url}: {trouble}; it asks to wait for {wait:.0f} s: come back then"
                )
            now = asyncio.get_running_loop().time()
            self._quiet_until = max(self._quiet_until, now + wait)
            return trouble
        of_the_query = status in (400, 403, 422)
        if status == 413 or (of_the_query and _TOO_LONG.search(response.text)):
            raise TooLong(trouble)
        if of_the_query and _FILTERED.search(response.text):
            raise NoAnswer(trouble)
        if status in (400, 422) and self.answered:  # others were answered, so it is about this one
            raise NoAnswer(trouble)
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


async def ask_all(parts: Sequence[T], ask: Callable[[T], Awaitable[R]], concurrency: int) -> list[R]:
    """What is answered to each part, in their order; so many are asked at a time.

    The first is asked alone, so that a wrong key or name is told once. The first error stops the others.
    """
    found: dict[int, R] = {}

    async def work(waiting: Iterator[tuple[int, T]]) -> None:
        for number, part in waiting:
            found[number] = await ask(part)

    waiting = iter(enumerate(parts))
    for number, part in waiting:
        found[number] = await ask(part)
        break
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(work(waiting))
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return [found[number] for number in range(len(parts))]
