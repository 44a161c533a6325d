"""`searchr3 adapt`."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from searchr3.cli.evaluate import opened_cache, tell_size
from searchr3.cli.options import (
    BatchSize,
    CacheFolder,
    Device,
    Json,
    NoCache,
    SplitBy,
    ThoughtTokens,
    refuse_both,
)
from searchr3.cli.terminal import show
from searchr3.errors import SearchR3Error
from searchr3.files import check_writable, json_text


def adapt(
    model: Annotated[
        Path, typer.Argument(metavar="MODEL", help="Folder of a searchr3 model; gets the rule.")
    ],
    data: Annotated[str, typer.Option(help="As for `searchr3 evaluate`.")],
    split: Annotated[str, typer.Option(help="Whose queries choose; never the ones of a test.")] = "dev",
    split_by: SplitBy = "hash",
    keep: Annotated[
        float, typer.Option(help="Share of what thinking gains that the rule is to keep: above 0, at most 1.")
    ] = 0.95,
    prompts: Annotated[Path | None, typer.Option(help="As for `searchr3 evaluate`.")] = None,
    max_new_tokens: ThoughtTokens = 128,
    batch_size: BatchSize = 32,
    device: Device = None,
    cache: CacheFolder = None,
    no_cache: NoCache = False,
    as_json: Json = False,
) -> None:
    """Choose when a model thinks.

    Measures it with and without, and saves the rule with it: think where the direct ranking is so unsure.
    """
    from searchr3.adaptive import RULE

    if not 0 < keep <= 1:
        raise SearchR3Error(f"--keep must be above 0 and at most 1, got {keep:g}")
    if not model.is_dir():
        raise SearchR3Error(
            f"{model}: no such folder; the rule is saved in it, so give a local one "
            "(of a Hub model: `hf download ID --local-dir FOLDER` first)"
        )
    if split == "test":
        raise SearchR3Error("--split test: what is measured later must not choose the rule; choose it on dev")
    refuse_both(cache, no_cache)
    check_writable(model / RULE)
    from searchr3 import SearchR3, load_dataset
    from searchr3.evaluation import evaluate as measure
    from searchr3.evaluation.adaptive import Measured, choice_lines, choice_table, choose
    from searchr3.progress import Screen, hush_transformers

    hush_transformers()
    dataset = load_dataset(data, split_by=split_by)
    dataset.split(split)
    thinker = SearchR3(model, batch_size=batch_size, device=device, prompts=prompts)
    kept = opened_cache(cache, no_cache)
    with kept or nullcontext(), Screen() as screen:
        screen.phase("measuring", f"{model} on {data}")
        found = measure(
            thinker,
            dataset,
            split,
            baselines=(),
            max_new_tokens=max_new_tokens,
            progress=screen.work,
            cache=kept,
        )
        tell_size(screen, kept)
    measured = Measured.of(found.run("direct"), found.run("reasoned"))
    queries, documents = len(found.query_ids), len(dataset.corpus)
    where = f"{dataset.name} {split}, {queries:,} queries, {documents:,} documents"
    choice = choose(measured, keep, where)
    choice.rule.save(model)
    if as_json:
        print(json_text({"model": str(model), **choice.as_dict()}))
    else:
        show(choice_table(choice, where))
        print("\n".join(choice_lines(choice)))
