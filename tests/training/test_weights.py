"""Merged weights: those that PEFT itself would merge, and the model as it was."""

import copy
from collections.abc import Callable

import pytest
import torch
from accelerate import Accelerator

from searchr3.model import SearchR3
from searchr3.training.adapter import add_adapter
from searchr3.training.recipe import Recipe
from searchr3.training.weights import merged_weights


@pytest.mark.parametrize("tied", [True, False])
def test_an_adapter_is_merged_under_the_names_of_the_plain_model(
    tied: bool, search: SearchR3, toy_recipe: Callable[..., Recipe]
) -> None:
    model = copy.deepcopy(search.model)
    if not tied:
        model.config.tie_word_embeddings = False
        head = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
        model.lm_head.weight = head
    plain = SearchR3.from_parts(model, search.tokenizer, max_length=96)
    names = [name for name, _ in model.named_parameters()]
    add_adapter(plain, toy_recipe("model.lora={r: 4}"))
    torch.manual_seed(0)
    for weight in plain.model.parameters():
        if weight.requires_grad:
            torch.nn.init.normal_(weight, std=0.3)
    before = {name: weight.clone() for name, weight in plain.model.state_dict().items()}

    found = {name: weight.clone() for name, weight in merged_weights(plain.model, Accelerator(cpu=True))}

    expected = dict(copy.deepcopy(plain.model).merge_and_unload().named_parameters())
    assert list(found) == names
    for name, weight in found.items():
        torch.testing.assert_close(weight, expected[name], atol=1e-6, rtol=1e-5, msg=name)
    assert sum(not torch.equal(found[name], weight) for name, weight in search.model.named_parameters()) > 10
    after = plain.model.state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in before.items())


def test_without_an_adapter_the_weights_are_the_models_own(search: SearchR3) -> None:
    found = dict(merged_weights(search.model, Accelerator(cpu=True)))
    assert list(found) == [name for name, _ in search.model.named_parameters()]
    assert all(torch.equal(found[name], weight) for name, weight in search.model.named_parameters())
