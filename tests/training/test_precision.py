from collections.abc import Callable

import pytest
import torch

from searchr3.training.precision import computes_bf16, precision
from searchr3.training.recipe import Recipe


@pytest.mark.parametrize(
    ("wanted", "computes", "found"),
    [
        ("bf16", True, torch.bfloat16),
        ("bf16", False, torch.bfloat16),
        ("fp32", True, None),
        ("auto", True, torch.bfloat16),
        ("auto", False, None),
    ],
)
def test_auto_is_bf16_where_the_processor_computes_in_it(
    monkeypatch: pytest.MonkeyPatch,
    toy_recipe: Callable[..., Recipe],
    wanted: str,
    computes: bool,
    found: torch.dtype | None,
) -> None:
    monkeypatch.setattr("searchr3.training.precision.computes_bf16", lambda: computes)
    assert precision(toy_recipe(f"model.precision={wanted}")) is found


@pytest.mark.parametrize(
    ("capabilities", "found"),
    [
        ({"avx2": True, "avx512_bf16": True, "amx_bf16": False}, True),
        ({"avx2": True, "avx512_bf16": False, "amx_bf16": True}, True),
        ({"avx2": True, "avx512_bf16": False, "cpu_name": "bf16 in name only"}, False),
        ({}, False),
    ],
)
def test_a_cpu_is_asked_what_it_can_do(
    monkeypatch: pytest.MonkeyPatch, capabilities: dict[str, object], found: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert computes_bf16() is found


def test_a_torch_that_cannot_say_gets_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert not computes_bf16()
