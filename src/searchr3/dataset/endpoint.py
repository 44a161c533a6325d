"""Asking a server that speaks OpenAI's chat completions: patiently, many at a time, careful with the key.

The protocol is `POST /v1/chat/completions` of OpenAI's API reference, which vLLM, Ollama, llama.cpp and most
providers speak as well.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import math
import os
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2

from searchr3 import __version__
from searchr3.errors import EndpointError

KEY_VARIABLE = "OPENAI_API_KEY"
FIRST_WAIT, LONGEST_WAIT = 0.5, 30.0  # seconds of the backoff
PATIENCE = 600.0  # seconds: the longest Retry-After that is waited for

_VERSION = re.compile(r"/v\d[^/]*(/|$)")
_AGAIN = {408, 409, 425, 429}
_OF_THE_QUERY = re.compile(
    r"content.?(filter|policy|management)|moderation|flagged|context.?(length|window|size)"
    r"|(prompt|input|message|text)s? (is|are) too (long|large)",
    re.IGNORECASE,
)
_NO_CREDIT = re.compile(r"insufficient.(quota|balance|credit)", re.IGNORECASE)
_MENDS = {
    400: "see --model, --max-tokens, --temperature and --set",
    401: "check the key",
    402: "add credit to the account",
    403: "check what the key may use",
    404: "check --endpoint and --model",
    422: "see --model, --max-tokens, --temperature and --set",
    429: "add credit to the account",
}


class NoAnswer(Exception):
    """One request brought nothing usable; others may. The text says why, in a few words."""


@dataclass(frozen=True)
class Reply:
    """What the model said.

    Attributes:
        text: the message, as it came.
        finish: `finish_reason`, such as "stop" or "length".
        prompt_tokens, answer_tokens: as the server counts them; 0 where it does not.
    """

    text: str
    finish: str
    prompt_tokens: int = 0
    answer_tokens: int = 0


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


def chat_url(endpoint: str) -> str:
    """The address of the chat completions of a base address, with or without its version.

    >>> chat_url("http://localhost:8000")
    'http://localhost:8000/v1/chat/completions'
    >>> chat_url("https://example.org/api/v4/")
    'https://example.org/api/v4/chat/completions'

    Raises:
        EndpointError: it is no such address, or holds what may be a key.
    """
    try:
        url = httpx2.URL(endpoint.strip())
    except httpx2.InvalidURL:
        url = httpx2.URL("")
    if url.scheme not in ("http", "https") or not url.host:
        # not repeated here: it may hold a key
        raise EndpointError("--endpoint: no web address; write it as http://localhost:8000 or https://…/v1")
    if url.userinfo or url.query or url.fragment:
        raise EndpointError(
            "--endpoint: leave out what stands before an @ or after a ? or #; "
            f"a key goes into the environment variable {KEY_VARIABLE}"
        )
    path = url.path.rstrip("/")
    if not path.endswith("/chat/completions"):
        path += "/chat/completions" if _VERSION.search(path) else "/v1/chat/completions"
    return str(url.copy_with(path=path))


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


class ChatEndpoint:
    """A server to ask; an asynchronous context manager.

    After 408, 409, 425, 429, 5xx, a timeout, a lost connection and an answer that is none a request is tried
    again; the wait before it doubles each time, give or take half of it. A Retry-After holds for all.

    Args:
        url: of the chat completions, see `chat_url`.
        key: sent as a bearer token; None for a server that wants none.
        timeout: seconds for one attempt.
        attempts: how often one request is tried.
        concurrency: most requests at a time (the caller's promise; connections are kept for so many).

    Attributes:
        answered: whether such requests were answered before. Until then a 400 stops everything, for it is
            likely to be about what all requests have in common; after it a 400 is about the one query.
    """

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

    async def __aenter__(self) -> ChatEndpoint:
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

    async def ask(self, body: str) -> Reply:
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
                        "check --endpoint, and whether the server runs"
                    ) from None
            except (httpx2.RequestError, TimeoutError) as error:
                late = isinstance(error, TimeoutError | httpx2.TimeoutException)
                trouble = f"no answer in {self.timeout:g} s" if late else "the connection was lost"
            else:
                self._reached = True
                if response.is_success:
                    reply = self._reply(response)
                    if isinstance(reply, Reply):
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
        status, says = response.status_code, self._says(response)
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
        if status == 413 or (status in (400, 403, 422) and _OF_THE_QUERY.search(response.text)):
            raise NoAnswer(trouble)
        if status in (400, 422) and self.answered:  # others were answered, so it is about this one
            raise NoAnswer(trouble)
        if response.is_redirect:
            raise EndpointError(f"{self.url}: {status}, it has moved; name its new address with --endpoint")
        mend = _MENDS.get(status, "see what the server says")
        if status in (401, 403):
            mend += (
                f" in {self.key.variable}"
                if self.key
                else "; none was sent: name its variable with --key-variable"
            )
        raise EndpointError(f"{self.url}: {trouble}; {mend}")

    def _says(self, response: httpx2.Response) -> str:
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

    def _reply(self, response: httpx2.Response) -> Reply | str:
        """The answer, or what is wrong with it."""
        try:
            said = response.json()
            (choice, *_) = said["choices"]
            message = choice["message"]
            text, finish = message.get("content") or "", str(choice.get("finish_reason") or "stop")
            if isinstance(text, list):  # in parts, of which some may be thoughts
                text = "".join(part["text"] for part in text if part["type"] == "text")
            usage = said.get("usage") or {}
            tokens = [int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")]
            refusal = message.get("refusal")
            if not isinstance(text, str):
                raise TypeError
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            return f"no chat completion came back: {self._says(response)[:100]}"
        if self.key and len(self.key.value) >= 16:  # a shorter one may be a word, such as EMPTY
            text = self.key.hide(text)
        if refusal and not text:
            finish = "refusal"
        return Reply(text.encode("utf-8", "replace").decode(), finish, *tokens)
