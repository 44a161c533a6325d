"""The thread that owns the model, and the way from the event loop to it and back.

One thread does everything that touches model or tokenizer. In a turn it either makes a step of the engine,
which gives every thought and chat a token, or encodes one batch of texts; whichever had less time has the
next turn. Requests of a kind take turns too, so that a large one does not keep small ones waiting. What would
wait too long to be answered in time is refused at once.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from queue import Empty, SimpleQueue
from typing import Any, Self

import numpy as np

from searchr3.conversation import Rendered
from searchr3.embedding import length_batches, tokens_per_pass
from searchr3.engine import Engine
from searchr3.errors import ModelError
from searchr3.generation import context_length
from searchr3.model import SearchR3
from searchr3.serving.backend import Ask, Busy, Closed, Embedded, Figures, Kind, Refused, Said
from searchr3.serving.jobs import Asks, Job, Texts, poster, settle, work
from searchr3.serving.line import Line
from searchr3.serving.plain import Plain
from searchr3.serving.reading import Reading
from searchr3.serving.speech import Speech
from searchr3.tasks import Runner, Task

log = logging.getLogger(__name__)
_LOOK = 4  # batches of texts that are looked at, to find some of like length
_CHARACTERS = 4  # of a token, about
PATIENCE = 0.1  # share of its time that a request may have to wait, by what is known when it comes


class Worker:
    """A `Backend` in this process. Start it before the first request; `close` finishes what was accepted.

    Args:
        search: the model; nobody else uses it from now on.
        rows: most thoughts and chats in a step.
        text_tokens: most tokens of a text, or of a chat so far; a longer one is refused.
        seconds: that a request may take, and the end of this as an asynchronous context manager.
    """

    def __init__(
        self, search: SearchR3, rows: int = 32, text_tokens: int = 8192, seconds: float = 60.0
    ) -> None:
        self.search, self.rows, self.seconds = search, rows, seconds
        self.reading = Reading(search.conversation, text_tokens, context_length(search.model))
        self.figures = Figures()
        self.engine = self._engine()
        self.encoding: deque[Texts] = deque()
        self.thinking: deque[Asks] = deque()
        turn = _CHARACTERS * tokens_per_pass(search.device)
        self.lines: dict[type[Job], Line] = {Texts: Line(turn), Asks: Line(1)}  # characters, thoughts
        self._inbox: SimpleQueue[Job | None] = SimpleQueue()
        self._owners: dict[Task, Asks] = {}
        self._ahead = 0.0  # seconds that encoding had more than thinking, while both wanted
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="model", daemon=True)

    # the event loop's side

    @property
    def dimension(self) -> int:
        return self.search.dimension

    @property
    def alive(self) -> bool:
        return self._thread.is_alive() and not self._closing

    async def trouble(self) -> str | None:
        return None if self.alive else "it takes no more requests"

    async def __aenter__(self) -> Self:
        self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self.close, self.seconds)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    def close(self, seconds: float | None = None) -> None:
        """Take nothing more, finish what was accepted, and end. Blocks, at most for so many seconds."""
        self._closing = True
        self._inbox.put(None)
        if self._thread.is_alive():
            self._thread.join(seconds)

    async def embed(self, texts: Sequence[str], kind: Kind, instruction: str | None = None) -> Embedded:
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        vectors = np.zeros((len(texts), self.dimension), dtype=np.float32)
        job = Texts(poster(settle, answer), len(texts), 0, False, texts, kind, instruction, vectors=vectors)
        return await self._wait(job, answer)

    async def say(self, asks: Sequence[Ask]) -> list[Said]:
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        return await self._wait(Asks(poster(settle, answer), len(asks), asks=asks), answer)

    async def stream(self, ask: Ask) -> AsyncGenerator[str | Said, None]:
        events: asyncio.Queue[Any] = asyncio.Queue()
        post = poster(events.put_nowait)
        job = Asks(post, 1, asks=[ask], heard=post)
        self._accept(job)
        try:
            while isinstance(event := await events.get(), str):
                yield event
            if isinstance(event, BaseException):
                raise event
            yield event[0]
        finally:
            self._let_go(job)

    async def _wait(self, job: Texts | Asks, answer: asyncio.Future[Any]) -> Any:
        self._accept(job)
        try:
            return await answer
        finally:
            self._let_go(job)

    def _accept(self, job: Texts | Asks) -> None:
        if not self.alive:
            raise Closed("the model takes no more requests; ask again later")
        line = self.lines[type(job)]
        if (wait := line.wait(job.waiting)) > PATIENCE * self.seconds:
            raise Busy(wait)
        line.requests.add(job)
        self._inbox.put(job)

    def _let_go(self, job: Texts | Asks) -> None:
        job.gone = True
        self.lines[type(job)].requests.discard(job)

    # the thread's side

    def _run(self) -> None:
        while self._receive():
            try:
                self._turn()
            except Exception as error:  # a defect, or no memory left: these requests fail, others go on
                log.error("the model failed: %s", type(error).__name__)
                failed = self._jobs()
                for part in (self.encoding, self.thinking, self._owners):
                    part.clear()
                self.engine = self._engine()
                for line in self.lines.values():
                    line.rest()
                for job in failed:
                    job.settle(error)
            self.figures.rows = len(self._owners)
            self.figures.waiting = sum(job.left - len(getattr(job, "tasks", ())) for job in self._jobs())

    def _receive(self) -> bool:
        """Take in new requests; waits while there is nothing to do. False once all is done for good."""
        while True:
            idle = not (self.encoding or self.thinking)
            if idle and self._closing and self._inbox.empty():
                return False
            try:
                job = self._inbox.get(block=idle)
            except Empty:
                return True
            if isinstance(job, Texts):
                self.encoding.append(job)
            elif isinstance(job, Asks):
                self.thinking.append(job)

    def _turn(self) -> None:
        self._forget()
        if not (self.encoding and self.thinking):
            self._ahead = 0.0
        encodes = bool(self.encoding) and (self._ahead <= 0 or not self.thinking)
        start = time.perf_counter()
        if encodes:
            self._encode()
        elif self.thinking:
            self._think()
        seconds = time.perf_counter() - start
        self._ahead += seconds if encodes else -seconds
        if not self.encoding:
            self.lines[Texts].rest()
        if not any(job.waiting for job in self.thinking):
            self.lines[Asks].rest()

    def _jobs(self) -> list[Job]:
        return [*self.encoding, *self.thinking]

    def _forget(self) -> None:
        """Let go of requests that nobody waits for; their rows are free at once."""
        for job in [job for job in self.thinking if job.gone]:
            for task in job.tasks:
                self.engine.cancel(task)
                del self._owners[task]
            self.thinking.remove(job)
        for gone in [job for job in self.encoding if job.gone]:
            self.encoding.remove(gone)

    def _encode(self) -> None:
        """One pass: texts of the first request, and others of like length from those behind it.

        The first stays the first until it is done or has had its turn, as much as fills a pass: small
        requests are served in the order in which they came, large ones share.
        """
        first, size = self.encoding[0], self.search.batch_size
        line = self._window(_LOOK * size)
        if not line:
            return
        batches = length_batches([one for *_, one in line], size, tokens_per_pass(self.search.device))
        batch = [line[place] for place in next(rows for rows in batches if 0 in rows)]
        vectors = self.search.encode_rendered([one for *_, one in batch], batches=[[*range(len(batch))]])
        for (job, row, one), vector in zip(batch, vectors, strict=True):
            del job.ready[row]
            job.vectors[row] = vector
            job.tokens += len(one.ids)
            job.left -= 1
            job.waiting -= work(job.texts[row])
            job.turn += work(job.texts[row]) if job is first else 0
            self.figures.read += len(one.ids)
            self.figures.texts += 1
        for job in {job for job, *_ in batch if not job.left}:
            self.encoding.remove(job)
            job.settle(Embedded(job.vectors, job.tokens))
        line_of = self.lines[Texts]
        line_of.did(sum(work(job.texts[row]) for job, row, _ in batch), time.perf_counter())
        if first.left and first.turn >= line_of.turn:
            first.turn = 0
            self.encoding.rotate(-1)

    def _window(self, most: int) -> list[tuple[Texts, int, Rendered]]:
        """The first so many texts in line, rendered; a request that cannot be is settled."""
        line: list[tuple[Texts, int, Rendered]] = []
        for job in list(self.encoding):
            try:
                self._render(job, min(most - len(line), self.search.batch_size))
            except Refused as error:
                self.encoding.remove(job)
                job.settle(error)
                continue
            line += [(job, row, one) for row, one in job.ready.items()]
            if len(line) >= most:
                break
        return line

    def _render(self, job: Texts, most: int) -> None:
        """Have so many texts of a request ready, if there are."""
        start, end = job.taken, min(len(job.texts), job.taken + most - len(job.ready))
        if start >= end:
            return
        found = self.reading.texts(job.texts[start:end], job.kind, job.instruction, start)
        job.ready.update(zip(range(start, end), found, strict=True))
        job.taken = end

    def _think(self) -> None:
        """A step; before it the rows are filled with tasks, after it their owners hear of it."""
        self.lines[Asks].did(self._feed(), time.perf_counter())
        took_part = self.engine.step()
        self.figures.steps += 1
        for task in took_part:
            self._hear(self._owners[task], task)

    def _feed(self) -> int:
        """Give free rows tasks; how many."""
        begun = 0
        while len(self._owners) < self.rows:
            job = next((job for job in self.thinking if job.waiting), None)
            if job is None:
                break
            try:
                task = self.engine.submit(self._task(job.asks[job.taken]))
            except Refused as error:
                job.settle(error)
                job.gone = True
                self._forget()
                continue
            job.tasks[task], self._owners[task] = job.taken, job
            job.taken += 1
            begun += 1
            self.figures.read += len(task.prompt)
            self.thinking.remove(job)  # the others first, next time
            self.thinking.append(job)
        return begun

    def _task(self, ask: Ask) -> Task:
        prompt, most = self.reading.prompt(ask)
        return Task(prompt, most, ask.temperature, ask.embeds, self.reading.beginning(ask), ask.seed)

    def _hear(self, job: Asks, task: Task) -> None:
        ask = job.asks[job.tasks[task]]
        if job.heard:
            job.speech = job.speech or Speech(self.search.tokenizer)
            piece = job.speech.push(task.said[len(job.speech.ids) :])
            if piece := piece + (job.speech.end() if task.done else ""):
                job.heard(piece)
        if not task.done:
            return
        del self._owners[task]
        row = job.tasks.pop(task)
        if ask.embeds:
            self.figures.said_thinking += len(task.said)
        else:
            self.figures.said_chat += len(task.said)
        job.said[row] = self.reading.said(ask, task.prompt, task.said, task.ended, task.vector)
        job.left -= 1
        if not job.left:
            self.thinking.remove(job)
            job.settle([job.said[row] for row in range(len(job.asks))])

    def _engine(self) -> Runner:
        try:
            return Engine(self.search, self.rows)
        except ModelError:
            return Plain(self.search, self.rows)
