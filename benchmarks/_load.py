"""A server under load: clients that wait for their answers, or do not; what came back; its memory."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles

import httpx2
import numpy as np
import psutil

CONNECTIONS = 300  # more than the server takes at once, so that it has to say so
ROWS, TOKENS = 32, 16  # clients that wait for their answers, and tokens of a thought
EVERY = 2.0  # seconds between looks at the server's memory


@contextmanager
def server(model: Path, *options: str) -> Iterator[tuple[str, psutil.Process]]:
    """`searchr3 serve` as a process of its own: its address, and the process."""
    command = [sys.executable, "-m", "searchr3", "serve", "--model", str(model), "--name", "model"]
    with open(os.devnull, "w") as nowhere:
        process = subprocess.Popen(
            [*command, "--port", "0", *options], stdout=subprocess.PIPE, stderr=nowhere, text=True
        )
    assert process.stdout
    try:
        told = process.stdout.readline()
        yield told.split()[2].rstrip(","), psutil.Process(process.pid)
    finally:
        process.terminate()
        if process.wait(120) != 0:
            raise SystemExit("error: the server did not end well")


def body(number: int, text: str, tokens: int) -> dict[str, object]:
    """Of four requests two think, one is a direct query, one a few documents."""
    if number % 4 < 2:
        return {"model": "model:think", "input": text, "max_thinking_tokens": tokens}
    if number % 4 == 2:
        return {"model": "model:query", "input": text}
    return {"model": "model", "input": [text] * 8, "encoding_format": "base64"}


@dataclass
class Outcome:
    """What became of requests.

    Attributes:
        statuses: how many of each; 0: no whole answer came.
        seconds: of each that was answered with 200.
        failures: why no whole answer came.
        memory: (seconds since the start, MiB) of the server.
        elapsed: seconds of the whole.
    """

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    failures: Counter[str] = field(default_factory=Counter)
    memory: list[tuple[float, float]] = field(default_factory=list)
    elapsed: float = 0.0

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.seconds) / self.elapsed

    def percentile(self, percent: int) -> float:
        """Seconds within which so many of the answers came."""
        return quantiles(self.seconds, n=100)[percent - 1]

    def growth(self) -> float:
        """MiB an hour, by a line through the second half."""
        half = [one for one in self.memory if one[0] >= self.memory[-1][0] / 2]
        when, size = np.array(half).T
        return float(np.polyfit(when, size, 1)[0]) * 3600 if len(half) > 2 else 0.0


class Load:
    """Requests to one server, with texts of its own.

    Args:
        tokens: of a thought.
    """

    def __init__(self, url: str, process: psutil.Process, texts: list[str], tokens: int):
        self.url, self.process, self.texts, self.tokens = url, process, texts, tokens
        self.sent = 0

    def closed(self, clients: int, seconds: float) -> Outcome:
        """So many clients, each of which asks again once it has an answer: what the server can sustain."""

        async def work(outcome: Outcome, client: httpx2.AsyncClient, end: float) -> None:
            async def ask() -> None:
                while time.perf_counter() < end:
                    await self._ask(outcome, client)

            await asyncio.gather(*(ask() for _ in range(clients)))

        return asyncio.run(self._watched(work, seconds))

    def open(self, rate: float, seconds: float) -> Outcome:
        """So many requests a second, at random moments, whatever the answers are."""
        rng = random.Random(0)

        async def work(outcome: Outcome, client: httpx2.AsyncClient, end: float) -> None:
            tasks: set[asyncio.Task[None]] = set()
            when = time.perf_counter()
            while when < end:
                when += rng.expovariate(rate)
                await asyncio.sleep(max(0.0, when - time.perf_counter()))
                task = asyncio.ensure_future(self._ask(outcome, client))
                tasks.add(task)
                task.add_done_callback(tasks.discard)
            await asyncio.gather(*tasks)

        return asyncio.run(self._watched(work, seconds))

    async def _ask(self, outcome: Outcome, client: httpx2.AsyncClient) -> None:
        number, self.sent = self.sent, self.sent + 1
        asked = body(number, self.texts[number % len(self.texts)], self.tokens)
        start = time.perf_counter()
        try:
            response = await client.post(f"{self.url}/embeddings", json=asked)
            whole = response.status_code != 200 or bool(json.loads(response.content)["data"])
            status = response.status_code if whole else 0
        except (httpx2.HTTPError, ValueError, KeyError) as error:
            status = 0
            outcome.failures[repr(error)] += 1
        outcome.statuses[status] += 1
        if status == 200:
            outcome.seconds.append(time.perf_counter() - start)

    async def _watched(self, work, seconds: float) -> Outcome:
        outcome, start = Outcome(), time.perf_counter()

        async def watch() -> None:
            while True:
                resident = self.process.memory_info().rss / 2**20
                outcome.memory.append((time.perf_counter() - start, resident))
                await asyncio.sleep(EVERY)

        limits = httpx2.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS)
        async with httpx2.AsyncClient(timeout=180, limits=limits, trust_env=False) as client:
            watching = asyncio.ensure_future(watch())
            await work(outcome, client, start + seconds)
            watching.cancel()
        outcome.elapsed = time.perf_counter() - start
        return outcome


def server_figures(model: Path, texts: list[str], size: dict[str, float]) -> dict[str, float]:
    """What a server sustains, and what becomes of twice that."""
    with server(model) as (url, process):
        load = Load(url, process, texts, TOKENS)
        load.closed(ROWS, size["warm"])
        calm = load.closed(ROWS, size["warm"])
        stormy = load.open(2 * calm.rate, 60 * size["minutes"])
    print(f"load: {dict(stormy.statuses)} {dict(stormy.failures)}", flush=True)
    return {
        "sustained_a_second": calm.rate,
        "sustained_p50_ms": 1000 * calm.percentile(50),
        "sustained_p95_ms": 1000 * calm.percentile(95),
        **loaded(stormy, 2 * calm.rate),
    }


def loaded(found: Outcome, rate: float) -> dict[str, float]:
    """The figures of a server under more load than it bears."""
    statuses = found.statuses
    return {
        "load_minutes": found.elapsed / 60,
        "load_offered_a_second": rate,
        "load_answered_a_second": found.rate,
        "load_requests": statuses.total(),
        "load_answered": statuses[200],
        "load_refused_429": statuses[429],
        "errors_other_than_429": statuses.total() - statuses[200] - statuses[429],
        **{f"load_errors_{status}": statuses[status] for status in (408, 500, 503)},
        "accepted_unanswered": statuses[0],
        "load_p50_ms": 1000 * found.percentile(50),
        "load_p95_ms": 1000 * found.percentile(95),
        "memory_mb_at_half": next(size for when, size in found.memory if when >= found.memory[-1][0] / 2),
        "memory_mb": found.memory[-1][1],
        "memory_growth": found.growth(),
    }
