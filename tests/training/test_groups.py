"""Rollouts in groups: what counts as thinking, what a group teaches, and why it does not."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from searchr3.model import SearchR3
from searchr3.training.groups import (
    SATURATED,
    Rollouts,
    gain_figures,
    group_figures,
    of_all,
    rollout_key,
    with_direct,
)

SHARES = st.floats(0, 1, width=32)


def groups(size: int = 4):
    row = st.lists(SHARES, min_size=size, max_size=size)
    flat = SHARES.map(lambda value: [value] * size)
    return st.lists(st.one_of(row, flat), min_size=1, max_size=6).map(torch.tensor)


@given(groups(), st.data())
def test_groups_vary_or_there_is_one_cause(ndcg: torch.Tensor, data: st.DataObject) -> None:
    rank = torch.tensor(data.draw(st.lists(st.integers(1, 9), min_size=ndcg.numel(), max_size=ndcg.numel())))
    alike = torch.tensor(data.draw(st.lists(st.booleans(), min_size=len(ndcg), max_size=len(ndcg))))

    figures = group_figures(ndcg, rank.view_as(ndcg), 5, alike)

    causes = [value for name, value in figures.items() if name.startswith("zero_variance_")]
    assert len(causes) == 4
    assert figures["groups_with_variance"] + sum(causes) == pytest.approx(1, abs=1e-6)
    assert figures["groups_useful"] <= figures["groups_with_variance"]
    assert figures["groups_useful"] + figures["groups_saturated"] <= 1 + 1e-6
    assert all(0 <= value <= 1 for value in figures.values())


def test_each_cause_by_itself() -> None:
    ndcg = torch.tensor(
        [[0.5, 0.5], [1.0, 1.0], [0.2, 0.2], [0.4, 0.4], [0.30, 0.32], [0.995, 0.999], [0.3, 0.305], [1.0, 1]]
    )
    rank = torch.tensor([[2, 2], [1, 1], [70, 60], [3, 3], [51, 52], [1, 1], [9, 8], [1, 1]])
    alike = torch.tensor([False] * 7 + [True])

    figures = group_figures(ndcg, rank, 50, alike)

    eighths = {name: round(8 * value) for name, value in figures.items()}
    assert eighths == {
        "groups_with_variance": 3,
        "groups_useful": 1,
        "groups_saturated": 3,
        "groups_hopeless": 2,
        "zero_variance_same": 1,
        "zero_variance_saturated": 1,
        "zero_variance_hopeless": 1,
        "zero_variance_other": 2,
    }
    assert SATURATED == 0.99


@given(groups(), st.data())
def test_the_gain_is_told_from_its_size(ndcg: torch.Tensor, data: st.DataObject) -> None:
    direct = torch.tensor(data.draw(st.lists(SHARES, min_size=len(ndcg), max_size=len(ndcg))))

    figures = gain_figures(ndcg, direct)

    assert figures["reward_gain"] == pytest.approx(ndcg.mean().item() - direct.mean().item(), abs=1e-5)
    assert abs(figures["reward_gain"]) <= figures["reward_moved"] + 1e-6
    assert 0 <= figures["gain_share"] <= 1


def test_the_gain_of_thoughts_that_help_one_query_and_harm_another() -> None:
    figures = gain_figures(torch.tensor([[0.6, 0.5, 0.5], [0.1, 0.2, 0.3]]), torch.tensor([0.5, 0.3]))

    assert figures["reward_direct"] == pytest.approx(0.4)
    assert figures["reward_gain"] == pytest.approx(-0.2 / 6, abs=1e-6)
    assert figures["reward_moved"] == pytest.approx(0.4 / 6, abs=1e-6)
    assert figures["gain_share"] == pytest.approx(1 / 6)


def test_the_fixed_answer_takes_the_last_place_of_each_group() -> None:
    assert with_direct([[1], [2], [3], [4]], 2, [7, 8], 9) == [[1], [7, 8, 9], [3], [7, 8, 9]]


def test_a_rollout_is_named_by_where_its_prompt_ends_too() -> None:
    assert rollout_key([1, 2], [3]) != rollout_key([1], [2, 3])


def test_a_rollout_that_was_put_in_is_no_thinking(tiny_model: Path) -> None:
    """Its tokens, its emission and its reward are left out, but its reward makes its group vary."""
    chat = SearchR3(tiny_model).conversation
    thought = chat.thought_ids(["parse the date"])[0]
    sampled = [[*thought, chat.embed_id], [*thought, chat.embed_id], thought]
    completions = with_direct([*sampled, [], *sampled[:1] * 3, []], 4, chat.answer_ids, chat.embed_id)
    prompts = chat.reasoning_prompts(["date"] * 4 + ["list"] * 4)
    ndcg = torch.tensor([0.5, 0.5, 0.2, 0.9, 0.5, 0.5, 0.5, 0.9])
    rank = torch.tensor([2, 2, 4, 1] * 2)

    def figures(direct: bool) -> dict[str, float]:
        rollouts = Rollouts(["a"] * 4 + ["b"] * 4, prompts, completions, 4, chat, direct)
        assert rollouts.asked == ["a", "b"]
        return rollouts.figures(ndcg, rank, torch.tensor([0.5, 0.5]), 50)

    without, every = figures(True), figures(False)

    assert without["thinking_tokens"] == len(thought)
    assert without["emission_rate"] == pytest.approx(5 / 6)
    assert without["distinct_rollouts"] == pytest.approx(3 / 6)
    assert without["reward_ndcg"] == pytest.approx(2.7 / 6)
    assert without["reward_gain"] == pytest.approx(-0.05)
    assert without["rank_median"] == 2
    assert without["groups_with_variance"] == without["groups_useful"] == 1
    assert every["emission_rate"] == pytest.approx(7 / 8)
    assert every["distinct_rollouts"] == pytest.approx(5 / 8)
    assert every["reward_ndcg"] == pytest.approx(4.5 / 8)


def test_one_thought_said_by_all_is_told_as_such(tiny_model: Path) -> None:
    chat = SearchR3(tiny_model).conversation
    prompts = chat.reasoning_prompts(["date"] * 2)
    half, one = torch.tensor([0.5, 0.5]), torch.tensor([1, 1])

    def cause(completions: list[list[int]]) -> str:
        rollouts = Rollouts(["a", "a"], prompts, completions, 2, chat)
        figures = rollouts.figures(half, one, half[:1], 50)
        return next(name for name, value in figures.items() if name.startswith("zero_") and value == 1)

    assert cause([[7], [7]]) == "zero_variance_same"
    assert cause([[7], [8]]) == "zero_variance_other"


@pytest.mark.parametrize("size", [1, 3])
def test_all_processes_have_the_same_figures(size: int, on_ranks: Callable[..., list]) -> None:
    """Else the health monitor would end the stage on some of them only, and the others wait for ever."""
    own = [{"emission_rate": 0.1, "gain": -1 / 3}, {"emission_rate": 0.4, "gain": 0.0}]
    own.append({"emission_rate": 1.0, "gain": 1.0})

    found = on_ranks(size, lambda group: of_all(own[group.rank], group))

    assert all(figures == found[0] for figures in found)
    if size == 1:
        assert found[0] == own[0]
    else:
        assert found[0] == pytest.approx({"emission_rate": 0.5, "gain": 2 / 9})
