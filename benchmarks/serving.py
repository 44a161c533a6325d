"""Serving: what one pass costs and saves, what batching gives, and a server under more load than it bears.

    python benchmarks/serving.py --output benchmarks/results/serving.json
    python benchmarks/serving.py --model MODEL --minutes 10 --output …

Engine. Every query is given a thought of exactly 64 tokens (stop tokens are forbidden, for all arms alike).
`one_pass_overhead` is the time of thinking and embedding over that of the same engine's thinking alone.
`throughput_vs_two_pass` is that of the engine at 32 requests over `generate` and then `encode_query` in
batches of 32; `batched_vs_single` over the engine with one row. Seconds are from a request's beginning to its
vector, 32 of them always on their way; tokenizing is left out for all. Arms are measured in turn.

Server. `searchr3 serve` as a process of its own. 32 clients that wait for their answers tell what it
sustains; then twice that rate comes for minutes, at random moments. Half of the requests think (16 tokens),
a quarter are direct queries, a quarter eight documents each. `errors_other_than_429` are all other statuses
and connections without a whole answer; `memory_growth` is MiB an hour, by a line through the second half.
"""

from __future__ import annotations

import contextlib
import tempfile
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median, quantiles

import torch
from _corpus import code_corpus
from _load import Load, Outcome, server
from _result import arguments, write
from _timing import in_turn, now, ratio

from searchr3.engine import Engine
from searchr3.generation import reason
from searchr3.model import SearchR3
from searchr3.preparation import bundled_base
from searchr3.progress import hush_transformers
from searchr3.tasks import Task

FULL = {"requests": 128, "rounds": 7, "minutes": 10.0, "warm": 30.0}
QUICK = {"requests": 32, "rounds": 1, "minutes": 0.2, "warm": 4.0}
TOKENS, ROWS, SERVED_TOKENS = 64, 32, 16


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
    latencies: dict[str, list[float]] = {"one": [], "two": []}

    def timed(call: Callable[[], list[float]], kept: str | None = None, requests: int = count) -> float:
        start = now()
        seconds = call()
        if kept:
            latencies[kept] += seconds
        return requests / (now() - start)

    batched, alone = Engine(search, ROWS), Engine(search, 1)
    few = prompts[: max(2, count // 16)]
    continuous(batched, prompts[:ROWS]), continuous(alone, few[:1]), two_passes(search, prompts[:ROWS])
    found = in_turn(
        {
            "one": lambda: timed(lambda: continuous(batched, prompts), "one"),
            "thinking": lambda: timed(lambda: continuous(batched, prompts, embeds=False)),
            "two": lambda: timed(lambda: two_passes(search, prompts), "two"),
            "single": lambda: timed(lambda: continuous(alone, few), requests=len(few)),
        },
        int(size["rounds"]),
    )
    figures = {
        "thinking_tokens": TOKENS,
        "concurrent": ROWS,
        "one_pass_overhead": median(found["thinking"]) / median(found["one"]) - 1,
        **ratio("throughput_vs_two_pass", found["one"], found["two"]),
        **ratio("batched_vs_single", found["one"], found["single"]),
        "requests_a_second": median(found["one"]),
        "tokens_a_second": median(found["one"]) * TOKENS,
    }
    for name, label in (("one", ""), ("two", "_two_pass")):
        cuts = quantiles(latencies[name], n=100)
        figures |= {f"p50_ms{label}": 1000 * cuts[49], f"p95_ms{label}": 1000 * cuts[94]}
    return figures


def server_figures(model: Path, texts: list[str], size: dict[str, float]) -> dict[str, float]:
    """What a server sustains, and what becomes of twice that."""
    with server(model) as (url, process):
        load = Load(url, process, texts, SERVED_TOKENS)
        load.closed(ROWS, size["warm"])
        calm = load.closed(ROWS, size["warm"])
        stormy = load.open(2 * calm.rate, 60 * size["minutes"])
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
        "accepted_unanswered": statuses[0],
        "load_p50_ms": 1000 * found.percentile(50),
        "load_p95_ms": 1000 * found.percentile(95),
        "memory_mb": found.memory[-1][1],
        "memory_growth": found.growth(),
    }


def measure(options: Namespace, work: Path) -> dict[str, float]:
    """All figures."""
    size = options.size
    folder = options.model
    if folder is None:
        folder = work / "model"
        SearchR3.from_base(bundled_base(), max_length=256).save_pretrained(folder)
    data = options.data or Path("runs") / ("encode-quick" if options.quick else "encode") / "data"
    corpus = code_corpus(data, options.quick)
    texts = [query.text for query, _ in zip(corpus.queries.values(), range(2000), strict=False)]
    figures: dict[str, float] = {"threads": float(torch.get_num_threads())}
    if options.part in ("engine", "both"):
        search = SearchR3(folder)
        with no_stops(search):
            figures |= engine_figures(search, texts, size)
        del search
    if options.part in ("server", "both"):
        figures |= server_figures(folder, texts, size)
    return figures


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--model", type=Path, help="a model of ours; default: the bundled base")
    parser.add_argument("--data", type=Path, help="folder of the code; made where it is missing")
    parser.add_argument("--minutes", type=float, help="of the load")
    parser.add_argument("--part", choices=("engine", "server", "both"), default="both")
    options = parser.parse_args()
    options.size = dict(QUICK if options.quick else FULL)
    if options.minutes:
        options.size["minutes"] = options.minutes
    hush_transformers()
    with tempfile.TemporaryDirectory() as work:
        figures = measure(options, Path(work))
    write(options.output, "serving", figures)


if __name__ == "__main__":
    main()
