"""What the tables of an evaluation have in common."""

import pytest

from searchr3.evaluation.tables import coloured


@pytest.mark.parametrize(
    ("mean", "ci95", "p", "shown"),
    [
        (0.1, (0.05, 0.15), 0.01, "[green]+0.100[/green]"),
        (-0.1, (-0.15, -0.05), 0.01, "[red]-0.100[/red]"),
        (0.1, (0.05, 0.15), 0.25, "[default]+0.100[/default]"),  # of three queries, say
        (0.1, (-0.05, 0.25), 0.04, "[default]+0.100[/default]"),
    ],
)
def test_only_a_significant_difference_has_a_colour(mean, ci95, p, shown):
    assert coloured({"mean": mean, "ci95": ci95, "p": p}) == shown
