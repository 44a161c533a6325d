"""What arms and controls show: figures by hand, bounds that do not profit from a choice, plain words."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from searchr3.evaluation.evidence import (
    OWN,
    RUNS,
    TO_BEAT,
    WITHOUT_REWARD,
    label_point,
    student_interval,
    verdict,
    weigh,
)
from searchr3.evaluation.statistics import bootstrap_ci, direction, holm, paired_difference

Values = dict[str, np.ndarray]
QUERIES = 60


@pytest.fixture
def make() -> Callable[..., Values]:
    """`make(control_a=0.05)`: runs above a common base by so much, over 3 seeds, with little noise."""

    def values(seeds: int = 3, noise: float = 0.02, **gains: float) -> Values:
        rng = np.random.default_rng(0)
        base = rng.uniform(0.2, 0.6, QUERIES)
        gains = dict.fromkeys((*TO_BEAT, WITHOUT_REWARD), 0.0) | gains
        return {
            name: base + gain + noise * rng.standard_normal((seeds, QUERIES)) for name, gain in gains.items()
        }

    return values


def row(found: dict, name: str) -> dict:
    return next(one for one in found["differences"] if one["b"] == name)


def test_figures_are_means_over_seeds_and_queries() -> None:
    own = np.array([[0.2, 0.4, 0.6], [0.4, 0.6, 0.8]])
    direct = np.array([[0.1, 0.4, 0.4], [0.3, 0.2, 0.4]])
    bm25 = np.array([[0.0, 0.5, 0.7]])  # has no seed

    found = weigh({OWN: own, "direct1": direct, "bm25": bm25})

    assert (found[OWN], found["direct1"], found["bm25"]) == pytest.approx((0.5, 0.3, 0.4))
    assert row(found, "direct1")["mean"] == pytest.approx(0.2)
    assert row(found, "direct1")["seeds"] == pytest.approx([0.1, 0.3])
    assert row(found, "direct1")["seeds_ci95"] is None  # two seeds tell nothing of their spread
    assert row(found, "bm25")["seeds"] == pytest.approx([0.0, 0.2])
    assert [run["name"] for run in found["runs"]] == ["direct1", OWN, "bm25"]
    assert next(run for run in found["runs"] if run["name"] == OWN)["seeds"] == pytest.approx([0.4, 0.6])


def test_a_difference_is_that_of_the_seed_averages(make: Callable[..., Values]) -> None:
    values = make(**{OWN: 0.1})
    found = weigh(values)

    for name in TO_BEAT:
        one = paired_difference(values[OWN].mean(axis=0), values[name].mean(axis=0))
        here = row(found, name)
        assert (here["mean"], *here["ci95"], here["p"]) == pytest.approx((one.mean, *one.ci95, one.p))
    assert [one["p_holm"] for one in found["differences"]] == holm([one["p"] for one in found["differences"]])


def test_the_interval_of_a_run_is_that_of_its_seed_averages(make: Callable[..., Values]) -> None:
    values = make(noise=0.2, **{OWN: 0.1})
    for run in weigh(values)["runs"]:
        averages = values[run["name"]].mean(axis=0)
        assert run["ci95"] == pytest.approx([*bootstrap_ci(averages)])


def test_the_bounds_are_the_least_of_all_controls() -> None:
    """Every query has the same difference, so that each interval is a point."""
    own = np.random.default_rng(0).uniform(size=(2, 30))
    gains = {name: 0.1 * (place + 1) for place, name in enumerate(TO_BEAT)}
    found = weigh({OWN: own} | {name: own - gain for name, gain in gains.items()})
    bounds = [found[f"reasoned2_minus_best_control{which}"] for which in ("_low", "", "_high")]
    assert found["best_control"] == TO_BEAT[0]
    assert bounds == pytest.approx([0.1, 0.1, 0.1])


def test_the_arms_direct_runs_are_shown_but_not_weighed(make: Callable[..., Values]) -> None:
    found = weigh(make(**{OWN: 0.1, "control_b_direct": 0.9}))
    assert found["control_b_direct"] > 1
    assert "control_b_direct" not in {one["b"] for one in found["differences"]}


gain = st.floats(-0.2, 0.2)


@given(gains=st.fixed_dictionaries(dict.fromkeys(TO_BEAT, gain)), own=gain, seed=st.integers(0, 2**16))
@settings(max_examples=8)
def test_the_best_control_is_not_chosen_to_please(gains: dict[str, float], own: float, seed: int) -> None:
    """Its lower bound is above 0 only where every control's is; the upper one is never below the mean."""
    rng = np.random.default_rng(seed)
    values = {name: rng.uniform(0, 1, (2, 30)) + by for name, by in {**gains, OWN: own}.items()}

    found = weigh(values)

    best, lows = found["best_control"], [row(found, name)["ci95"][0] for name in TO_BEAT]
    assert found[best] == max(found[name] for name in TO_BEAT)
    mean = found["reasoned2_minus_best_control"]
    assert mean == pytest.approx(found[OWN] - found[best])
    assert found["reasoned2_minus_best_control_low"] == min(lows) <= mean
    assert mean <= found["reasoned2_minus_best_control_high"]
    above = all(direction(row(found, name)["ci95"], row(found, name)["p"]) > 0 for name in TO_BEAT)
    assert found["verdict"]["thinking_helped"] is above and (min(lows) > 0 or not above)


