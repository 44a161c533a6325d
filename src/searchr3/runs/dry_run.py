"""`searchr3 train --dry-run`: everything that a run needs is looked at, and what it will cost is told."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from searchr3.dataset import RetrievalDataset
from searchr3.errors import SearchR3Error
from searchr3.progress import hush_transformers
from searchr3.runs.pipeline import may_run, run_folder
from searchr3.runs.preparation import (
    check_names,
    limited,
    make_base_model,
    make_dataset,
    make_sources,
    refuse_a_base_that_knows,
    trained_shape,
)
from searchr3.training.estimate import (
    GIB,
    Memory,
    Passes,
    Setting,
    Shape,
    Work,
    activations,
    at_work,
    checkpoint_bytes,
    hours,
    memory,
    operations,
)
from searchr3.training.recipe import Recipe
from searchr3.training.recipe_file import load_recipe

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from searchr3.runs.probe import Speed
    from searchr3.training.workload import Lengths

STAGES = ("stage1", "stage2")
NAMES = {
    "weights": "weights",
    "copies": "base for the KL",
    "gradients": "gradients",
    "optimizer": "optimizer",
    "buckets": "buckets of DDP",
    "bf16_weights": "weights in bf16",
    "rows": "copies for the embed token's row",
    "activations": "activations",
    "logits": "logits",
    "vectors": "cached embeddings",
    "generation": "or else: generation",
    "saving": "or else: another model, when saving",
}


@dataclass(frozen=True)
class Machine:
    """What a run will be given.

    Attributes:
        processes: data parallel; shard: weights are dealt among them.
        teraflops: 10¹² operations that one process does in a second; tokens: that it generates in a second.
            Without them they are measured here, if that is possible.

    Raises:
        SearchR3Error: one of the two is given without the other, or is no number above 0.
    """

    processes: int = 1
    shard: bool = False
    teraflops: float | None = None
    tokens: float | None = None

    def __post_init__(self) -> None:
        speeds = (self.teraflops, self.tokens)
        if any(one is not None for one in speeds) and not all(one and 0 < one < math.inf for one in speeds):
            raise SearchR3Error(
                "--tflops and --tokens-per-second: give both, each a number above 0, or neither"
            )


def dry_run(
    recipe: Path | str,
    overrides: Sequence[str] = (),
    machine: Machine = Machine(),
    output: Path | None = None,
    resume: bool = False,
) -> None:
    """Check a recipe as far as that goes without training, and print it with an estimate.

    What is printed is YAML; the estimate stands in comments.

    Args:
        output, resume: as of `searchr3.runs.pipeline.train`: whether the run may go there is looked at too.

    Raises:
        SearchR3Error: whatever would end the run before or at its first step.
    """
    if int(os.environ.get("RANK", 0)):
        return  # the first of the launched processes speaks for all, and has the machine for itself
    settings = load_recipe(recipe, overrides)
    refuse_a_base_that_knows(settings)
    folder = run_folder(recipe, output)
    may_run(folder, settings, resume)
    hush_transformers()
    dataset = limited(make_dataset(settings), settings)
    check_names(settings, machine.processes)
    lines = list(estimate(settings, dataset, machine, make_sources(settings, dataset), folder))
    print(yaml.safe_dump(settings.dump(), sort_keys=False), end="")
    for line in lines:
        print(f"# {line}".rstrip())


def setting_of(recipe: Recipe, model: PreTrainedModel, stage: str, machine: Machine) -> Setting:
    """How a stage trains `model`, whose numbers are only counted.

    Args:
        model: with the recipe's adapter, if it names one; it may be on the meta device.
    """
    from searchr3.training.precision import held, precision

    weights = list(model.parameters())
    trained = sum(one.numel() for one in weights if one.requires_grad)
    kl = recipe.stage1.kl if stage == "stage1" else recipe.stage2.beta
    return Setting(
        parameters=sum(one.numel() for one in weights),
        trained=trained,
        bf16=precision(recipe) is not None,
        checkpointing=recipe.model.gradient_checkpointing,
        copies=int(bool(kl) and recipe.model.lora is None),
        processes=machine.processes,
        shard=machine.shard,
        held=held(recipe, machine.shard) is not None,
        base=stage == "stage1" and bool(kl),
    )


def needs(
    recipe: Recipe, model: PreTrainedModel, stage: str, lengths: Lengths, machine: Machine
) -> tuple[Setting, Memory]:
    """How a stage trains, and the memory that one process needs for it."""
    from searchr3.training.workload import stage1_passes, stage2_passes

    setting, shape = setting_of(recipe, model, stage, machine), Shape.of(model.config)
    passes: Passes = (
        stage1_passes(recipe, lengths, shape, machine.processes)
        if stage == "stage1"
        else stage2_passes(recipe, lengths, shape, machine.processes)
    )
    return setting, memory(shape, setting, passes)


def estimate(
    recipe: Recipe,
    dataset: RetrievalDataset,
    machine: Machine,
    others: Sequence[RetrievalDataset] = (),
    folder: Path = Path(),
) -> Iterator[str]:
    """Lines on the data, the model, memory, disk, tokens, operations and hours.

    Args:
        others: the data sets of `data.mixture`.
        folder: of the run.

    Raises:
        SearchR3Error: the base model cannot be had, or the recipe does not fit it.
    """
    from searchr3.embedding import KNOWN
    from searchr3.training.engine_memory import engine_lines
    from searchr3.training.rollout_engine import server_state
    from searchr3.training.workload import (
        Lengths,
        environment_bytes,
        measuring_work,
        refreshed,
        stage1_work,
        stage2_work,
    )

    search = make_base_model(recipe, weights=False)
    model = trained_shape(search, recipe)
    shape, chat = Shape.of(model.config), search.conversation
    lengths, *theirs = (Lengths.measured(one, chat, recipe) for one in (dataset, *others))
    splits = ", ".join(f"{name} {len(qrels):,}" for name, qrels in dataset.qrels.items())
    yield f"data: {len(dataset.corpus):,} documents; queries: {splits}"
    for asked, other, own in zip(recipe.data.mixture, others, theirs, strict=True):
        texts = f"{len(other.corpus):,} documents, {len(other.queries):,} queries"
        tokens = f"document {own.document:.0f} tokens, query {own.direct:.0f}"
        yield f"mixture: {asked.label}, {texts}; {tokens}"
    yield (
        f"tokens a text, with its conversation: document {lengths.document:.0f} (longest of a sample "
        f"{lengths.longest_document}), query {lengths.direct:.0f}, before thinking {lengths.prompt:.0f}, "
        f"thought {lengths.thought:.0f}"
    )
    of_stage = {"stage1": Lengths.greatest([lengths, *theirs]), "stage2": lengths}
    found = {stage: needs(recipe, model, stage, of_stage[stage], machine) for stage in STAGES}
    one, _ = found["stage1"]
    yield f"model: {one.parameters:,} parameters, {one.trained:,} learn; {_precision(one)}"
    if model.config.model_type not in KNOWN:
        yield f"  {model.config.model_type} is none of {', '.join(KNOWN)}: what follows is rough"
    yield ""
    several = f"each of {machine.processes} processes{', sharded' if machine.shard else ''}"
    unit = "GiB" if max(memory.total for _, memory in found.values()) > GIB else "MiB"
    yield f"memory of {several if machine.processes > 1 else 'the process'}, {unit}:"
    used = [stage for stage in STAGES if getattr(recipe, stage).steps]
    yield from _table(used, [found[stage] for stage in used], shape, unit)
    documents = len(dataset.training_corpus())
    vectors = environment_bytes(recipe, documents, shape.hidden, machine.processes)
    yield f"  {'vectors of the corpus (main memory)':<38}{_size(vectors, unit)}"
    yield from engine_lines(recipe, shape, *found["stage2"], lengths)
    yield _disk(folder, one, environment_bytes(recipe, documents, shape.hidden, 1), unit)
    yield ""
    work = {
        "stage1": stage1_work(dataset, chat, recipe, lengths, machine.processes, others, theirs),
        "stage2": stage2_work(recipe, lengths, documents, model.config.model_type in KNOWN and not one.shard),
        "measuring": measuring_work(dataset, recipe, lengths),
    }
    yield f"{'':<12}{'steps':>8}{'tokens learnt':>16}{'tokens read':>16}{'generated':>14}{'PFLOP':>12}"
    costs: dict[str, float] = {}
    for name, part in work.items():
        setting = found["stage1" if name == "measuring" else name][0]
        costs[name] = operations(shape, setting, part)
        steps = f"{getattr(recipe, name).steps:,}" if name in STAGES else ""
        tokens = f"{part.learnt:>16,.0f}{part.read:>16,.0f}{part.sampled:>14,.0f}"
        yield f"{name:<12}{steps:>8}{tokens}{costs[name] / 1e15:>12,.3g}"
    if recipe.stage2.generation.served and recipe.stage2.steps:
        yield server_state(recipe.stage2.generation)
    if recipe.stage2.steps:
        yield f"stage 2 encodes at most {refreshed(recipe, documents):,.0f} documents again each generation"
    yield ""
    yield from _time(recipe, dataset, machine, one, found, work, costs)


def _disk(folder: Path, setting: Setting, vectors: int, unit: str) -> str:
    """What a run writes at most, its copy of the data left out."""
    model, checkpoint = 4 * setting.parameters, checkpoint_bytes(setting, vectors)
    there = next(one for one in (folder, *folder.absolute().parents) if one.is_dir())
    wanted, free = 3 * model + 3 * checkpoint + vectors, shutil.disk_usage(there).free
    sizes = (_size(one, unit).strip() for one in (wanted, model, checkpoint, free))
    line = "disk: {} {unit} in {}: base and two models of {} each, three checkpoints of {}; {} are free"
    total, *rest, left = sizes
    line = line.format(total, folder, *rest, left, unit=unit)
    return line if free > wanted else f"{line}, TOO LITTLE"


def _time(
    recipe: Recipe,
    dataset: RetrievalDataset,
    machine: Machine,
    setting: Setting,
    found: dict[str, tuple[Setting, Memory]],
    work: dict[str, Work],
    costs: dict[str, float],
) -> Iterator[str]:
    """Hours at the given speed, else at that of this machine."""
    speed, where = _given(machine), "as given"
    if speed is None:
        most = max(memory.total for _, memory in found.values())
        speed, where = _measured(recipe, dataset, setting, most)
    if speed is None:
        yield f"hours: {where}; say how fast your machine is: --tflops, and --tokens-per-second of generation"
        return
    parts = {
        name: hours(costs[name], part.sampled, speed.teraflops, speed.tokens, machine.processes)
        for name, part in work.items()
    }
    each = ", ".join(f"{name} {value:,.2g}" for name, value in parts.items())
    yield (
        f"hours: {sum(parts.values()):,.2g} ({each}) at {speed.teraflops:,.3g} TFLOP/s and "
        f"{speed.tokens:,.0f} generated tokens a second in each process, {where}"
    )


def _given(machine: Machine) -> Speed | None:
    from searchr3.runs.probe import Speed

    if machine.teraflops is None or machine.tokens is None:
        return None
    return Speed(machine.teraflops, machine.tokens)


def _measured(
    recipe: Recipe, dataset: RetrievalDataset, setting: Setting, most: int
) -> tuple[Speed | None, str]:
    """The speed of this machine, if the model can be loaded here and now; else why not."""
    from searchr3.runs.probe import free_bytes, measure

    if most > free_bytes():
        return None, f"not measured, for {most / GIB:.1f} GiB are not free here"
    texts = [document.content for document in list(dataset.training_corpus().values())[:256]]
    try:
        return measure(make_base_model(recipe), recipe, setting, texts), "measured here just now"
    except SearchR3Error as error:
        return None, f"not measured ({error})"


def _precision(setting: Setting) -> str:
    words = "float32 weights, gradients and optimizer; products in " + ("bf16" if setting.bf16 else "float32")
    words += ", as linear layers are held" * setting.held
    return words + ("; gradient checkpointing" if setting.checkpointing else "")


def _table(
    names: Sequence[str], found: Sequence[tuple[Setting, Memory]], shape: Shape, unit: str
) -> Iterator[str]:
    """One column a stage; rows that are 0 in all are left out."""
    yield f"  {'':<38}" + "".join(f"{name:>10}" for name in names)
    for one in fields(Memory):
        values = [getattr(memory, one.name) for _, memory in found]
        if any(values):
            yield f"  {NAMES[one.name]:<38}" + "".join(_size(value, unit) for value in values)
        if one.name == "activations":
            other = [
                memory.activations // _of_token(shape, setting) * _of_token(shape, _turned(setting))
                for setting, memory in found
            ]
            which = "without" if found and found[0][0].checkpointing else "with"
            words = f"  ({which} gradient checkpointing)"
            yield f"  {words:<38}" + "".join(_size(value, unit) for value in other)
    yield f"  {'peak':<38}" + "".join(_size(memory.total, unit) for _, memory in found)


def _of_token(shape: Shape, setting: Setting) -> int:
    return activations(shape, setting) + at_work(shape, setting)


def _turned(setting: Setting) -> Setting:
    return replace(setting, checkpointing=not setting.checkpointing)


def _size(value: int, unit: str) -> str:
    return f"{value / (GIB if unit == 'GiB' else 2**20):>10.2f}"
