"""What a rollout is paid under a length cost: silence where thinking does not pay, thought where it does."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from searchr3.errors import RecipeError
from searchr3.model import SearchR3
from searchr3.training.groups import Rollouts
from searchr3.training.recipe_file import load_recipe
from searchr3.training.rewards import RewardRecipe, rewards

CHARGED = {"stage2": {"scale_rewards": "batch", "reward": {"length": 0.01}}}
NDCG = st.integers(0, 100).map(lambda value: value / 100)


def advantages(paid: torch.Tensor, size: int) -> torch.Tensor:
    """As TRL's with `scale_rewards: batch`: less the group's mean, over the spread of all."""
    groups = paid.view(-1, size)
    return (groups - groups.mean(dim=1, keepdim=True)) / (paid.std() + 1e-4)


@pytest.fixture(scope="module")
def chat(tiny_model: Path):
    return SearchR3(tiny_model).conversation


def rollouts(chat, lengths: list[int], size: int) -> Rollouts:
    """Thoughts of these lengths, each ended by the embed token."""
    word = chat.thought_ids(["date"])[0][0]
    said = [[word] * length + [chat.embed_id] for length in lengths]
    return Rollouts(["q"] * len(said), [[1]] * len(said), said, size, chat)


def test_the_longer_thought_is_better_where_its_gain_exceeds_its_cost(chat) -> None:
    """Two groups of two: at once, and after 8 tokens. In the first thinking gains 0.1, in the second 0.05."""
    ndcg, both = torch.tensor([0.4, 0.5, 0.4, 0.45]), rollouts(chat, [0, 8, 0, 8], 2)
    for length, better in ((0.0, (1, 1)), (0.01, (1, 0)), (0.02, (0, 0))):
        settings = RewardRecipe(length=length, format=0.2)
        found = advantages(rewards(ndcg, both, settings), 2)
        assert tuple(found.argmax(dim=1).tolist()) == better


@given(st.lists(st.tuples(NDCG, st.integers(0, 12)), min_size=4, max_size=4), st.data())
def test_the_order_in_a_group_is_that_of_gain_less_cost(chat, group, data) -> None:
    """And what is paid for form tells nobody apart: a token at once is as well formed as any thought."""
    settings = RewardRecipe(
        length=data.draw(st.sampled_from([0.001, 0.01, 0.1])),
        format=data.draw(st.sampled_from([0.0, 0.3])),
        free_tokens=data.draw(st.integers(0, 6)),
    )
    ndcg = torch.tensor([value for value, _ in group])
    net = torch.tensor(
        [value - settings.length * max(0, tokens - settings.free_tokens) for value, tokens in group]
    )

    paid = rewards(ndcg, rollouts(chat, [tokens for _, tokens in group], 4), settings)

    torch.testing.assert_close(paid - paid.mean(), net - net.mean(), atol=1e-6, rtol=0)


def test_without_the_token_nothing_is_well_formed(chat) -> None:
    word = chat.thought_ids(["date"])[0][0]
    both = Rollouts(["q"] * 2, [[1]] * 2, [[word, chat.embed_id], [word]], 2, chat)
    paid = rewards(torch.zeros(2), both, RewardRecipe(length=0.01, format=0.5))
    torch.testing.assert_close(paid, torch.tensor([0.49, -0.01]))


def test_the_fixed_answer_is_formed_only_where_length_costs(chat) -> None:
    one = Rollouts(["q"], [[1]], [[*chat.answer_ids, chat.embed_id]], 1, chat)
    assert rewards(torch.zeros(1), one, RewardRecipe(format=0.5)).item() == 0
    cost = 0.01 * len(chat.answer_ids)
    assert rewards(torch.zeros(1), one, RewardRecipe(length=0.01, format=0.5)).item() == pytest.approx(
        0.5 - cost
    )


def test_a_cost_is_in_ndcg() -> None:
    settings = RewardRecipe(ndcg=2.0, length=0.01, free_tokens=3)
    assert settings.cost(13.0) == pytest.approx(0.05)
    assert settings.cost(2.0) == 0
    assert RewardRecipe().cost(100.0) == 0


def test_a_thought_has_one_token_at_least_unless_length_costs() -> None:
    assert RewardRecipe().least == 1
    assert RewardRecipe(least_tokens=0).least == 0
    assert RewardRecipe(least_tokens=5).least == 5
    assert RewardRecipe(length=0.01).least is None
    assert RewardRecipe(length=0.01, least_tokens=0).least is None


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["stage2.reward.length=0.01", "stage2.reward.least_tokens=3"], "least_tokens=0 or length=0"),
        (["stage2.reward.length=0.01"], "set scale_rewards=batch"),
        (["stage2.reward.free_tokens=3"], "means nothing without length"),
    ],
)
def test_settings_that_work_against_each_other_are_refused(overrides: list[str], says: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe({}, overrides)
    assert says in str(caught.value)


def test_a_recipe_with_a_length_cost_can_be_saved_and_read_again() -> None:
    recipe = load_recipe(CHARGED)
    assert load_recipe(recipe.dump()) == recipe
    assert recipe.stage2.reward.length == 0.01
    quick = ["stage2.reward.length=0.005", "stage2.reward.least_tokens=0", "stage2.scale_rewards=none"]
    assert load_recipe("quickstart", quick).stage2.reward.least is None


def test_the_best_checkpoint_is_chosen_by_what_the_reward_wants() -> None:
    """A hair worse with half the tokens is better, once tokens cost; else the start would always be kept."""
    from searchr3.training.stage2 import Stage2Trainer

    def score(length: float, reasoned: float, tokens: float) -> float:
        trainer = Stage2Trainer.__new__(Stage2Trainer)
        cost = RewardRecipe(length=length).cost(tokens)
        figures = {"direct": 0.4, "reasoned": reasoned, "thinking_tokens": tokens}
        return trainer.dev_score(figures | ({"thinking_cost": cost} if length else {}))

    assert score(0.0, 0.50, 8.0) == pytest.approx(0.45)
    assert score(0.01, 0.50, 8.0) == pytest.approx(0.41)
    assert score(0.0, 0.50, 8.0) > score(0.0, 0.49, 4.0)
    assert score(0.01, 0.50, 8.0) < score(0.01, 0.49, 4.0)
