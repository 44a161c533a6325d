"""What stage 1's losses are worth: against sentence-transformers on real data, and each of the four alone.

    python benchmarks/losses.py --packs FOLDER --output benchmarks/results/losses.json

`--packs` holds data sets in BEIR's layout with judgements to train on; those of `--names` are taken, one that
is missing is left out with a line that says so. Every arm starts from the same weights (the bundled base),
sees the same pairs for the same number of steps with the same batch, learning rate, schedule and clipping,
and ends with its last step. All models are then measured alike: nDCG@10 of the direct queries of the whole
dev split, against the documents relevant to them and others, drawn by hash, up to 5,000. Differences are
paired over the queries, with a bootstrap interval of 95 %; there is one seed, so they do not tell how an arm
would fare in another order of the pairs.

all                     the recipe's four losses and its batches of like documents
st                      sentence-transformers' MultipleNegativesRankingLoss in its trainer, NO_DUPLICATES
st_half, st_double      the same at half and at twice the learning rate
info_nce_direct         InfoNCE on direct queries in random batches: what `st` does, done by us
random_batches          all, in random batches
without_…, only_…       all without one of the losses, and one of them alone

`minus_st` is against `st`, `PACK_minus_best_st` against the best of the three rates by these very queries,
which favours it. The first five are run on every pack, the others on the first (`--ablation` names others).
A finished arm is a file in the work folder: an interrupted study goes on where it was, one with other code
begins anew.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from _corpus import code_corpus
from _result import arguments, code, write

from searchr3.dataset import RetrievalDataset, load_dataset
from searchr3.dataset.traces import make_traces
from searchr3.errors import SearchR3Error
from searchr3.evaluation.statistics import bootstrap_ci, paired_difference
from searchr3.files import write_json
from searchr3.progress import hush_transformers
from searchr3.training.recipe import Recipe
from searchr3.training.recipe_file import load_recipe

LOSSES = ("sft", "kl", "info_nce", "triplet")
RIVAL, WHOLE = "st", "all"
RIVALS = {RIVAL: 1.0, "st_half": 0.5, "st_double": 2.0}
"""Arm → times the recipe's learning rate."""
COMPARED = (WHOLE, *RIVALS, "info_nce_direct")


def zero(*names: str) -> tuple[str, ...]:
    return tuple(f"stage1.{name}=0" for name in names)


ARMS: dict[str, tuple[str, ...]] = {
    WHOLE: (),
    **dict.fromkeys(RIVALS, ()),
    "info_nce_direct": (*zero("sft", "kl", "triplet", "reasoned_share"), "stage1.neighbours=1"),
    "random_batches": ("stage1.neighbours=1",),
    **{f"without_{name}": zero(name) for name in LOSSES},
    **{f"only_{name}": zero(*(other for other in LOSSES if other != name)) for name in LOSSES},
}
FULL = {"steps": 60, "batch": 64, "length": 128, "documents": 5000, "arms": tuple(ARMS)}
QUICK = {"steps": 2, "batch": 8, "length": 64, "documents": 100, "arms": (*COMPARED, "only_sft")}
PACKS = ("nl2bash", "tldr", "medquad")


def recipe_of(arm: str, size: Mapping[str, Any], overrides: Sequence[str]) -> Recipe:
    steps = size["steps"]
    return load_recipe(
        "quickstart",
        [
            *(f"stage1.steps={steps}", f"stage1.evaluate_every={steps}", f"stage1.log_every={steps}"),
            *(f"stage1.batch_size={size['batch']}", f"model.max_length={size['length']}"),
            *("data.dev_queries=10", "data.dev_documents=20"),  # nothing is chosen by them
            *overrides,
            *ARMS[arm],
        ],
    )


def measured_on(dataset: RetrievalDataset, documents: int) -> RetrievalDataset:
    """The dev split with the documents that it is measured against, and no traces."""
    from searchr3.training.dev import DevSet

    dev = DevSet.of(dataset, len(dataset.split("dev")), documents)
    corpus = {key: dataset.corpus[key] for key in dev.document_ids}
    queries = {key: replace(dataset.queries[key], reasoning=None, negatives=()) for key in dev.query_ids}
    return RetrievalDataset(dataset.name, corpus, queries, {"dev": dev.qrels})


def train(arm: str, dataset: RetrievalDataset, recipe: Recipe, folder: Path) -> Any:
    """A model trained by one arm."""
    from searchr3.runs.preparation import make_base_model
    from searchr3.training.precision import precision
    from searchr3.training.stage1 import train_stage1

    search = make_base_model(recipe)
    if arm in RIVALS:
        train_rival(search, dataset, recipe, RIVALS[arm], folder)
        search.autocast = precision(recipe)
    else:
        train_stage1(search, dataset, recipe, folder)
    return search


