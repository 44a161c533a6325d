"""Precision: of forward passes, bf16 where the processor computes in it; of weights that are frozen."""

from __future__ import annotations

from collections.abc import Callable

import torch

from searchr3.errors import RecipeError
from searchr3.model import SearchR3
from searchr3.training.recipe import Recipe


def computes_bf16() -> bool:
    """Whether bf16 is computed here and not emulated: on a CPU without it, it is slower than float32."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    ask: Callable[[], dict[str, object]] = getattr(torch.cpu, "get_capabilities", dict)  # not in older torch
    capabilities = ask()
    return any(there is True for name, there in capabilities.items() if "bf16" in name)


def precision(recipe: Recipe) -> torch.dtype | None:
    """Autocast type of forward passes, None for float32."""
    wanted = recipe.model.precision
    return torch.bfloat16 if wanted == "bf16" or (wanted == "auto" and computes_bf16()) else None


def held(recipe: Recipe, dealt: bool = False) -> torch.dtype | None:
    """Type in which the matrices of linear layers can be held, None for float32.

    With an adapter they are frozen, so that to which autocast rounds them anyway. Weights that learn stay
    float32.

    Args:
        dealt: the weights may be dealt among processes: FSDP and DeepSpeed see to types themselves.
    """
    return None if recipe.model.lora is None or dealt else precision(recipe)


def check_held(search: SearchR3, recipe: Recipe) -> None:
    """Look whether a recipe can train a model as its weights are held.

    Raises:
        RecipeError: linear layers were loaded to stay as they are (`SearchR3(products=…)`), and are to learn.
    """
    if search.exact and held(recipe) is None:
        raise RecipeError(
            "model.lora: the model was loaded with products=, for adapters under bf16 (model.lora, "
            "model.precision=bf16); load it without"
        )
