"""Does a trained model still chat: figures by hand, adapters, other vocabularies, what is shown."""

import math
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from searchr3.conversation import EMBED_TOKEN
from searchr3.errors import ModelError
from searchr3.evaluation.chat import (
    FIGURES,
    chat_examples,
    chat_prompts,
    chat_table,
    measure_chat,
    shift,
    still_chats,
)
from searchr3.model import SearchR3
from searchr3.training.adapter import add_adapter
from searchr3.training.recipe import Recipe

PROMPTS = ["Why do cats purr?", "Count to ten.", "Hello!"]


@pytest.fixture(scope="module")
def base(tiny_base: Path) -> SearchR3:
    return SearchR3.from_base(tiny_base)


@pytest.fixture
def model(tiny_model: Path) -> SearchR3:
    return SearchR3(tiny_model)


def perturb(model: SearchR3, names: str = "", scale: float = 0.1) -> SearchR3:
    with torch.no_grad():
        for name, weight in model.model.named_parameters():
            if names in name and "norm" not in name:
                weight += scale * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    return model


# Figures


def test_figures_of_two_tokens_by_hand() -> None:
    """First token: ½ ½ against ¾ ¼; second: the same in both."""
    base = torch.tensor([[0.5, 0.5], [0.9, 0.1]]).log()
    trained = torch.tensor([[0.75, 0.25], [0.9, 0.1]]).log() + torch.tensor([[3.0], [-2.0]])

    found = shift(trained, base)

    forward = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    backward = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert found["kl_base_trained"] == pytest.approx(forward / 2, abs=1e-6)
    assert found["kl_trained_base"] == pytest.approx(backward / 2, abs=1e-6)
    assert shift(torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]]))["same_token"] == 0
    assert found["same_token"] == 1


@given(st.integers(1, 4), st.integers(2, 6), st.integers(0, 99))
def test_figures_keep_their_bounds(tokens: int, words: int, seed: int) -> None:
    logits = torch.randn(2, tokens, words, generator=torch.Generator().manual_seed(seed))

    a, b, same = shift(logits[0], logits[1]), shift(logits[1], logits[0]), shift(logits[0], logits[0] + 5)

    assert a["kl_base_trained"] == b["kl_trained_base"] > 0
    assert 0 <= a["same_token"] <= 1
    assert same == pytest.approx({"kl_base_trained": 0, "kl_trained_base": 0, "same_token": 1}, abs=1e-6)


# Models


def test_a_model_that_did_not_change_is_not_apart(model: SearchR3, base: SearchR3) -> None:
    found = measure_chat(model, base, 5, PROMPTS)

    assert [found[name] for name in FIGURES] == pytest.approx([0, 0, 1], abs=1e-6)
    assert [reply["prompt"] for reply in found["replies"]] == PROMPTS
    assert all(reply["base"] == reply["trained"] for reply in found["replies"])
    assert found["tokens"] == sum(reply["tokens"] for reply in found["replies"]) <= 15


@pytest.mark.parametrize("broken", ["model", "base"])
def test_a_model_that_gives_no_numbers_is_not_said_to_chat_as_its_base(
    model: SearchR3, tiny_base: Path, broken: str
) -> None:
    """A divergence of NaN is not one of 0."""
    sides = {"model": model, "base": SearchR3.from_base(tiny_base)}
    with torch.no_grad():
        next(sides[broken].model.parameters())[:] = math.nan

    with pytest.raises(ModelError, match="gives no numbers"):
        measure_chat(sides["model"], sides["base"], 5, PROMPTS)


def test_the_means_are_over_the_tokens_of_the_bases_replies(model: SearchR3, base: SearchR3) -> None:
    perturb(model)

    found = measure_chat(model, base, 5, PROMPTS)

    logits, tokens = [], len(base.tokenizer)
    for prompt in base.conversation.chat_prompts(PROMPTS):
        ids, start = torch.tensor([prompt]), len(prompt)
        reply = base.model.generate(
            ids, max_new_tokens=5, do_sample=False, eos_token_id=base.tokenizer.eos_token_id
        )
        with torch.no_grad():
            logits.append([one.model(reply).logits[0, start - 1 : -1, :tokens] for one in (model, base)])
    expected = shift(*(torch.cat(side) for side in zip(*logits, strict=True)))
    assert {name: found[name] for name in FIGURES} == pytest.approx(expected, rel=1e-4)
    assert found["kl_base_trained"] > 0.01


