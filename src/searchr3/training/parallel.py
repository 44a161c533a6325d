"""Gradients of several processes (data parallel), summed by hand once a step.

A step of stage 1 makes several backward passes, and its losses are means over the batch of all processes:
what each process adds is a part of the whole, so gradients are summed, not averaged.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from transformers import TrainingArguments

from searchr3.errors import RecipeError
from searchr3.group import Group
from searchr3.training.recipe import Recipe, Stage2Recipe

_BUCKET = 32 * 2**20  # numbers summed in one message


def unsynced(model: torch.nn.Module) -> contextlib.AbstractContextManager[None]:
    """Keeps DDP from averaging gradients at every backward pass."""
    return model.no_sync() if isinstance(model, DistributedDataParallel) else contextlib.nullcontext()


def sum_gradients(model: torch.nn.Module) -> None:
    """Give every process of a DDP model the sum of all processes' gradients.

    A weight that has none in any process stays without: of a gradient of zero AdamW would make a step.
    """
    if not isinstance(model, DistributedDataParallel):
        return
    learning = [weight for weight in model.parameters() if weight.requires_grad]
    found = torch.tensor([weight.grad is not None for weight in learning], dtype=torch.int32)
    found = found.to(learning[0].device)
    dist.all_reduce(found, dist.ReduceOp.MAX, model.process_group)
    learning = [weight for weight, used in zip(learning, found.tolist(), strict=True) if used]
    for weight in learning:
        if weight.grad is None:  # unused in this process, maybe not in another
            weight.grad = torch.zeros_like(weight)
    for bucket in _buckets(learning):
        flat = torch.cat([weight.grad.reshape(-1) for weight in bucket if weight.grad is not None])
        dist.all_reduce(flat, group=model.process_group)
        parts = flat.split([weight.numel() for weight in bucket])
        for weight, part in zip(bucket, parts, strict=True):
            weight.grad = part.view_as(weight)


def _buckets(weights: list[torch.nn.Parameter]) -> Iterator[list[torch.nn.Parameter]]:
    """Neighbours of one dtype, each bucket of `_BUCKET` numbers or one weight."""
    bucket: list[torch.nn.Parameter] = []
    for weight in weights:
        full = sum(one.numel() for one in bucket) + weight.numel() > _BUCKET
        if bucket and (full or weight.dtype != bucket[0].dtype):
            yield bucket
            bucket = []
        bucket.append(weight)
    if bucket:
        yield bucket


def on_one_device(args: TrainingArguments) -> TrainingArguments:
    """Arguments of a process that trains on one GPU, however many it sees.

    transformers would make the batch so many times larger, and give each a part of it (`DataParallel`).
    """
    args._n_gpu = min(args.n_gpu, 1)
    return args


def share_of(batch_size: int, processes: int, pairs: int | None = None) -> int:
    """Pairs of a batch for each process.

    Args:
        pairs: how many there are, if that is known; fewer than a batch are one batch.

    Raises:
        RecipeError: the batch cannot be divided.
    """
    if batch_size % processes:
        raise RecipeError(
            f"stage1.batch_size: {batch_size} pairs cannot be divided among {processes} processes; "
            f"set it to a multiple of {processes}"
        )
    whole = batch_size if pairs is None else min(batch_size, pairs)
    if whole % processes:
        fits = whole - whole % processes
        raise RecipeError(
            f"stage1.batch_size: the {pairs} training pairs are fewer than a batch of {batch_size}, and "
            f"cannot be divided among {processes} processes; "
            + (f"set it to {fits}" if fits else f"train in {pairs} or fewer")
        )
    return whole // processes


def micro_batch(stage: Stage2Recipe, processes: int) -> int:
    """Rollouts that each process learns from at once.

    Raises:
        RecipeError: queries or micro-batches cannot be divided.
    """
    if stage.queries % processes:
        raise RecipeError(
            f"stage2.queries: {stage.queries} queries cannot be divided among {processes} processes; "
            f"set it to a multiple of {processes}"
        )
    own, parts = stage.queries // processes * stage.rollouts, stage.accumulation * stage.updates
    if own % parts:
        raise RecipeError(
            f"stage2.accumulation: the {own} rollouts of each of {processes} processes cannot be made "
            f"into {parts} micro-batches (accumulation × updates); set it lower"
        )
    return own // parts


def check_batches(recipe: Recipe, processes: int) -> None:
    """Whether batches, and the GPUs of vLLM, can be divided among the processes.

    Raises:
        RecipeError: they cannot.
    """
    if recipe.stage1.steps:
        share_of(recipe.stage1.batch_size, processes)
    if not recipe.stage2.steps:
        return
    micro_batch(recipe.stage2, processes)
    engine = recipe.stage2.generation
    if engine.colocated and processes % engine.tensor_parallel:
        raise RecipeError(
            f"stage2.generation.tensor_parallel: {processes} processes cannot be divided into copies on "
            f"{engine.tensor_parallel} GPUs each; set it to a divisor of {processes}"
        )


def check_launcher(environment: Mapping[str, str], lora: bool) -> None:
    """Look whether what `accelerate launch` set up is what this trains with; it speaks through variables.

    Raises:
        RecipeError: it is not.
    """
    if environment.get("ACCELERATE_USE_FSDP", "false").lower() != "true":
        return
    wanted = {"VERSION": ("2", "2: weights are dealt by FSDP2")}
    if environment.get("FSDP_CPU_RAM_EFFICIENT_LOADING", "false").lower() != "false":
        wanted["CPU_RAM_EFFICIENT_LOADING"] = ("false", "false: every process reads the model itself")
    if lora:
        reason = "FULL_STATE_DICT: an adapter's checkpoints are read from its whole weights"
        wanted["STATE_DICT_TYPE"] = ("FULL_STATE_DICT", reason)
    for name, (value, mend) in wanted.items():
        if environment.get(f"FSDP_{name}", "") != value:
            raise RecipeError(f"fsdp_{name.lower()}: set it, in the configuration of accelerate, to {mend}")


def deals_weights(environment: Mapping[str, str]) -> bool:
    """Whether what `accelerate launch` set up may deal the weights among the processes (FSDP, DeepSpeed)."""
    names = ("ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED")
    return any(environment.get(name, "false").lower() == "true" for name in names)


def gathered(own: Tensor, group: Group) -> Tensor:
    """The rows of all processes, (n₀ + n₁ + …, d), in their order; a gradient flows to our own alone."""
    if group.size == 1:
        return own
    parts = [torch.from_numpy(part).to(own) for part in group.gather(own.detach().cpu().numpy())]
    parts[group.rank] = own
    return torch.cat(parts)
