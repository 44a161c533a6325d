"""What all ranks know after they gathered; real processes are in tests/environment/test_processes.py."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from searchr3.errors import SearchR3Error
from searchr3.group import ALONE, bounds, current_group, first_says, on_first, together


@given(st.integers(0, 1000), st.integers(1, 40))
def test_the_parts_cover_all_rows_and_differ_by_one_at_most(rows, size):
    parts = np.diff(bounds(rows, size))
    assert parts.sum() == rows and parts.min() >= 0 and np.ptp(parts) <= 1


@pytest.mark.parametrize("sizes", [[2, 3], [0, 2, 1], [1, 1], [0, 0]])
def test_what_all_ask_lies_rank_after_rank(on_ranks, sizes):
    def work(group):
        start = sum(sizes[: group.rank])
        own = np.arange(start, start + sizes[group.rank])
        (numbers, squares), part = together(group, own, own[:, None] ** 2)
        assert (numbers[part] == own).all() and (squares[part] == own[:, None] ** 2).all()
        return numbers.tolist()

    assert on_ranks(len(sizes), work) == [list(range(sum(sizes)))] * len(sizes)


def test_what_all_ask_alike_is_asked_once(on_ranks):
    def work(group):
        (numbers,), part = together(group, np.arange(4))
        return numbers.tolist(), numbers[part].tolist()

    assert on_ranks(3, work) == [([0, 1, 2, 3], [0, 1, 2, 3])] * 3


def test_equal_bytes_of_another_shape_are_another_question(on_ranks):
    def work(group):
        return len(together(group, np.zeros((2 + group.rank, 0)))[0][0])

    assert on_ranks(2, work) == [5, 5]


def test_only_the_first_works_and_its_failure_is_everyones(on_ranks):
    done = []
    on_ranks(3, lambda group: on_first(group, lambda: done.append(group.rank)))
    assert done == [0]

    def work(group):
        try:
            on_first(group, lambda: 1 // 0)
        except (SearchR3Error, ZeroDivisionError) as error:
            return type(error)

    assert on_ranks(2, work) == [ZeroDivisionError, SearchR3Error]


def test_the_first_decides(on_ranks):
    assert on_ranks(3, lambda group: first_says(group, 7 + group.rank)) == [7, 7, 7]


def test_a_run_without_other_processes_is_alone():
    assert current_group() is ALONE
    (part,) = ALONE.gather(np.arange(3))
    assert part.tolist() == [0, 1, 2]
