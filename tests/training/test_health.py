"""The health monitor: silent within its limits, one alarm a cause, again after recovery, never by chance."""

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from searchr3.training.health import HealthMonitor, HealthRecipe

WELL = {
    "emission_rate": 0.99,
    "thinking_tokens": 6.0,
    "reward_moved": 0.08,
    "reward_gain": -0.02,
    "distinct_rollouts": 0.9,
    "groups_useful": 0.7,
}
ILL = {
    "emission": {"emission_rate": 0.5},
    "length": {"thinking_tokens": 2.0},
    "moved": {"reward_moved": 0.001},
    "gain": {"reward_gain": -0.05},
    "gain_fall": {"reward_gain": -0.2},
    "distinct": {"distinct_rollouts": 0.2},
    "useful": {"groups_useful": 0.1},
}
WINDOW = 3
ALL = HealthRecipe(window=WINDOW, gain=-0.03)


def run(monitor: HealthMonitor, steps: list[dict[str, float]], start: int = 1) -> list[tuple[int, str]]:
    return [
        (alarm.step, alarm.name)
        for step, figures in enumerate(steps, start)
        for alarm in monitor.observe(step, WELL | figures)
    ]


def test_silence_that_is_asked_for_raises_no_alarm() -> None:
    """With a length cost; but a loss of quality, or of the embed token, does as ever."""
    raised = {
        name
        for name, figures in ILL.items()
        for _, name in run(HealthMonitor(ALL, quiet=True), [*[{}] * WINDOW, *[figures] * WINDOW * 2])
    }
    assert raised == {"emission", "gain", "gain_fall"}


def only(name: str) -> HealthRecipe:
    """All alarms off but one."""
    off = {key: None for key in ILL if key != name}
    return HealthRecipe(window=WINDOW, **(off | ({"gain": -0.03} if name == "gain" else {})))


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "emission_rate": st.floats(0.8, 1),
                "thinking_tokens": st.floats(6, 12),
                "reward_moved": st.floats(0.01, 1),
                "reward_gain": st.floats(-0.03, 0.07),
                "distinct_rollouts": st.floats(0.5, 1),
                "groups_useful": st.floats(0.2, 1),
                "loss": st.floats(),
            }
        ),
        max_size=30,
    )
)
def test_within_the_limits_it_is_silent(steps: list[dict[str, float]]) -> None:
    assert run(HealthMonitor(ALL), steps) == []


@pytest.mark.parametrize("name", ILL)
def test_each_cause_alarms_once_until_it_has_recovered(name: str) -> None:
    monitor = HealthMonitor(only(name))
    well, ill = [{}] * WINDOW, [ILL[name]] * WINDOW * 3

    first = run(monitor, [*well, *ill])
    assert [found for _, found in first] == [name]
    assert WINDOW < first[0][0] <= 2 * WINDOW
    assert monitor.active == [name]
    flutter = run(monitor, [{}, ILL[name], ILL[name]] * 4, 20)  # back and forth is no recovery
    assert flutter == []
    run(monitor, [{}] * 3 * WINDOW, 40)
    assert monitor.active == []
    again = run(monitor, ill, 60)
    assert [found for _, found in again] == [name]
    assert [alarm.name for alarm in monitor.alarms] == [name, name]


@pytest.mark.parametrize("name", ILL)
def test_an_alarm_says_what_it_is_about(name: str) -> None:
    monitor = HealthMonitor(only(name))
    run(monitor, [*[{}] * WINDOW, *[ILL[name]] * WINDOW])

    alarm = monitor.alarms[0]

    assert alarm.as_dict().keys() == {"step", "name", "value", "threshold", "message"}
    assert alarm.value < alarm.threshold
    assert "limit" in alarm.message and ";" in alarm.message and "\n" not in alarm.message


@given(st.sampled_from(sorted(ILL)), st.integers(0, 12), st.integers(0, 12))
def test_a_threshold_of_null_never_alarms(name: str, well: int, ill: int) -> None:
    monitor = HealthMonitor(HealthRecipe(window=WINDOW, **dict.fromkeys(ILL)))

    assert run(monitor, [*[{}] * well, *[ILL[name]] * ill]) == []


def test_nothing_is_judged_before_the_first_window_is_full() -> None:
    monitor = HealthMonitor(ALL)

    assert run(monitor, [ILL["emission"]] * (WINDOW - 1)) == []
    assert run(monitor, [ILL["emission"]], WINDOW) == [(WINDOW, "emission")]


def test_what_is_relative_is_so_to_the_first_window() -> None:
    """Short thoughts, and thoughts that cost something, are no alarm where the run began with them."""
    short = {"thinking_tokens": 1.0, "reward_gain": -0.3}
    assert run(HealthMonitor(HealthRecipe(window=WINDOW)), [short] * 10) == []

    slow = [{"thinking_tokens": 6.0 - 0.1 * step} for step in range(50)]
    (step, name), *others = run(HealthMonitor(only("length")), slow)
    assert (name, others) == ("length", [])
    assert 6.0 - 0.1 * (step - 2) < 0.5 * 5.9 <= 6.0 - 0.1 * (step - 3)


@given(
    st.lists(st.sampled_from(["well", "ill", math.nan, math.inf, "missing"]), max_size=40),
    st.sampled_from(sorted(ILL)),
)
def test_what_is_no_number_is_as_if_the_step_had_not_been(kinds: list[object], name: str) -> None:
    figure = next(iter(ILL[name]))

    def steps(kinds: list[object]) -> list[dict[str, float]]:
        good = {"well": WELL[figure], "ill": ILL[name][figure]}
        return [
            {} if kind == "missing" else {figure: good.get(kind, kind)}  # type: ignore[arg-type,misc]
            for kind in kinds
        ]

    broken, clean = HealthMonitor(only(name)), HealthMonitor(only(name))
    for step, figures in enumerate(steps(kinds), 1):
        broken.observe(step, figures)
    for step, figures in enumerate(steps([kind for kind in kinds if kind in ("well", "ill")]), 1):
        clean.observe(step, figures)

    assert [alarm.value for alarm in broken.alarms] == [alarm.value for alarm in clean.alarms]
    assert broken.active == clean.active


@given(st.lists(st.booleans(), max_size=40), st.integers(0, 40), st.sampled_from(sorted(ILL)))
def test_a_resumed_monitor_goes_on_as_if_nothing_had_been(ill: list[bool], cut: int, name: str) -> None:
    steps = [ILL[name] if one else {} for one in ill]
    whole, before, after = HealthMonitor(ALL), HealthMonitor(ALL), HealthMonitor(ALL)
    run(whole, steps)

    run(before, steps[:cut])
    after.load_state_dict(json.loads(json.dumps(before.state_dict())))
    run(after, steps[cut:], cut + 1)

    assert after.alarms == whole.alarms
    assert after.state_dict() == whole.state_dict()


def test_the_quickstart_does_not_cry_wolf_and_thinking_collapse_does() -> None:
    """Figures as in docs/log.md: a run that is well, and one that learnt to say one neutral phrase."""
    assert run(HealthMonitor(HealthRecipe()), [{"distinct_rollouts": 0.86, "groups_useful": 0.6}] * 40) == []

    fallen = {"thinking_tokens": 3.0, "distinct_rollouts": 0.15, "groups_useful": 0.19, "reward_gain": -0.005}
    found = run(HealthMonitor(HealthRecipe()), [*[{"thinking_tokens": 9.2}] * 12, *[fallen] * 12])

    assert {name for _, name in found} == {"length", "distinct", "useful"}
