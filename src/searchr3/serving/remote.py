"""The model behind running vLLM servers: prompts are made here, what travels is token ids.

Everything that touches the tokenizer does so in one thread; the servers batch by themselves. Who is cancelled
closes the connection of what was asked for it, by which vLLM knows to forget it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, aclosing, contextmanager
from typing import Any, Self, TypeVar

import numpy as np

from searchr3.endpoint import NoAnswer, Rejected, TooLong, Unreachable, ask_all
from searchr3.errors import EndpointError
from searchr3.generation import split_completion
from searchr3.serving.backend import (
    Ask,
    Closed,
    Embedded,
    Faulty,
    Figures,
    Kind,
    Refused,
    Said,
    Unavailable,
)
from searchr3.serving.reading import Reading
from searchr3.serving.speech import Speech
from searchr3.vllm_backend import BATCH, VLLMModel
from searchr3.vllm_endpoint import fault, sampling

log = logging.getLogger(__name__)

ATTEMPTS = 2  # who asks may ask again: this only bridges a connection that was lost
PATIENCE = 1.0  # seconds: a server that asks to wait for longer is waited for by who asks, not by all
PARTS = 8  # batches of texts that are asked for at once
FRESH = 2.0  # seconds for which it is known whether the servers answer

T = TypeVar("T")
R = TypeVar("R")


class Remote:
    """A `Backend` by vLLM. Enter it before the first request; leaving it drops what is not finished.

    Args:
        model: whose servers are asked; nobody else uses it from now on.
        rows: most thoughts and chats at once.
        text_tokens: most tokens of a text, or of a chat so far; a longer one is refused.
        seconds: most that a server may take for one answer.
    """

    def __init__(
        self, model: VLLMModel, rows: int = 32, text_tokens: int = 8192, seconds: float = 60.0
    ) -> None:
        self.chat, self.dimension = model.conversation, model.dimension
        self.rows = rows
        self.figures = Figures()
        self._reading = Reading(self.chat, text_tokens, model.context)
        options = {"attempts": ATTEMPTS, "timeout": seconds, "patience": PATIENCE}
        self._speaker = model.speaker(concurrency=rows + 1, **options)  # and one that asks how it is
        self._reader = model.reader(concurrency=rows + PARTS + 1, **options)
        self._row, self._part = asyncio.Semaphore(rows), asyncio.Semaphore(PARTS)
        self._tokenizing = ThreadPoolExecutor(1, "tokenizer")
        self._entered = AsyncExitStack()
        self._open = False
        self._asking = asyncio.Lock()
        self._known: tuple[float, str | None] = (-FRESH, None)

    async def __aenter__(self) -> Self:
        await self._entered.enter_async_context(self._speaker)
        await self._entered.enter_async_context(self._reader)
        self._open = True
        return self

    async def __aexit__(self, *_: object) -> None:
        self._open = False
        await self._entered.aclose()
        self._tokenizing.shutdown()

    async def trouble(self) -> str | None:
        if not self._open:
            return "it takes no more requests"
        async with self._asking:
            if time.monotonic() - self._known[0] >= FRESH:
                speaks, reads = await asyncio.gather(fault(self._speaker), fault(self._reader))
                found = f"the server that thinks {speaks}" if speaks else None
                found = found or (f"the server that embeds {reads}" if reads else None)
                self._known = time.monotonic(), found
            return self._known[1]

    async def embed(self, texts: Sequence[str], kind: Kind, instruction: str | None = None) -> Embedded:
        async def part(start: int) -> tuple[np.ndarray, int]:
            some = texts[start : start + BATCH]
            async with self._part:
                line.begin(len(some))
                rendered = await self._thread(self._reading.texts, some, kind, instruction, start)
                ids = [one.ids[: one.position + 1] for one in rendered]
                vectors, read = await self._reader.vectors(ids), sum(len(one.ids) for one in rendered)
            self.figures.texts += len(some)
            self.figures.read += read
            return vectors, read

        with self._line(len(texts)) as line:
            found = await self._all(range(0, len(texts), BATCH), part, PARTS)
        return Embedded(np.concatenate([vectors for vectors, _ in found]), sum(read for _, read in found))

    async def say(self, asks: Sequence[Ask]) -> list[Said]:
        async def one(ask: Ask) -> Said:
            async with self._row:
                with line.works():
                    (prompt, sampled), ids = await self._prompt(ask), []
                    if ask.max_new_tokens:
                        (completed,) = await self._speaker.complete([prompt], sampled)
                        ids = completed.ids
                    return await self._ended(ask, prompt, ids)

        with self._line(len(asks)) as line:
            return await self._all(asks, one, self.rows)

    async def stream(self, ask: Ask) -> AsyncGenerator[str | Said, None]:
        with self._line(1) as line, _told():
            async with self._row:
                with line.works():
                    prompt, sampled = await self._prompt(ask)
                    ids: list[int] = []
                    if ask.max_new_tokens:
                        async with aclosing(self._spoken(prompt, sampled, ids)) as pieces:
                            async for piece in pieces:
                                yield piece
                    yield await self._ended(ask, prompt, ids)

    async def _spoken(
        self, prompt: list[int], sampled: dict[str, Any], ids: list[int]
    ) -> AsyncGenerator[str, None]:
        """The text that is said, piece by piece; `ids` grows meanwhile."""
        speech = Speech(self.chat.tokenizer)
        async with aclosing(self._speaker.complete_slowly(prompt, sampled)) as pieces:
            async for new in pieces:
                ids += new
                if piece := await self._thread(speech.push, split_completion(new, self.chat)[0]):
                    yield piece
        if piece := await self._thread(speech.end):
            yield piece

    async def _prompt(self, ask: Ask) -> tuple[list[int], dict[str, Any]]:
        """What is read, and how the model is to speak then."""
        prompt, most = await self._thread(self._reading.prompt, ask)
        self.figures.read += len(prompt)
        return prompt, sampling(self.chat.stop_ids, most, ask.temperature, ask.seed)

    async def _ended(self, ask: Ask, prompt: list[int], ids: list[int]) -> Said:
        """What came of an ask for which `ids` were said, the stop included."""
        said, emitted = split_completion(ids, self.chat)
        vector = None
        if ask.embeds:
            closed = self.chat.close(prompt, said)
            vector = (await self._reader.vectors([closed.ids[: closed.position + 1]]))[0]
            self.figures.said_thinking += len(said)
        else:
            self.figures.said_chat += len(said)
        ended = emitted if ask.embeds else len(said) < len(ids)
        return await self._thread(self._reading.said, ask, prompt, said, ended, vector)

    async def _thread(self, call: Callable[..., R], *arguments: object) -> R:
        """`call` where the tokenizer is used."""
        return await asyncio.get_running_loop().run_in_executor(self._tokenizing, call, *arguments)

    async def _all(self, parts: Sequence[T], ask: Callable[[T], Awaitable[R]], at_once: int) -> list[R]:
        with _told():
            return await ask_all(parts, ask, at_once, first_alone=False)

    @contextmanager
    def _line(self, n: int) -> Iterator[_Line]:
        """While `n` texts or chats are asked for."""
        if not self._open:
            raise Closed("the model takes no more requests; ask again later")
        line = _Line(self.figures, n)
        self.figures.waiting += n
        try:
            yield line
        finally:
            line.begin(line.waiting)


class _Line:
    """Parts of a request that wait."""

    def __init__(self, figures: Figures, n: int) -> None:
        self.figures, self.waiting = figures, n

    def begin(self, n: int) -> None:
        """So many wait no longer."""
        self.waiting -= n
        self.figures.waiting -= n

    @contextmanager
    def works(self) -> Iterator[None]:
        """While one that waited is in work."""
        self.begin(1)
        self.figures.rows += 1
        try:
            yield
        finally:
            self.figures.rows -= 1


@contextmanager
def _told() -> Iterator[None]:
    """What a server does not do, as a client may know it: no address and no word of that server.

    The log has all of it; the server was sent token ids, so it knows no text that it could repeat.
    """
    try:
        yield
    except TooLong:
        raise Refused("more tokens than the model's server takes; ask for less, or split the text") from None
    except (NoAnswer, EndpointError) as error:
        if isinstance(error, NoAnswer | Unreachable) and not isinstance(error, Rejected):
            log.error("the model's server gives no answer: %s", error)
            raise Unavailable("the model's server gives no answer; ask again later") from None
        log.error("the model's server answers wrongly: %s", error)
        raise Faulty(
            "the model's server answers what it should not; whoever runs this server finds more in its log"
        ) from None
