"""The model's thread: the same results as one at a time, whoever else asks, goes, or fails."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from searchr3.model import SearchR3
from searchr3.serving.backend import Ask, Busy, Closed, Refused, Said
from searchr3.serving.jobs import Asks, Texts
from searchr3.serving.plain import Plain
from searchr3.serving.worker import PATIENCE, Worker

from .conftest import QUERIES, endless, until

TURNS = (("system", "Be brief."), ("user", "Hello <|embed_token|>"), ("assistant", "Yes?"), ("user", "Go on"))
Work = Callable[[Worker], Coroutine[Any, Any, Any]]


@contextmanager
def started(model: Path | SearchR3, **options: Any) -> Iterator[Worker]:
    worker = Worker(model if isinstance(model, SearchR3) else SearchR3(model), **options)
    worker.start()
    try:
        yield worker
    finally:
        worker.close(60)
        assert not worker._thread.is_alive()


def run(model: Path | SearchR3, work: Work, **options: Any) -> Any:
    with started(model, **options) as worker:
        return asyncio.run(asyncio.wait_for(work(worker), 120))


def close(a: np.ndarray, b: np.ndarray) -> None:
    np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("kind", ["tiny_model", "qwen2_model"])
def test_32_requests_at_once_give_what_single_ones_give(kind: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue(kind)
    search = SearchR3(model)
    texts = [f"read the file {number}" * (number % 4 + 1) for number in range(10)]
    task = "Find code."
    asks = [Ask(text, 3 + number % 4, task if number % 3 else None) for number, text in enumerate(texts)]

    async def work(worker: Worker) -> Any:
        return await asyncio.gather(
            *(worker.embed([text, texts[0]], "document") for text in texts),
            *(worker.embed([text], "query", task) for text in texts[:6]),
            *(worker.say([ask]) for ask in asks),
            *(worker.say([Ask(TURNS, 4 + number)]) for number in range(6)),
        )

    found = run(model, work, rows=4)

    close(np.stack([one.vectors[0] for one in found[:10]]), search.encode_document(texts))
    close(np.stack([one.vectors[1] for one in found[:10]]), search.encode_document(texts[:1] * 10))
    close(
        np.stack([one.vectors[0] for one in found[10:16]]),
        search.encode_query(texts[:6], instruction="Find code."),
    )
    for ask, (said,) in zip(asks, found[16:26], strict=True):
        (thought,) = search.generate([ask.what], ask.max_new_tokens, instruction=ask.instruction)
        vector = search.encode_query([ask.what], [thought], ask.instruction)[0]
        assert (said.text, said.tokens, said.ended) == (thought.text, len(thought.token_ids), thought.emitted)
        close(said.vector, vector)
    chats = [one.text for (one,) in found[26:]]
    assert all(longer.startswith(shorter[:-1]) for shorter, longer in pairwise(chats))


def test_a_large_request_has_all_its_vectors_in_order(tiny_model: Path, reference: SearchR3) -> None:
    texts = [f"count {number} " * (number % 13 + 1) for number in range(150)]
    rendered = reference.conversation.documents(texts)

    async def work(worker: Worker) -> Any:
        return await asyncio.gather(
            worker.embed(texts, "document"), worker.say([Ask(t, 3) for t in texts[:20]])
        )

    found, said = run(tiny_model, work, rows=8)
    close(found.vectors, reference.encode_document(texts))
    assert found.tokens == sum(len(one.ids) for one in rendered)
    thoughts = reference.generate(texts[:20], 3)
    assert [one.text for one in said] == [thought.text for thought in thoughts]


def test_small_requests_do_not_wait_for_large_ones(tiny_model: Path) -> None:
    order: list[str] = []

    async def named(name: str, work: Coroutine[Any, Any, Any]) -> None:
        await work
        order.append(name)

    async def work(worker: Worker) -> None:
        many = [f"text {number}" for number in range(400)]
        await asyncio.gather(
            named("texts", worker.embed(many, "document")),
            named("thoughts", worker.say([Ask(text, 6) for text in many[:100]])),
            named("a text", worker.embed(["one"], "query")),
            named("a thought", worker.say([Ask("one", 6)])),
        )

    run(tiny_model, work, rows=4)
    assert set(order[:2]) == {"a text", "a thought"}


def test_nobody_is_passed_over_while_others_keep_coming(tiny_model: Path) -> None:
    """A pass that ends a request must not send the next one to the end of the line."""
    worker = Worker(SearchR3(tiny_model, batch_size=1))
    served: list[str] = []

    def come(text: str) -> None:
        vectors = np.zeros((1, worker.dimension), np.float32)
        worker.encoding.append(Texts(lambda _: served.append(text), 1, texts=[text], vectors=vectors))

    come("0")
    for number in range(1, 6):
        come(str(number))
        worker._turn()

    assert served == [*"01234"]


def test_small_requests_end_about_in_the_order_in_which_they_came(tiny_model: Path) -> None:
    """Equal ones do not share until all are late, and a large one keeps none of them waiting."""
    worker = Worker(SearchR3(tiny_model, batch_size=8))
    served: list[str] = []

    def come(name: str, texts: list[str]) -> None:
        vectors = np.zeros((len(texts), worker.dimension), np.float32)
        worker.encoding.append(Texts(lambda _: served.append(name), len(texts), texts=texts, vectors=vectors))

    come("large", [f"a text of some length, number {number} " * 20 for number in range(200)])
    for number in range(12):
        come(str(number), [f"text {number} " * (row + 1) for row in range(8)])
    half = len(worker.encoding[0].texts) // 2
    while len(served) < 6:
        worker._turn()
    assert sum(job.left for job in worker.encoding if len(job.texts) == 8) > 6 * 8 / 3
    while len(served) < 12:
        worker._turn()
    assert sum(map(int, served[:6])) < sum(map(int, served[6:]))
    (large,) = worker.encoding
    assert large.left > half
    while worker.encoding:
        worker._turn()
    assert served[-1] == "large"


def test_who_would_wait_too_long_is_refused_and_who_brings_little_is_not(tiny_model: Path) -> None:
    many = [f"text {number} " * 40 for number in range(300)]

    async def work(worker: Worker) -> Any:
        large = [asyncio.ensure_future(worker.embed(many, "document")) for _ in range(2)]
        while not worker.figures.texts > 100:
            await asyncio.sleep(0.002)
        worker.seconds = 2 * worker.lines[Texts].wait(1) / PATIENCE  # small ones may wait twice as long
        small = await worker.embed(["one"], "query")
        with pytest.raises(Busy, match="ask again later") as refused:
            await worker.embed(many, "document")
        assert refused.value.seconds > PATIENCE * worker.seconds
        await asyncio.gather(*large)
        again = await worker.embed(many, "document")  # nobody is before it any more
        assert not worker.lines[Texts].requests
        return small, again

    small, again = run(tiny_model, work)
    assert len(small.vectors) == 1 and len(again.vectors) == len(many)


def test_thoughts_that_would_wait_too_long_are_refused(tiny_model: Path) -> None:
    async def work(worker: Worker) -> None:
        asks = [Ask(f"text {number}", 8) for number in range(60)]
        some = asyncio.ensure_future(worker.say(asks))
        while not worker.lines[Asks].wait(len(asks)):
            await asyncio.sleep(0.002)
        worker.seconds = worker.lines[Asks].wait(len(asks))
        with pytest.raises(Busy):
            await worker.say(asks)
        pieces = [piece async for piece in worker.stream(Ask(TURNS, 4))]  # one waits for one of the others
        assert isinstance(pieces[-1], Said) and not some.done()
        worker.seconds = 1e-9
        with pytest.raises(Busy):
            async for _ in worker.stream(Ask(TURNS, 4)):
                raise AssertionError("it was to be refused")
        assert len(await some) == len(asks) and not worker.lines[Asks].requests

    run(endless(tiny_model), work, rows=2)


def test_a_stream_is_the_thought_in_pieces(tiny_model: Path, reference: SearchR3) -> None:
    (thought,) = reference.generate(["parse a date"], 12)

    async def work(worker: Worker) -> Any:
        return [event async for event in worker.stream(Ask("parse a date", 12))], [
            event async for event in worker.stream(Ask(TURNS, 9, temperature=1.0, seed=3))
        ]

    (*pieces, last), (*more, chat) = run(tiny_model, work)
    assert "".join(pieces).strip() == thought.text == last.text
    close(last.vector, reference.encode_query(["parse a date"], [thought])[0])
    assert "".join(more) == chat.text and chat.vector is None and len(more) > 1


@pytest.mark.parametrize("streams", [False, True])
def test_who_leaves_frees_the_rows(tiny_model: Path, streams: bool) -> None:
    async def work(worker: Worker) -> None:
        if streams:
            source = worker.stream(Ask(TURNS, 400))
            await anext(source)
            await source.aclose()
        else:
            waiting = asyncio.ensure_future(worker.say([Ask(f"query {number}", 80) for number in range(50)]))
            texts = asyncio.ensure_future(worker.embed(["long " * 50] * 500, "document"))
            await asyncio.to_thread(until, lambda: worker.figures.rows == 2)
            waiting.cancel(), texts.cancel()
        await asyncio.to_thread(until, lambda: not (worker.thinking or worker.encoding))
        assert not worker._owners and not worker.engine.busy
        await asyncio.to_thread(until, lambda: worker.figures.rows == worker.figures.waiting == 0)
        steps = worker.figures.steps
        assert len(await worker.say([Ask("next", 3)])) == 1
        assert worker.figures.steps - steps <= 5

    run(endless(tiny_model), work, rows=2)


def test_a_failure_is_that_of_those_who_were_at_work(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(worker: Worker) -> None:
        engine = worker.engine
        monkeypatch.setattr(engine, "step", lambda: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            await worker.say([Ask("a", 3), Ask("b", 3)])
        assert worker.engine is not engine
        await asyncio.to_thread(until, lambda: worker.figures.rows == 0)
        assert len(await worker.say([Ask("a", 3)])) == 1

    run(tiny_model, work)


def test_what_is_refused_leaves_the_others_alone(tiny_model: Path) -> None:
    async def work(worker: Worker) -> Any:
        long = "word " * 60
        return await asyncio.gather(
            worker.embed(["fine", long], "document"),
            worker.say([Ask("fine", 3), Ask(long, 3)]),
            worker.say([Ask((("user", long),), 3)]),
            worker.say([Ask((("user", "hi"),), 10**6)]),
            worker.embed(["fine"], "query", "instruction " * 90),
            worker.embed(["fine"], "document"),
            return_exceptions=True,
        )

    *refused, fine = run(tiny_model, work, text_tokens=50)
    said = [str(error) for error in refused if isinstance(error, Refused)]
    assert said[0].startswith("input[1] has ") and said[0].endswith("tokens, the most is 50; split it")
    assert said[1].startswith("the query has ") and said[2].startswith("the chat has ")
    assert "are more than the model's" in said[3] and "leaves no room" in said[4]
    assert fine.vectors.shape == (1, 32)


def test_a_chat_that_names_no_number_goes_as_far_as_the_model(tiny_model: Path) -> None:
    async def work(worker: Worker) -> Any:
        worker.reading.context = len(worker.search.conversation.chat(TURNS)) + 4
        return await worker.say([Ask(TURNS, 1024, fewer=True), Ask(TURNS, 3, fewer=True)])

    assert [one.tokens for one in run(endless(tiny_model), work)] == [4, 3]


def test_models_that_cannot_be_taken_apart_do_the_same(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asks = [Ask(query, 3 + number % 2) for number, query in enumerate(QUERIES)]
    chats = [Ask(TURNS, 6, temperature=1.0, seed=seed) for seed in (1, 1, 2**70)]
    cold = Ask(TURNS, 6, temperature=1e-44)

    async def work(worker: Worker) -> Any:
        assert isinstance(worker.engine, Plain) is plain
        return await asyncio.gather(worker.say(asks), worker.say([Ask(TURNS, 6), cold]), worker.say(chats))

    plain = False
    expected = run(tiny_model, work)
    plain = True
    monkeypatch.setattr("searchr3.embedding.KNOWN", ())
    found = run(tiny_model, work)
    for one, other in zip(expected[0] + expected[1], found[0] + found[1], strict=True):
        assert same(one) == same(other)
        if one.vector is not None:
            close(one.vector, other.vector)
    assert found[2][0].text == found[2][1].text
    assert found[1][1].text == found[1][0].text, "so cold that it is greedy"


def same(said: Said) -> tuple[Any, ...]:
    return said.text, said.tokens, said.prompt_tokens, said.ended


def test_closing_finishes_what_was_accepted_and_takes_nothing_more(tiny_model: Path) -> None:
    async def work(worker: Worker) -> None:
        accepted = asyncio.ensure_future(worker.say([Ask(f"query {number}", 5) for number in range(12)]))
        await asyncio.sleep(0)
        closing = asyncio.ensure_future(asyncio.to_thread(worker.close, 60))
        await asyncio.to_thread(until, lambda: not worker.alive)
        with pytest.raises(Closed):
            await worker.embed(["late"], "document")
        assert len(await accepted) == 12
        await closing

    run(tiny_model, work, rows=2)