def test_the_bounds_hold_what_is_true_in_spite_of_the_choice() -> None:
    """Six controls, all as good: the difference to the best seems below 0, the interval is not."""
    rng = np.random.default_rng(0)
    wrong = seemed = 0
    for _ in range(25):
        found = weigh({name: rng.standard_normal((1, 40)) for name in (OWN, *TO_BEAT)})
        seemed += found["reasoned2_minus_best_control"] < 0
        low, high = (found[f"reasoned2_minus_best_control_{bound}"] for bound in ("low", "high"))
        wrong += not low <= 0 <= high
    assert seemed > 15
    assert wrong <= 4  # 5 % of 25, and the chance of a small sample


@pytest.mark.parametrize("missing", [*TO_BEAT])
def test_thinking_must_be_above_every_control(make: Callable[..., Values], missing: str) -> None:
    values = make(**{OWN: 0.1})
    assert weigh(values)["verdict"]["thinking_helped"] is True
    good = {**values, missing: values[OWN]}
    found = weigh(good)["verdict"]
    assert found["thinking_helped"] is False
    assert RUNS[missing].as_good in " ".join(found["sentences"])

    del values[missing]
    assert weigh(values)["verdict"]["thinking_helped"] is None


def test_a_handful_of_queries_shows_nothing(make: Callable[..., Values]) -> None:
    values = {name: one[:, :4] for name, one in make(**{OWN: 0.1}).items()}
    found = weigh({**values, OWN: values["direct1"] + 0.1})

    assert found["differences"][0]["ci95"][0] > 0
    assert found["verdict"]["thinking_helped"] is False


def test_each_control_is_tested_at_its_own_level_by_interval_and_p() -> None:
    row = {"mean": 0.05, "ci95": [0.01, 0.09], "p": 0.03, "p_holm": 0.2, "seeds": [0.05], "seeds_ci95": None}
    beside = dict.fromkeys(TO_BEAT, row)

    found = verdict(beside, 100)

    assert found["thinking_helped"] is True
    assert "stage 1, direct (+0.050, +0.010 to +0.090)" in found["sentences"][0]
    for weak in ({"ci95": [-0.01, 0.11]}, {"p": 0.06}):
        assert verdict({**beside, "control_e": {**row, **weak}}, 100)["thinking_helped"] is False


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("direct1", "does not pay over the plain start"),
        ("direct2", "without its thoughts"),
        ("control_a", "teach direct search as much"),
        ("control_b", "without the reward"),
        ("control_d", "what the thought says does not matter"),
        ("control_e", "room to compute in"),
        ("control_f", "reading the query twice"),
    ],
)
def test_what_it_says_that_a_control_is_as_good(make: Callable[..., Values], name: str, words: str) -> None:
    values = make(**{OWN: 0.1, name: 0.3})
    (said,) = [one for one in weigh(values)["verdict"]["sentences"] if one.startswith("What this says")]
    assert words in said


def test_a_good_outcome_in_words(make: Callable[..., Values]) -> None:
    thinking, reinforcement, seeds = weigh(make(**{OWN: 0.1}))["verdict"]["sentences"]
    assert thinking.startswith(
        "Thinking helped: stage 2, reasoned is significantly above stage 1, direct (+0.1"
    )
    assert all(RUNS[name].name in thinking for name in TO_BEAT)
    assert reinforcement.startswith("Reinforcement helped: stage 2, reasoned is significantly above (b)")
    assert seeds.startswith("All 3 seeds have one sign on stage 1, direct, ")
    assert all(RUNS[name].name in seeds for name in (*TO_BEAT, WITHOUT_REWARD))


