"""How long a request would wait: nothing unknown, never more than its own work of each other one."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from searchr3.serving.line import Line

Works = st.lists(st.integers(0, 1000), max_size=20)


@dataclass(eq=False)
class Request:
    waiting: int


def line(works: list[int], turn: int = 10, pace: float = 0.5) -> Line:
    """A line in which a unit of work took `pace` seconds."""
    found = Line(turn, {Request(work) for work in works})
    found.did(1, now=3.0)
    found.did(100, now=3.0 + 100 * pace)
    return found


def test_nothing_is_expected_before_anything_was_done() -> None:
    found = Line(10, {Request(1000)})
    assert found.wait(5) == 0
    found.did(50, now=1.0)  # since when is not known
    assert found.wait(5) == 0


@given(Works, st.integers(0, 1000))
def test_one_waits_for_no_more_than_there_is_and_of_each_for_no_more_than_it_brings(
    works: list[int], own: int
) -> None:
    wait = line(works).wait(own) / 0.5
    assert wait <= sum(works) + 1e-9
    assert wait <= len(works) * max(own, 10) + 1e-9
    if own >= max(works, default=0):
        assert abs(wait - sum(works)) < 1e-6


@given(Works, st.integers(0, 1000), st.integers(0, 1000))
def test_more_work_never_waits_less(works: list[int], one: int, other: int) -> None:
    found = line(works)
    assert found.wait(min(one, other)) <= found.wait(max(one, other))


def test_the_time_in_which_nothing_waited_does_not_count() -> None:
    found = line([10])
    found.rest()
    found.did(10, now=1000.0)
    found.did(10, now=1005.0)
    assert found.wait(10) == 10 * 0.5


def test_steps_that_begin_nothing_are_time_in_which_it_waited() -> None:
    found = Line(1, {Request(8)})
    for second in range(10):
        found.did(0, now=float(second))
    found.did(4, now=10.0)
    assert found.wait(1) == 10 / 4


def test_what_was_long_ago_is_forgotten() -> None:
    found, now = line([10], pace=0.5), 1000.0
    found.rest()
    for _ in range(200):
        found.did(100, now=now)
        now += 200.0
    assert abs(found.wait(10) - 10 * 2.0) < 0.01
