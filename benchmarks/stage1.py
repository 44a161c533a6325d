"""Stage 1 against sentence-transformers: tokens a second, memory, two processes against one.

    python benchmarks/stage1.py --output benchmarks/results/stage1.json

Arms, measured in turn on the same batches, from the same weights, in one process and with the same threads:

contrastive   InfoNCE alone, gradients cached; a pass has at most `rows` × `max_length` padded tokens
rows          CachedMultipleNegativesRankingLoss with mini_batch_size = `rows`: at most as many padded tokens
tokens        the same with mini_batch_num_tokens = `rows` × `max_length`, its newer way of cutting batches
fewer_rows, fewer_tokens      a quarter of either: on a CPU small passes may be the faster ones, as ours are
sorted        fewer_tokens in batches whose pairs stand by length: that we do for it, it has no such sampler
all_losses    SFT, KL, InfoNCE and triplet as the quickstart's recipe weighs them, cached as above

Tokens are those of the conversations that a step learns from, padding left out, each once however often it
is passed through: of queries and documents, and for `all_losses` also those of the reasoned queries, the
traces and the chats. Seconds are whole steps from one's end to the next's: loading, tokenizing, forward,
backward, optimizer. Those of `all_losses` include that the model samples reasoning of its own, in the 70 %
of the steps in which the recipe has it (the untrained base hardly ever ends before `max_new_tokens`, so it
costs there what it can cost at most); tokens that are only sampled do not count. The base's replies to the
chat prompts are made before the first step, and are not timed.

`contrastive_tokens_ratio` is against the fastest of sentence-transformers' own four ways, so is
`all_losses_tokens_ratio`; `…_against_NAME` is against one of the five. `peak_memory_ratio` is that of the
growth of resident memory over training, each arm in processes of its own, against `rows`, the equal
micro-batch; `peak_memory_ratio_against_fastest` against the fastest. `two_process_ratio` is pairs a second
of `contrastive` in two processes (gloo), each on a core of its own, against one process on one core.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if os.environ.get("BENCH_CORES"):  # before torch counts them
    os.sched_setaffinity(0, {int(core) for core in os.environ["BENCH_CORES"].split(",")})

from _corpus import code_corpus
from _result import arguments, part, parts_folder, write
from _timing import StepTimes, forget_peak, in_turn, on_cores, peak, ratio

from searchr3.errors import SearchR3Error
from searchr3.progress import hush_transformers
from searchr3.training.recipe_file import load_recipe

if TYPE_CHECKING:
    from searchr3.training.recipe import Recipe

FULL = {"rounds": 5, "processes": 5, "batch": 128, "rows": 32, "length": 256, "steps": 4, "all_steps": 11}
QUICK = {"rounds": 1, "processes": 1, "batch": 8, "rows": 4, "length": 48, "steps": 2, "all_steps": 2}
ALONE = ("sft=0", "kl=0", "triplet=0", "reasoned_share=0")
THEIRS = ("rows", "tokens", "fewer_rows", "fewer_tokens")
HELPED = "sorted"


def recipe_of(arm: str, size: Mapping[str, int]) -> Recipe:
    """The quickstart's recipe; both trainers see the same shuffled pairs in the same order."""
    steps = size["all_steps"] if arm == "all_losses" else size["steps"]
    stage = [
        f"steps={steps}",
        f"evaluate_every={steps}",
        f"batch_size={size['batch']}",
        f"micro_tokens={size['rows'] * size['length']}",
        "neighbours=1",
        *(() if arm == "all_losses" else ALONE),
    ]
    overrides = [f"stage1.{one}" for one in stage]
    return load_recipe("quickstart", [*overrides, f"model.max_length={size['length']}"])


