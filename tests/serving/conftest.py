"""Servers on this machine: of the tiny model, or of a stand-in that a test can make wait."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest
import torch

from searchr3.answers import Hit
from searchr3.model import SearchR3
from searchr3.serving.backend import Busy, Embedded, Figures, Refused, Said
from searchr3.serving.searchers import Question
from searchr3.serving.server import listen, server
from searchr3.serving.service import Service
from searchr3.serving.settings import settings
from searchr3.serving.worker import Worker

NAME = "tiny"
KEY = "a-key-of-some-length"
QUERIES = [
    "parse a date",
    "sort a list in place, lazily, then merge",
    "x",
    "count files",
    "load a string " * 9,
]


class Patient:
    """A backend whose answers wait for `go`; `entered` counts calls, `left` those that were cancelled."""

    dimension = 4

    def __init__(self) -> None:
        self.figures = Figures()
        self.go = threading.Event()
        self.entered = self.left = 0

    async def trouble(self) -> None:
        """None."""

    async def _wait(self) -> None:
        self.entered += 1
        try:
            while not self.go.is_set():
                await asyncio.sleep(0.005)
        except BaseException:
            self.left += 1
            raise

    async def embed(self, texts: Any, kind: str, instruction: str | None = None) -> Embedded:
        await self._wait()
        return Embedded(np.eye(4, dtype=np.float32)[np.zeros(len(texts), int)], len(texts))

    async def say(self, asks: Any) -> list[Said]:
        await self._wait()
        return [self._said(ask) for ask in asks]

    async def stream(self, ask: Any) -> Any:
        yield "first "
        await self._wait()
        yield self._said(ask)

    def _said(self, ask: Any) -> Said:
        if ask.what == "fail":
            raise RuntimeError(f"a defect that holds the text {ask.what}")
        if ask.what == "refuse":
            raise Refused("no")
        if ask.what == "busy":
            raise Busy(7.2)
        return Said("first ", 1, 2, True, np.eye(4, dtype=np.float32)[1] if ask.embeds else None)


class Shelf:
    """A searcher of three documents in the stand-in's four dimensions."""

    documents = 3
    instruction = None
    filters = False

    def check(self, hybrid: bool, paths: Any, types: Any) -> None:
        if types:
            raise Refused("no types here")

    def find(self, asked: Question) -> list[Hit]:
        order = np.argsort(-asked.vector[:3], kind="stable")[: asked.k]
        return [
            Hit(rank, float(asked.vector[row]), f"d{row}", "<b>", f"{asked.thought}\ud800", {"line": "3"})
            for rank, row in enumerate(order, 1)
        ]

    def scores(self, vectors: np.ndarray, k: int, paths: Any = (), types: Any = ()) -> np.ndarray:
        return -np.sort(-vectors[:, :3], axis=1)[:, :k]


class Doubt:
    """A rule that thinks where the best score is at least 1."""

    def thinks_about(self, vectors: np.ndarray, documents: Any) -> np.ndarray:
        return documents(vectors, 10)[:, 0] >= 1


def endless(model: Path) -> SearchR3:
    """A model that says any token but those that end a thought or a turn."""
    search = SearchR3(model)
    stops = torch.tensor(search.conversation.stop_ids)
    head = search.model.get_output_embeddings()
    head.register_forward_hook(lambda module, inputs, logits: logits.index_fill(-1, stops, -torch.inf))
    return search


@contextmanager
def running(backend: Any, **options: Any) -> Iterator[httpx2.Client]:
    """A server in a thread of its own, and a client of it; `bounds` are its settings."""
    bounds = settings(port=0, **options.pop("bounds", {}))
    with listen(bounds) as listening:
        made = server(Service(backend, NAME, bounds, **options))
        thread = threading.Thread(target=made.run, args=([listening],), daemon=True)
        thread.start()
        with httpx2.Client(
            base_url=f"http://127.0.0.1:{listening.getsockname()[1]}", timeout=60, trust_env=False
        ) as client:
            client.extensions = {"server": made}  # type: ignore[attr-defined]
            try:
                yield client
            finally:
                if isinstance(backend, Patient):
                    backend.go.set()
                made.handle_exit(15, None)
                thread.join(60)
                assert not thread.is_alive()


@pytest.fixture
def serving() -> Callable[..., Any]:
    """`with serving(backend, …) as client`."""
    return running


@pytest.fixture
def patient() -> Patient:
    """A fresh stand-in."""
    return Patient()


@pytest.fixture(scope="session")
def reference(tiny_model: Path) -> SearchR3:
    """The tiny model; the servers have copies, for one thread at a time may use a tokenizer."""
    return SearchR3(tiny_model)


@pytest.fixture(scope="session")
def tiny(tiny_model: Path) -> Iterator[httpx2.Client]:
    """A client of a server of the tiny model."""
    with running(
        Worker(SearchR3(tiny_model), rows=8, text_tokens=200), bounds={"seconds": 120, "text_tokens": 200}
    ) as client:
        yield client


def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    """Wait for something that another thread does."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it never came about"
        time.sleep(0.005)


def streamed(text: str) -> list[tuple[str | None, str]]:
    """Names and data of server-sent events."""
    events = []
    for block in text.strip("\n").split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.split("\n"))
        events.append((lines.get("event"), lines["data"]))
    return events