def test_an_adapter_counts_as_its_merged_model(
    model: SearchR3, base: SearchR3, toy_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    add_adapter(model, toy_recipe("model.lora={r: 4}"))
    perturb(model, "lora_")

    found = measure_chat(model, base, 5, PROMPTS)
    model.save_pretrained(tmp_path / "merged")
    merged = measure_chat(SearchR3(tmp_path / "merged"), base, 5, PROMPTS)

    assert found["kl_base_trained"] > 1e-3
    for name in FIGURES:
        assert found[name] == pytest.approx(merged[name], rel=1e-3)
    with model.model.disable_adapter():
        assert measure_chat(model, base, 5, PROMPTS)["kl_base_trained"] == pytest.approx(0, abs=1e-6)


def test_a_model_that_says_the_embed_token_instead_is_found_out(model: SearchR3, base: SearchR3) -> None:
    with torch.no_grad():  # every hidden state points to the token
        model.model.model.norm.weight.zero_()
    head = torch.nn.Linear(model.dimension, model.model.config.vocab_size)
    head.bias.data.zero_()[model.conversation.embed_id] = 50
    model.model.set_output_embeddings(head)

    found = measure_chat(model, base, 3, PROMPTS)

    assert found["embed_rate"] == 1
    assert found["kl_base_trained"] > 5 and found["same_token"] == 0
    assert EMBED_TOKEN in found["replies"][0]["trained"]


def test_spare_rows_of_one_model_do_not_count(qwen2_base: Path, qwen2_model: Path) -> None:
    """A base whose matrix is larger, by rows that are no tokens, is the same model."""
    base, model = SearchR3.from_base(qwen2_base), SearchR3(qwen2_model)
    base.model.resize_token_embeddings(base.model.config.vocab_size + 8)

    found = measure_chat(model, base, 4, PROMPTS)

    assert [found[name] for name in FIGURES] == pytest.approx([0, 0, 1], abs=1e-6)


def test_a_base_with_other_tokens_is_refused(model: SearchR3, qwen2_base: Path) -> None:
    with pytest.raises(ModelError, match="have different tokens; give the model that the first was trained"):
        measure_chat(model, SearchR3.from_base(qwen2_base), 4, PROMPTS)


def test_without_its_base_a_model_is_not_measured(model: SearchR3, tiny_base: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()

    assert "not a model folder" in still_chats(model, tmp_path / "empty")["skipped"]
    assert len(still_chats(model, tiny_base, 2)["replies"]) == len(chat_prompts())


# What is shown


def test_the_prompts_are_not_those_of_training() -> None:
    training = resources.files("searchr3").joinpath("chat_prompts.txt").read_text(encoding="utf-8")
    ours = chat_prompts()

    assert len({*ours}) == len(ours) >= 20
    assert not {*ours} & {line.strip() for line in training.splitlines()}


def told(kl: list[float], says: str) -> dict[str, Any]:
    replies = [
        {"prompt": f"p{n}", "base": f"b{n}", "trained": f"{says}{n}", "tokens": 2, "kl_base_trained": one}
        for n, one in enumerate(kl)
    ]
    return {**dict.fromkeys(FIGURES, 0.25), "embed_rate": 0.5, "replies": replies}


def test_examples_are_the_nearest_the_middle_and_the_farthest_of_the_last_model() -> None:
    chats = {"stage1": told([9, 8, 7, 6, 5], "x"), "stage2": told([0.2, 0.5, 0.1, 0.4, 0.3], "y")}

    found = chat_examples(chats)

    assert [one["prompt"] for one in found] == ["p2", "p4", "p1"]
    assert [one["kl_base_trained"] for one in found] == [0.1, 0.3, 0.5]
    assert found[0]["sides"] == [("base", "b2"), ("stage1", "x2"), ("stage2", "y2")]
    assert len(chat_examples({"a": told([1.0], "x")})) == 1
    assert chat_examples({"stage1": {"skipped": "no base"}}) == []


def test_the_table_has_a_row_for_each_model_that_was_measured() -> None:
    table = chat_table({"stage1": {"skipped": "no base"}, "stage2": told([0.1], "y")})

    assert table.row_count == 1
    assert [next(iter(column.cells)) for column in table.columns] == [
        "stage2",
        "0.2500",
        "0.2500",
        "25.0%",
        "50.0%",
    ]
