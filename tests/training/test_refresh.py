"""The environment's part of the recipe."""

from typing import Any

import pytest
from pydantic import ValidationError

from searchr3.environment import Certified, Corrected, Frozen, Full, Neighbourhood, Random
from searchr3.training.refresh import EnvironmentRecipe, refresh_policy


def policy(**values: Any) -> Any:
    return refresh_policy(EnvironmentRecipe(**values), temperature=0.3, seed=5)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("full", Full),
        ("frozen", Frozen),
        ("random", Random),
        ("neighbourhood", Neighbourhood),
        ("corrector", Corrected),
        ("certified", Certified),
    ],
)
def test_each_name_is_its_policy(name: str, kind: type) -> None:
    assert type(policy(policy=name)) is kind


def test_certified_gets_what_the_recipe_says() -> None:
    found = policy(epsilon=0.01, delta=0.1, calibration=0.3, correct=False, candidates=40, budget=64)
    assert (found.epsilon, found.delta, found.calibration, found.corrector) == (0.01, 0.1, 0.3, None)
    assert (found.candidates, found.temperature, found.max_budget, found.seed) == (40, 0.3, 64, 5)


@pytest.mark.parametrize("name", ["neighbourhood", "random", "corrector"])
def test_a_budget_below_one_is_a_share(name: str) -> None:
    def budget(value: Any) -> Any:
        found = policy(policy=name, budget=value)
        return getattr(found, "inner", found).budget

    assert budget(0.5) == 0.5
    assert budget(64) == 64 and isinstance(budget(64), int)


def test_who_draws_needs_a_budget() -> None:
    assert policy(policy="neighbourhood", budget=None).budget is None
    assert policy(budget=None).max_budget is None
    for name in ("random", "corrector"):
        with pytest.raises(ValidationError, match="`full` encodes everything"):
            EnvironmentRecipe(policy=name, budget=None)


def test_a_budget_of_one_and_a_half_documents_is_refused() -> None:
    with pytest.raises(ValidationError, match="neither a share below 1 nor a whole number"):
        EnvironmentRecipe(budget=1.5)
    with pytest.raises(ValidationError, match="one document a step; for all of them say `policy: full`"):
        EnvironmentRecipe(budget=1.0)  # meant as a share of 100 %
