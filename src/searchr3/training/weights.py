"""The weights of a model in training, whole and merged, under the names of the plain model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from trl.distributed import DistributedBackend

from searchr3.generation import without_wrapper

ADAPTER = "default"
_OF_ADAPTER = ("lora_", "trainable_tokens_")


def is_dealt(model: nn.Module) -> bool:
    """Whether the weights are dealt among processes (FSDP, ZeRO-3)."""
    return any(type(weight.data) is not Tensor or hasattr(weight, "ds_id") for weight in model.parameters())


@torch.no_grad()
def merged_weights(model: PreTrainedModel, accelerator: Any) -> Iterator[tuple[str, Tensor]]:
    """Each weight whole, one at a time, a LoRA adapter merged into it; the model is left as it is.

    TRL's own way to vLLM knows no adapter whose embed token learns (`trainable_token_indices`): it would send
    the embedding under a name that vLLM has not. It also merges in place and takes that back, which rounds
    the base's weights. Collective where weights are dealt among processes.
    """
    backend = DistributedBackend(accelerator)
    inner = without_wrapper(model)
    for name, weight in inner.named_parameters():  # a tied head comes once, as the embedding
        if any(part in name for part in _OF_ADAPTER):
            continue
        place, wrapped, _ = name.rpartition(".base_layer.")
        layer = inner.get_submodule(place) if wrapped else None
        plain = name.replace(".token_adapter", "").replace(".base_layer", "")
        with backend.gather_params([weight] if layer is None else list(layer.parameters())):
            yield plain, _merged(name, weight, layer, accelerator.device)


def _merged(name: str, weight: Tensor, layer: Any, device: torch.device) -> Tensor:
    """A weight whole, with what its layer of PEFT, if it has one, adds to it."""
    whole = _whole(weight, device)
    if layer is None or not name.endswith(".weight"):
        return whole
    if hasattr(layer, "trainable_tokens_delta"):
        rows = torch.tensor(layer.token_indices[ADAPTER], device=whole.device)
        return whole.index_copy(0, rows, _whole(layer.trainable_tokens_delta[ADAPTER], device).to(whole))
    return whole + _whole(layer.get_delta_weight(ADAPTER), device).to(whole)


def _whole(weight: Tensor, device: torch.device) -> Tensor:
    weight = weight.detach()
    return cast(DTensor, weight.to(device)).full_tensor() if isinstance(weight, DTensor) else weight
