"""What the environment costs in stage 2, and what stage 2 costs beside plain GRPO.

    python benchmarks/stage2.py --output benchmarks/results/stage2.json
    python benchmarks/stage2.py --stage1 RUN/stage1 --output …       from a finished stage 1, with RUN/data

Stage 2 of the quickstart over at least 17,000 documents, its contrastive term off, the environment's policy
and budget as they are by default, no audit. `environment_share_of_step` is the part of a step that goes into
encoding what is ranked, refreshing and scoring. What is ranked are the rollouts, whose vectors come from the
pass that samples them (`rollout`), so that little is left, and the direct queries that tell what thinking is
worth. `environment_share_reread` is that part where this cannot be (vLLM, an architecture that is not known):
trl samples, and each rollout is read once more for its vector. `samples_ratio` is rollouts a second against
trl's own GRPOTrainer with a constant reward and the same model, prompts, sampling, precision and batch; it
generates as trl does by default, by `generate` of transformers. `samples_ratio_reread` is of the reread arm.

All run in turn, round after round, from the same weights, each a few steps of which the first does not
count; a step goes from one's end to the next's. Figures are medians over the steps of all rounds. The corpus
is encoded once, before. Queries that are so long that they would be cut are left out, for trl cuts nothing.
Their rewards being constant, trl's rollouts stay as long as they are at the start: `completion_tokens…` tells
how long those of each arm were, their end included, and `tokens_ratio` is of tokens a second.
"""

from __future__ import annotations

import tempfile
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median
from typing import Any

from _result import arguments, write
from _start import beginning
from _steps import PARTS, stage2_steps
from _timing import StepTimes, in_turn, ratio
from datasets import Dataset
from transformers import PrinterCallback, set_seed
from trl import GRPOTrainer

from searchr3.conversation import Conversation
from searchr3.dataset import RetrievalDataset
from searchr3.errors import SearchR3Error
from searchr3.model import SearchR3
from searchr3.progress import hush_transformers
from searchr3.training.common import relevant_documents
from searchr3.training.precision import precision
from searchr3.training.recipe import Recipe
from searchr3.training.recipe_file import load_recipe
from searchr3.training.stage2 import grpo_config

FULL = {"rounds": 5, "steps": 5, "documents": 18_000, "least": 17_000}
QUICK = {"rounds": 1, "steps": 3, "documents": 400, "least": 1}
QUICK_RECIPE = (
    *("data.dev_queries=20", "data.dev_documents=60", "stage1.steps=3", "stage1.evaluate_every=3"),
    *("stage1.batch_size=8", "stage2.queries=4", "stage2.rollouts=4"),
)
OTHERS = ("rollout", "update")
ENDS = {"ours": "", "reread": "_reread", "theirs": "_trl"}


def recipe_of(options: Namespace) -> Recipe:
    steps = options.size["steps"]
    return load_recipe(
        "quickstart",
        [
            *options.overrides,
            *(f"stage2.steps={steps}", f"stage2.evaluate_every={steps}", "stage2.log_every=1"),
            *("stage2.contrastive=0", f"stage2.episodes_every={10**6}"),
        ],
    )


def turns(chat: Conversation, text: str) -> list[dict[str, str]]:
    """The prompt of a query as a user of trl would write it."""
    system = [{"role": "system", "content": chat.prompts.reason}] if chat.prompts.reason else []
    return [*system, {"role": "user", "content": text}]


def asked_alike(dataset: RetrievalDataset, chat: Conversation) -> RetrievalDataset:
    """Only the queries of stage 2 of which trl makes the very prompt that we do: of long ones we cut some.

    Raises:
        SearchR3Error: they are too few for the rest to stand for all.
    """
    texts = {key: dataset.queries[key].text for key in dataset.split("stage2")}
    ours = chat.reasoning_prompts(list(texts.values()), dataset.instruction)
    conversations = [turns(chat, text) for text in texts.values()]
    theirs = chat.tokenizer.apply_chat_template(conversations, add_generation_prompt=True, return_dict=True)
    same = {key for key, a, b in zip(texts, ours, theirs["input_ids"], strict=True) if a == b}
    print(f"{len(same):,} of {len(texts):,} queries of stage 2 are asked alike by both", flush=True)
    if len(same) < len(texts) / 2:
        raise SearchR3Error("most queries of stage 2 are asked otherwise by trl; raise model.max_length")
    kept = {key: grades for key, grades in dataset.split("stage2").items() if key in same}
    return replace(dataset, qrels={**dataset.qrels, "stage2": kept})


def plain_grpo(
    search: SearchR3, dataset: RetrievalDataset, recipe: Recipe, folder: Path
) -> tuple[GRPOTrainer, StepTimes]:
    """trl's trainer on the same prompts, with a reward that is always 1."""
    chat, times = search.conversation, StepTimes()
    search.model.generation_config.eos_token_id = chat.stop_ids
    args = grpo_config(recipe, folder)
    args.eval_strategy = args.save_strategy = "no"
    args.load_best_model_at_end = False
    trainer = GRPOTrainer(
        model=search.model,
        reward_funcs=lambda completions, **_: [1.0] * len(completions),
        args=args,
        train_dataset=Dataset.from_list(
            [
                {"prompt": turns(chat, dataset.queries[query].text)}
                for query in relevant_documents(dataset, "stage2")
            ]
        ),
        processing_class=search.tokenizer,
        callbacks=[times],
    )
    trainer.remove_callback(PrinterCallback)
    return trainer, times


