"""The weights of a model in training, whole and merged, under the names of the plain model."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from trl.distributed import DistributedBackend

from searchr3.errors import DataError, SearchR3Error
from searchr3.generation import is_dealt, without_wrapper
from searchr3.saving import OF_ADAPTER, plain_name

ADAPTER = "default"


@torch.no_grad()
def merged_weights(model: PreTrainedModel, accelerator: Any) -> Iterator[tuple[str, Tensor]]:
    """Each weight whole, one at a time, float32, a LoRA adapter merged into it; the model is left as it is.

    TRL's own way to vLLM knows no adapter whose embed token learns (`trainable_token_indices`): it would send
    the embedding under a name that vLLM has not. It also merges in place and takes that back, which rounds
    the base's weights. Collective where weights are dealt among processes.
    """
    backend = DistributedBackend(accelerator)
    inner = without_wrapper(model)
    for name, weight in inner.named_parameters():  # a tied head comes once, as the embedding
        if any(part in name for part in OF_ADAPTER):
            continue
        place, wrapped, _ = name.rpartition(".base_layer.")
        layer = inner.get_submodule(place) if wrapped else None
        with backend.gather_params([weight] if layer is None else list(layer.parameters())):
            yield plain_name(name), _merged(name, weight, layer, accelerator.device)


@contextlib.contextmanager
def ends_in_one_unit(model: PreTrainedModel | None) -> Iterator[None]:
    """While FSDP deals the weights: lets an adapter's embedding and head stay in the outermost unit.

    accelerate makes units of their own of the two, unless they are tied; but it does not see that they are
    where an adapter wraps them, and their common weights cannot be in two units.
    """
    if model is None or not hasattr(model, "peft_config"):
        yield
        return
    hidden: Any = model
    hidden.get_input_embeddings = hidden.get_output_embeddings = lambda: None
    try:
        yield
    finally:
        del hidden.get_input_embeddings, hidden.get_output_embeddings


@torch.no_grad()
def give_weights(model: torch.nn.Module, whole: Mapping[str, Tensor]) -> None:
    """Write `whole` weights, by their names, to a model whose own may be dealt by FSDP.

    Raises:
        SearchR3Error: they are dealt by ZeRO-3.
    """
    for name, weight in model.named_parameters():
        if hasattr(weight, "ds_id"):
            raise SearchR3Error(
                "stage2.beta: ZeRO-3 takes no second model; use FSDP, ZeRO-2 or model.lora, or set it to 0"
            )
        weight.copy_(_dealt_like(whole[name], weight))


@torch.no_grad()
def load_dealt_adapter(model: PreTrainedModel, folder: Path) -> None:
    """Give an adapter in a model whose weights are dealt (FSDP) what a checkpoint holds.

    torch's own way stumbles over a weight that has two names, as a tied embed token has.

    Raises:
        DataError: it holds no adapter.
    """
    file = folder / "adapter_model.safetensors"
    if not file.is_file():
        raise DataError(
            f"{file}: no such file; an adapter under FSDP needs fsdp_state_dict_type: FULL_STATE_DICT in the "
            "configuration of accelerate"
        )
    saved = load_file(file)
    for name, weight in model.named_parameters():
        if f".{ADAPTER}" in name:
            weight.copy_(_dealt_like(saved[name.replace(f".{ADAPTER}", "")], weight))


def whole_model(model: PreTrainedModel, accelerator: Any) -> PreTrainedModel:
    """The trained model as a model of one process; where weights are dealt, a copy, with any adapter merged.

    Collective; each process gets it.
    """
    model = accelerator.unwrap_model(model)
    if not is_dealt(model):
        return model.eval()
    inner = without_wrapper(model)
    plain = AutoModelForCausalLM.from_config(
        inner.config, dtype=torch.float32, attn_implementation=inner.config._attn_implementation
    )
    plain.generation_config = inner.generation_config
    with torch.no_grad():
        for name, weight in merged_weights(model, accelerator):
            plain.get_parameter(name).copy_(weight)
    return plain.to(accelerator.device).eval()


def _merged(name: str, weight: Tensor, layer: Any, device: torch.device) -> Tensor:
    """A weight whole, with what its layer of PEFT, if it has one, adds to it."""
    whole = _whole(weight, device).float()  # an adapter adds less than bf16 can tell
    if layer is None or not name.endswith(".weight"):
        return whole
    if hasattr(layer, "trainable_tokens_delta"):
        rows = torch.tensor(layer.token_indices[ADAPTER], device=whole.device)
        return whole.index_copy(0, rows, _whole(layer.trainable_tokens_delta[ADAPTER], device).to(whole))
    return whole + _whole(layer.get_delta_weight(ADAPTER), device).to(whole)


def _dealt_like(value: Tensor, weight: Tensor) -> Tensor:
    value = value.detach().to(weight.device)
    if isinstance(weight, DTensor):
        return distribute_tensor(value, weight.device_mesh, weight.placements)
    return value


def _whole(weight: Tensor, device: torch.device) -> Tensor:
    weight = weight.detach()
    return cast(DTensor, weight.to(device)).full_tensor() if isinstance(weight, DTensor) else weight