def train_rival(search: Any, dataset: RetrievalDataset, recipe: Recipe, times: float, folder: Path) -> None:
    """Train by sentence-transformers, at so many times the recipe's rate, and take over the weights."""
    from _rival import as_text, cut, rival_of, rival_trainer, settings_like
    from sentence_transformers.base.sampler import BatchSamplers
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
    from transformers import set_seed

    from searchr3.embedding import backbone
    from searchr3.training.pairs import Pairs

    set_seed(recipe.seed)
    search.save_pretrained(folder / "start")
    model = rival_of(folder / "start", search.dimension)
    pairs, chat = Pairs(dataset, "stage1"), search.conversation
    queries = [dataset.queries[pairs.query_ids[query]].text for query, _ in pairs.pairs]
    documents = [dataset.corpus[pairs.document_ids[row]].content for _, row in pairs.pairs]
    settings = settings_like(recipe, folder / "st")
    settings["learning_rate"] *= times
    loss = MultipleNegativesRankingLoss(model, 1 / recipe.stage1.temperature)
    texts = [as_text(chat, cut(chat, some)) for some in (queries, documents)]
    rival_trainer(model, loss, *texts, settings, sampler=BatchSamplers.NO_DUPLICATES).train()
    backbone(search.model).load_state_dict(model[0].model.state_dict())


def outcome(arm: str, dataset: RetrievalDataset, options: Namespace) -> dict[str, Any]:
    """nDCG@10 of each dev query after training by one arm."""
    from searchr3.evaluation import evaluate

    recipe = recipe_of(arm, options.size, options.overrides)
    with tempfile.TemporaryDirectory() as folder:
        search = train(arm, dataset, recipe, Path(folder))
    test = measured_on(dataset, options.size["documents"])
    found = evaluate(search, test, "dev", reasoning="off", baselines=())
    return {
        "documents": len(test.corpus),
        "pairs": sum(map(len, dataset.split("stage1").values())),
        "ndcg": dict(found.runs[0].values["ndcg@10"]),
    }


def packs(options: Namespace) -> dict[str, RetrievalDataset]:
    """The data sets that there are, with traces for stage 1."""
    if options.quick and not options.packs:
        found = {"code": code_corpus(options.work / "data", True)}
    else:
        found = {}
        for name in options.names:
            if options.packs and (options.packs / name).is_dir():
                found[name] = load_dataset(options.packs / name)
            else:
                print(f"{name}: no such data set in {options.packs or 'the folder --packs'}, left out")
    words = recipe_of(WHOLE, options.size, options.overrides).data.trace_words
    return {name: make_traces(dataset, ("stage1",), words) for name, dataset in found.items()}


def figures_of(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> dict[str, float | None]:
    """Figures of each pack's arms: the mean, and the paired differences to `st` and to `all`."""
    figures: dict[str, float | None] = {}
    for pack, arms in found.items():
        figures |= {f"{pack}_{key}": arms[WHOLE][key] for key in ("documents", "pairs")}
        figures[f"{pack}_queries"] = len(arms[WHOLE]["ndcg"])
        queries = list(arms[WHOLE]["ndcg"])
        values = {arm: np.array([one["ndcg"][query] for query in queries]) for arm, one in arms.items()}
        for arm, own in values.items():
            low, high = bootstrap_ci(own)
            row = {"ndcg": float(own.mean()), "low": float(low), "high": float(high)}
            for label, other in (("minus_st", RIVAL), ("minus_all", WHOLE)):
                gap = paired_difference(own, values[other]) if other in values and other != arm else None
                row |= {label: gap.mean if gap else None}
                row |= {f"{label}_low": gap.ci95[0] if gap else None}
                row |= {f"{label}_high": gap.ci95[1] if gap else None}
            figures |= {f"{pack}.{arm}.{name}": value for name, value in row.items()}
        for name in ("minus_st", "minus_st_low", "minus_st_high"):
            figures[f"{pack}_{name}"] = figures[f"{pack}.{WHOLE}.{name}"]
        best = max((arm for arm in RIVALS if arm in values), key=lambda arm: values[arm].mean())
        gap = paired_difference(values[WHOLE], values[best])
        name, (low, high) = f"{pack}_minus_best_st", gap.ci95
        figures |= {name: gap.mean, f"{name}_low": low, f"{name}_high": high}
    return figures


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--packs", type=Path, help="folder of data sets in BEIR's layout")
    parser.add_argument("--names", nargs="+", default=list(PACKS), help=f"of them: {', '.join(PACKS)}")
    parser.add_argument("--ablation", nargs="*", help="data sets for all arms; default: the first")
    parser.add_argument("--work", type=Path, help="folder that keeps finished arms")
    parser.add_argument(
        "--set", dest="overrides", nargs="*", default=[], help="keys of the quickstart's recipe"
    )
    options = parser.parse_args()
    options.size = QUICK if options.quick else FULL
    options.work = options.work or Path("runs") / ("losses-quick" if options.quick else "losses")
    hush_transformers()
    try:
        data = packs(options)
        if not data:
            print("losses: no data set, nothing measured; give their folder with --packs")
            return
        asked = f"{code()} {options.size} {options.overrides}"
        made = options.work / hashlib.sha256(asked.encode()).hexdigest()[:16]
        found: dict[str, dict[str, Any]] = {name: {} for name in data}
        for name, dataset in data.items():
            all_arms = name in (list(data)[:1] if options.ablation is None else options.ablation)
            for arm in options.size["arms"]:
                if not all_arms and arm not in COMPARED:
                    continue
                place = made / f"{name}-{arm}.json"
                if not place.is_file():
                    print(f"{name}: {arm}", flush=True)
                    write_json(place, outcome(arm, dataset, options))
                found[name][arm] = json.loads(place.read_text(encoding="utf-8"))
    except SearchR3Error as error:
        raise SystemExit(f"error: {error}") from None
    write(options.output, "losses", figures_of(found))


if __name__ == "__main__":
    main()
