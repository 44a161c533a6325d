"""The pictures of the page of results."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from searchr3.evaluation.page_figures import Bar, Spot, Step, _readable, _spread, forest, ladder, scatter

heights = st.lists(st.floats(0, 1), min_size=1, max_size=12)


@given(heights)
def test_labels_keep_their_order_and_their_distance(found):
    moved = np.array(_spread(found, gap=0.05))
    order = np.argsort(found, kind="stable")
    assert (np.diff(moved[order]) >= 0.05 - 1e-5).all()
    assert moved.mean() == pytest.approx(np.mean(found), abs=1e-4)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=10, unique=True))
def test_labels_with_room_stay_where_they_are(places):
    found = [place / 9 for place in places]
    assert _spread(found, gap=0.1) == pytest.approx(found, abs=1e-5)


def test_a_forest_says_every_difference():
    bars = [Bar("<a> $x$", 0.03, (0.01, 0.05)), Bar("mean", -0.02, (-0.04, 0.0), "accent", pooled=True)]
    svg = forest(bars, "what & why")
    assert 'aria-label="what &amp; why: &lt;a&gt; $x$ +0.030 (+0.010 to +0.050), mean −0.020' in svg
    assert "&lt;a&gt; $x$</text>" in svg and "var(--reasoned)" in svg and "var(--accent)" in svg


def test_a_ladder_takes_steps_without_intervals_and_one_step():
    svg = ladder([Step("0", 0.5)], "tokens", "w", ("direct", 0.4))
    assert "0: 0.500, direct: 0.400" in svg and "var(--direct)" in svg
    assert "var(--direct)" not in ladder([Step("0", 0.5, 0.4, 0.6), Step("4", 0.6)], "tokens", "w")


def test_a_scatter_takes_equal_points():
    spots = [Spot(f"run {i}", 1e-6, 0.0, 0.0, 0.0, "control") for i in range(15)]
    svg = scatter(spots, "seconds", "w", logarithmic=True)
    assert all(f">run {i}</text>" in svg for i in range(15))
    assert "nan" not in svg.lower().replace("nant", "")


@given(st.floats(1e-6, 1e3), st.floats(1.05, 1e5))
def test_a_logarithmic_axis_has_a_few_ticks_however_long_it_is(low, factor):
    ticks = _readable(low, low * factor)
    assert 1 <= len(ticks) <= 5 and ticks == sorted({*ticks})
    assert low <= ticks[0] and ticks[-1] <= low * factor
    assert len({f"{tick:g}" for tick in ticks}) == len(ticks)
