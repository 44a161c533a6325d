"""The precision of forward passes: bf16 where the processor computes in it, float32 elsewhere."""

from __future__ import annotations

from collections.abc import Callable

import torch

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