def their_passes(arm: str, size: Mapping[str, int]) -> dict[str, int]:
    """How sentence-transformers' loss is told to cut a batch; never more than `rows` texts of full length."""
    rows = size["rows"] if arm in ("rows", "tokens") else max(1, size["rows"] // 4)
    by_rows = {"mini_batch_size": rows}
    return by_rows if arm.endswith("rows") else by_rows | {"mini_batch_num_tokens": rows * size["length"]}


def batches_sorted(lengths: Sequence[int], size: int) -> list[int]:
    """Rows in batches of `size` as they stand, each with its longest first."""
    starts = range(0, len(lengths), size)
    rows = [range(start, min(start + size, len(lengths))) for start in starts]
    return [row for batch in rows for row in sorted(batch, key=lambda row: -lengths[row])]


class Bench:
    """One model and one order of pairs, trained by either side.

    Attributes:
        tokens: of each pair, in the order in which they are learnt.
    """

    def __init__(self, data: Path, size: Mapping[str, int], work: Path) -> None:
        import torch

        from searchr3.dataset.traces import make_traces
        from searchr3.runs.preparation import make_base_model
        from searchr3.training.batches import NeighbourSampler
        from searchr3.training.pairs import Pairs

        self.size, self.work = size, work
        recipe = recipe_of("all_losses", size)
        self.dataset = make_traces(code_corpus(data, quick=False), ("stage1",), recipe.data.trace_words)
        self.search = make_base_model(recipe)
        self.start = {name: weight.clone() for name, weight in self.search.model.state_dict().items()}
        pairs = Pairs(self.dataset, "stage1")
        order = list(NeighbourSampler([""] * len(pairs), 1, recipe.seed))
        most = size["batch"] * max(size["steps"], size["all_steps"])
        if len(order) < most:
            raise SearchR3Error(f"{data}: {len(order)} pairs of stage 1, but {most} are wanted")
        chosen = [pairs.pairs[row] for row in order[:most]]
        self.queries = [self.dataset.queries[pairs.query_ids[query]].text for query, _ in chosen]
        self.documents = [self.dataset.corpus[pairs.document_ids[row]].content for _, row in chosen]
        chat = self.search.conversation
        made = zip(chat.queries(self.queries), chat.documents(self.documents), strict=True)
        self.tokens = [len(query.ids) + len(document.ids) for query, document in made]
        self.threads = torch.get_num_threads()

    def train(self, arm: str) -> dict[str, float]:
        """Steps of one arm from the start: `tokens` and `pairs` a second, and `growth` in MiB."""
        times = StepTimes()
        trainer, counts = (self.theirs if arm in (*THEIRS, HELPED) else self.ours)(arm, times)
        before = forget_peak()
        trainer.train()
        growth = peak() - before
        seconds, tokens = sum(times.seconds), sum(counts()[1:])  # the first step is not timed
        return {
            "tokens": tokens / seconds,
            "pairs": self.size["batch"] * len(times.seconds) / seconds,
            "growth": growth,
        }

    def ours(self, arm: str, times: StepTimes) -> tuple[Any, Callable[[], list[int]]]:
        from _steps import stage1_trainer

        recipe = recipe_of(arm, self.size)
        self.search.model.load_state_dict(self.start)
        trainer, seen = stage1_trainer(self.search, self.dataset, recipe, self.work / "ours", times)
        if arm != "all_losses":
            return trainer, lambda: self.tokens_of_steps(recipe.stage1.steps)
        return trainer, lambda: [sum(len(item.ids) for item in items) for items in seen]

    def theirs(self, arm: str, times: StepTimes) -> tuple[Any, Callable[[], list[int]]]:
        from _rival import as_text, cut, rival_of, rival_trainer, settings_like
        from sentence_transformers.sentence_transformer.losses import CachedMultipleNegativesRankingLoss

        recipe = recipe_of(arm, self.size)
        place = self.work / "exported"
        if not place.is_dir():
            self.search.model.load_state_dict(self.start)
            self.search.save_pretrained(place)
        model = rival_of(place, self.search.dimension)
        passes = their_passes(arm, self.size)
        loss = CachedMultipleNegativesRankingLoss(model, 1 / recipe.stage1.temperature, **passes)
        settings = settings_like(recipe, self.work / "theirs")
        chat = self.search.conversation
        texts = [as_text(chat, cut(chat, some)) for some in (self.queries, self.documents)]
        if arm == HELPED:
            order = batches_sorted(self.tokens, self.size["batch"])
            texts = [[some[row] for row in order] for some in texts]
        trainer = rival_trainer(model, loss, *texts, settings, [times])
        return trainer, lambda: self.tokens_of_steps(recipe.stage1.steps)

    def tokens_of_steps(self, steps: int) -> list[int]:
        size = self.size["batch"]
        return [sum(self.tokens[step * size : (step + 1) * size]) for step in range(steps)]


def speed(bench: Bench, rounds: int, rivals: Sequence[str]) -> dict[str, float]:
    """Tokens a second of all arms, in turn; a first round is not counted."""
    names = ("contrastive", *rivals, "all_losses")
    arms = {name: lambda name=name: bench.train(name) for name in names}
    if rounds > 1:
        in_turn(arms, 1)
    found = in_turn(arms, rounds)
    tokens = {name: [one["tokens"] for one in values] for name, values in found.items()}
    best = max((name for name in rivals if name in THEIRS), key=lambda name: median(tokens[name]))
    figures = {f"{name}_tokens_a_second": median(values) for name, values in tokens.items()}
    for name in ("contrastive", "all_losses"):
        figures |= ratio(f"{name}_tokens_ratio", tokens[name], tokens[best])
        for other in rivals:
            against = median(tokens[name]) / median(tokens[other])
            figures[f"{name}_tokens_ratio_against_{other}"] = against
    pairs = {name: [one["pairs"] for one in values] for name, values in found.items()}
    figures |= {f"{name}_pairs_a_second": median(values) for name, values in pairs.items()}
    return figures | {"all_losses_pairs_ratio": median(pairs["all_losses"]) / median(pairs[best])}


def started(
    data: Path, arm: str, quick: bool, cores: list[int] | None = None, processes: int = 1
) -> list[dict[str, float]]:
    """`Bench.train` of one arm in fresh processes that learn together; what each returned."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    running = []
    for rank in range(processes):
        environment = on_cores([cores[rank]]) if cores else dict(os.environ)
        if processes > 1:
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": str(processes)}
            environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        command = [sys.executable, __file__, "--arm", arm, "--data", str(data), "--output", "-"]
        command += ["--quick"] if quick else []
        running.append(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
    try:
        said = [process.communicate()[0] for process in running]
    finally:
        for process in running:
            process.kill()
    if any(process.returncode for process in running):
        raise SearchR3Error(f"arm {arm}: a process failed; its own message says why")
    return [json.loads(text.splitlines()[-1]) for text in said]


def memory(data: Path, options: Namespace, fastest: str) -> dict[str, float]:
    """Growth of resident memory of each arm, each time in a process of its own."""
    fastest = "rows" if options.quick else fastest
    names = dict.fromkeys(("contrastive", "rows", fastest, *(() if options.quick else ("all_losses",))))
    arms = {name: lambda name=name: started(data, name, options.quick)[0]["growth"] for name in names}
    found = in_turn(arms, options.size["processes"])
    figures = {f"{name}_growth_mib": median(values) for name, values in found.items()}
    figures |= ratio("peak_memory_ratio", found["contrastive"], found["rows"])
    return figures | ratio("peak_memory_ratio_against_fastest", found["contrastive"], found[fastest])


def processes(data: Path, options: Namespace) -> dict[str, float]:
    """Pairs a second of two processes with one core each against one with one core."""
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        print("two_process_ratio: only one core here, left out")
        return {}
    arms = {
        str(size): lambda size=size: started(data, "contrastive", options.quick, cores, size)[0]["pairs"]
        for size in (1, 2)
    }
    found = in_turn(arms, options.size["processes"])
    figures = {f"pairs_a_second_{name}_process": median(values) for name, values in found.items()}
    return figures | ratio("two_process_ratio", found["2"], found["1"])


def figures_of(data: Path, options: Namespace) -> dict[str, float]:
    """Those of all parts; each is kept when it is done."""
    import torch

    size = options.size
    folder = parts_folder(data.parent, size=size, threads=torch.get_num_threads())

    def speeds() -> dict[str, float]:
        rivals = THEIRS[:2] if options.quick else (*THEIRS, HELPED)
        with tempfile.TemporaryDirectory() as work:
            bench = Bench(data, size, Path(work))
            return {"threads": bench.threads, **speed(bench, size["rounds"], rivals)}

    figures: dict[str, float] = {name: size[name] for name in ("batch", "rows", "length")}
    figures |= part(folder / "speed.json", speeds)
    fastest = max(THEIRS, key=lambda name: figures.get(f"{name}_tokens_a_second", 0.0))
    figures |= part(folder / "memory.json", lambda: memory(data, options, fastest))
    return figures | part(folder / "processes.json", lambda: processes(data, options))


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--data", type=Path, help="folder of the data; made where it is missing")
    parser.add_argument("--arm", help="train this arm alone and print what it gave")
    options = parser.parse_args()
    options.size = QUICK if options.quick else FULL
    data = options.data or Path("runs") / ("stage1-quick" if options.quick else "stage1") / "data"
    hush_transformers()
    try:
        code_corpus(data, options.quick)
        if options.arm:
            with tempfile.TemporaryDirectory() as work:
                print(json.dumps(Bench(data, options.size, Path(work)).train(options.arm)))
            return
        figures = figures_of(data, options)
    except SearchR3Error as error:
        raise SystemExit(f"error: {error}") from None
    write(options.output, "stage1", figures)


if __name__ == "__main__":
    main()
