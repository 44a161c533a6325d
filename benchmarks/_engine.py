"""What one pass costs and saves, and what batching gives: the engine against two passes, and with one row."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from statistics import median, quantiles

import torch
from _timing import in_turn, now, ratio

from searchr3.engine import Engine
from searchr3.generation import reason
from searchr3.model import SearchR3
from searchr3.tasks import Task

TOKENS, ROWS = 64, 32


@contextlib.contextmanager
def no_stops(search: SearchR3) -> Iterator[None]:
    """No token that would end a thought is ever said."""
    stops = torch.tensor(search.conversation.stop_ids, device=search.device)

    def forbid(_: object, __: object, logits: torch.Tensor) -> torch.Tensor:
        return logits.index_fill(-1, stops, -torch.inf)

    hook = search.model.get_output_embeddings().register_forward_hook(forbid)
    try:
        yield
    finally:
        hook.remove()


def continuous(engine: Engine, prompts: Sequence[list[int]], embeds: bool = True) -> list[float]:
    """Seconds of each request; as many as there are rows are always on their way."""
    beginning = engine.conversation.reasoning_start()
    waiting = [Task(prompt, TOKENS, embeds=embeds, beginning=beginning) for prompt in reversed(prompts)]
    started: dict[Task, float] = {}
    seconds = []
    while waiting or engine.busy:
        while waiting and len(started) < engine.rows:
            task = engine.submit(waiting.pop())
            started[task] = now()
        for task in engine.step():
            if task.done:
                seconds.append(now() - started.pop(task))
                assert len(task.said) == TOKENS and (task.vector is not None) == embeds
    return seconds


def two_passes(search: SearchR3, prompts: Sequence[list[int]]) -> list[float]:
    """Seconds of each request: a batch thinks, then it is embedded, then the next one comes."""
    chat, seconds = search.conversation, []
    for start in range(0, len(prompts), ROWS):
        batch, begun = prompts[start : start + ROWS], now()
        thoughts = reason(search.model, chat, batch, TOKENS, 0.0, ROWS)
        search.encode_rendered([chat.close(p, t.token_ids) for p, t in zip(batch, thoughts, strict=True)])
        seconds += [now() - begun] * len(batch)
    return seconds


def engine_figures(search: SearchR3, texts: list[str], size: dict[str, float]) -> dict[str, float]:
    """What one pass and batching are worth."""
    count = int(size["requests"])
    prompts = search.conversation.reasoning_prompts(texts[:count])
    percentiles: dict[str, list[list[float]]] = {"one": [], "two": []}  # of each round

    def timed(call: Callable[[], list[float]], kept: str | None = None, requests: int = count) -> float:
        start = now()
        seconds = call()
        if kept:
            percentiles[kept].append(quantiles(seconds, n=100))
        return requests / (now() - start)

    batched, alone = Engine(search, ROWS), Engine(search, 1)
    few = prompts[: max(2, count // 16)]
    continuous(batched, prompts[:ROWS]), continuous(alone, few[:1]), two_passes(search, prompts[:ROWS])
    rounds = int(size["rounds"])
    pairs = in_turn(  # they differ by a few hundredths: short arms, many rounds
        {
            "one": lambda: timed(lambda: continuous(batched, prompts[:ROWS]), requests=ROWS),
            "thinking": lambda: timed(
                lambda: continuous(batched, prompts[:ROWS], embeds=False), requests=ROWS
            ),
        },
        10 * rounds,
    )
    found = in_turn(
        {
            "one": lambda: timed(lambda: continuous(batched, prompts), "one"),
            "two": lambda: timed(lambda: two_passes(search, prompts), "two"),
            "single": lambda: timed(lambda: continuous(alone, few), requests=len(few)),
        },
        rounds,
    )
    overheads = [alone / both - 1 for both, alone in zip(pairs["one"], pairs["thinking"], strict=True)]
    figures = {
        "thinking_tokens": TOKENS,
        "concurrent": ROWS,
        "one_pass_overhead": median(overheads),
        **ratio("throughput_vs_two_pass", found["one"], found["two"]),
        **ratio("batched_vs_single", found["one"], found["single"]),
        "requests_a_second": median(found["one"]),
        "tokens_a_second": median(found["one"]) * TOKENS,
    }

    def milliseconds(arm: str, percent: int) -> list[float]:
        return [1000 * cuts[percent - 1] for cuts in percentiles[arm]]

    for percent in (50, 95):
        figures[f"p{percent}_ms"] = median(milliseconds("one", percent))
        figures[f"p{percent}_ms_two_pass"] = median(milliseconds("two", percent))
    return figures | ratio("p95_vs_two_pass", milliseconds("one", 95), milliseconds("two", 95))