def theirs(search: SearchR3, dataset: RetrievalDataset, recipe: Recipe) -> dict[str, Any]:
    """As many steps of plain GRPO."""
    set_seed(recipe.seed)
    with tempfile.TemporaryDirectory() as folder:
        trainer, times = plain_grpo(search, dataset, recipe, Path(folder))
        trainer.train()
    lengths = [row["completions/mean_length"] for row in trainer.state.log_history if "loss" in row]
    return {"seconds": times.seconds, "tokens": fmean(lengths)}


def figures_of(found: dict[str, list[dict[str, Any]]], rollouts: int) -> dict[str, float]:
    """Of the rounds of all arms."""
    steps = [step for one in found["ours"] for step in one["steps"]]
    again = [step for one in found["reread"] for step in one["steps"]]
    seconds = {arm: median(x for one in rounds for x in one["seconds"]) for arm, rounds in found.items()}
    speed = {arm: [rollouts / median(one["seconds"]) for one in rounds] for arm, rounds in found.items()}
    tokens = {arm: fmean(one["tokens"] for one in rounds) for arm, rounds in found.items()}
    by_token = {
        arm: [one["tokens"] * x for one, x in zip(found[arm], speed[arm], strict=True)] for arm in found
    }
    return {
        "environment_share_of_step": _share("reward", steps),
        "environment_share_reread": _share("reward", again),
        **{f"{name}_share_of_step": _share(name, steps) for name in (*PARTS, *OTHERS)},
        **{f"step_seconds{end}": seconds[arm] for arm, end in ENDS.items()},
        **{f"{name}_seconds": median(step[name] for step in steps) for name in (*PARTS, *OTHERS)},
        "steps": len(steps),
        **{f"samples_a_second{end}": rollouts / seconds[arm] for arm, end in ENDS.items()},
        **ratio("samples_ratio", speed["ours"], speed["theirs"]),
        **ratio("samples_ratio_reread", speed["reread"], speed["theirs"]),
        **ratio("tokens_ratio", by_token["ours"], by_token["theirs"]),
        **{f"completion_tokens{end}": tokens[arm] for arm, end in ENDS.items()},
        "thinking_tokens": fmean(one["thinking"] for one in found["ours"]),
    }


def _share(part: str, steps: Sequence[Mapping[str, float]]) -> float:
    return median(step[part] / step["step"] for step in steps)


def measure(dataset: RetrievalDataset, start: Path, options: Namespace) -> dict[str, float]:
    """Figures of all rounds.

    Raises:
        SearchR3Error: the corpus is too small.
    """
    recipe = recipe_of(options)
    corpus = [document.content for document in dataset.training_corpus().values()]
    if len(corpus) < options.size["least"]:
        raise SearchR3Error(
            f"{len(corpus)} documents, but {options.size['least']} are wanted; install more, or give --data"
        )
    search = SearchR3(start, batch_size=recipe.model.batch_size, dtype="float32")
    search.autocast = precision(recipe)
    dataset = asked_alike(dataset, search.conversation)
    print(f"encoding {len(corpus):,} documents", flush=True)
    vectors = search.encode_document(corpus)

    def fresh() -> SearchR3:
        return SearchR3(start, batch_size=recipe.model.batch_size, dtype="float32")

    found = in_turn(
        {
            "ours": lambda: stage2_steps(fresh(), dataset, vectors, recipe),
            "reread": lambda: stage2_steps(fresh(), dataset, vectors, recipe, reread=True),
            "theirs": lambda: theirs(fresh(), dataset, recipe),
        },
        options.size["rounds"],
    )
    rollouts = recipe.stage2.queries * recipe.stage2.rollouts
    return {"documents": len(corpus), "rollouts": rollouts, **figures_of(found, rollouts)}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--work", type=Path, help="folder of data and stage 1, where none are given")
    parser.add_argument("--stage1", type=Path, help="a finished stage 1; its data lie beside it")
    parser.add_argument("--data", type=Path, help="data of the stage 1")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="keys of the quickstart's recipe")
    options = parser.parse_args()
    options.size = QUICK if options.quick else FULL
    options.work = options.work or Path("runs") / ("stage2-quick" if options.quick else "stage2")
    options.overrides = [
        f"data.max_documents={options.size['documents']}",
        *(QUICK_RECIPE if options.quick else ()),
        *options.overrides,
    ]
    hush_transformers()
    try:
        if options.quick and not options.data and not options.stage1:
            from _corpus import code_corpus

            options.data = options.work / "data"
            code_corpus(options.data, True, options.size["documents"])
        dataset, start = beginning(options.work, options.overrides, options.stage1, options.data)
        figures = measure(dataset, start, options)
    except SearchR3Error as error:
        raise SystemExit(f"error: {error}") from None
    write(options.output, "stage2", figures)


if __name__ == "__main__":
    main()