def test_a_bad_outcome_is_said_as_plainly(make: Callable[..., Values]) -> None:
    values = make(**{OWN: 0.1, "control_a": 0.2, WITHOUT_REWARD: 0.3})
    values["control_d"] = values[OWN] + 1e-3 * np.resize([1, -1], QUERIES)

    found = weigh(values)["verdict"]

    text = " ".join(found["sentences"])
    assert (found["thinking_helped"], found["reinforcement_helped"]) == (False, False)
    assert "Thinking did not help. Stage 2, reasoned is significantly below (a) direct only (−0." in text
    assert "On 60 queries stage 2, reasoned cannot be told apart from (d) another query's thought" in text
    assert "the new labels teach direct search as much, at equal cost [(a) direct only]" in text
    assert "Reinforcement did not help. Stage 2, reasoned is significantly below (b)" in text
    assert "Thinking helped" not in text


def test_what_is_not_measured_leaves_the_question_open(make: Callable[..., Values]) -> None:
    values = make(**{OWN: 0.1})
    for name in ("control_e", "control_f", WITHOUT_REWARD):
        del values[name]
    thinking, reinforcement, seeds = weigh(values)["verdict"]["sentences"]
    assert "filler" not in seeds
    assert thinking == (
        "Whether thinking helped is open: not measured against (e) filler tokens and (f) the query repeated."
    )
    assert reinforcement.startswith("Whether reinforcement helped is open")


def test_seeds_that_disagree_are_named(make: Callable[..., Values]) -> None:
    values = make(**{OWN: 0.1})
    values["direct2"] = values[OWN] - np.array([[0.5], [0.5], [-0.1]])

    found = weigh(values)["verdict"]

    assert found["thinking_helped"] is True
    assert found["sentences"][-1] == "The seeds disagree on stage 2, direct: 1 of 3 have the other sign."
    assert "stage 1, direct" in found["sentences"][-2] and "stage 2, direct" not in found["sentences"][-2]


def test_seeds_of_one_sign_that_lie_far_apart_are_told(make: Callable[..., Values]) -> None:
    values = make(**{OWN: 0.1})
    values["direct2"] = values[OWN] - np.array([[0.9], [0.1], [0.1]])
    found = weigh(values)["verdict"]
    assert found["thinking_helped"] is True
    assert found["sentences"][-1] == (
        "For other seeds the difference to stage 2, direct is open: −0.781 to +1.514 by Student's t."
    )


@given(seeds=st.integers(1, 5), gains=st.lists(st.floats(-0.2, 0.2), min_size=5, max_size=5))
@settings(max_examples=10)
def test_seeds_agree_only_where_there_are_three_and_each_has_the_sign(seeds: int, gains: list[float]) -> None:
    rng = np.random.default_rng(0)
    own = np.array(gains[:seeds])[:, None] + 1e-3 * rng.standard_normal((seeds, QUERIES))
    found = weigh({OWN: own, "direct1": np.zeros((seeds, QUERIES))})
    said = f"All {seeds} seeds have one sign on stage 1, direct." in found["verdict"]["sentences"]
    one = row(found, "direct1")
    significant = direction(one["ci95"], one["p"]) != 0
    assert said == (seeds >= 3 and significant and len({*np.sign(one["seeds"])}) == 1)


@pytest.mark.parametrize(("seeds", "words"), [(1, "This is of 1 seed:"), (2, "This is of 2 seeds:")])
def test_few_seeds_are_told(make: Callable[..., Values], seeds: int, words: str) -> None:
    sentences = weigh({name: rows[:seeds] for name, rows in make(**{OWN: 0.1}).items()})["verdict"][
        "sentences"
    ]
    assert sentences[-1].startswith(words)
    assert not any("one sign" in sentence for sentence in sentences)  # of two it is every other time


@given(st.lists(st.floats(-1, 1), min_size=3, max_size=8))
@settings(max_examples=30)
def test_the_spread_of_the_seeds_is_students(means: list[float]) -> None:
    low, high = student_interval(means) or (np.nan, np.nan)
    assert low <= np.mean(means) + 1e-9 and np.mean(means) <= high + 1e-9
    shifted = student_interval([mean + 1 for mean in means])
    assert shifted == pytest.approx([low + 1, high + 1])


def test_students_interval_by_hand() -> None:
    assert student_interval([0.1, 0.3]) is None
    assert student_interval([0.1, 0.2, 0.3]) == pytest.approx(
        [0.2 - 0.2484, 0.2 + 0.2484], abs=1e-4
    )  # t = 4.303


def test_a_point_of_the_curve_over_labels() -> None:
    ones = np.ones((1, 20))
    point = label_point(
        {"direct1": 0.3 * ones, "reasoned1": 0.2 * ones, "direct2": 0.4 * ones, "reasoned2": 0.6 * ones}
    )
    assert (point["direct1"], point["reasoned2"]) == pytest.approx((0.3, 0.6))
    assert (point["stage1"]["mean"], point["stage2"]["mean"]) == pytest.approx((-0.1, 0.2))
    assert point["stage2"]["ci95"] == pytest.approx([0.2, 0.2])
