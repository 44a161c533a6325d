"""Sequences and mappings that make their values when asked."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from searchr3.dataset.lazy import Lazy, View, joined


@given(items=st.lists(st.integers(), max_size=8), at=st.slices(8))
def test_a_lazy_sequence_is_its_list(items, at):
    lazy = Lazy(len(items), items.__getitem__)
    assert list(lazy) == items and lazy[at] == items[at]
    assert [lazy[-n] for n in range(1, len(items) + 1)] == items[::-1]
    for outside in (len(items), -len(items) - 1):
        with pytest.raises(IndexError):
            lazy[outside]


@given(st.lists(st.lists(st.integers(), max_size=4), min_size=1, max_size=4))
def test_joined_sequences_are_one(parts):
    assert list(joined(parts)) == [item for part in parts for item in part]


def test_a_lazy_sequence_makes_nothing_before():
    made = []
    lazy = Lazy(3, lambda n: made.append(n) or n)
    assert len(lazy) == 3 and not made
    assert lazy[2] == 2 and made == [2]


def test_a_view_hides_and_changes():
    view = View({"a": 1, "b": 2, "c": 3}, {"b"}, lambda value: 10 * value)
    assert view == {"a": 10, "c": 30} and len(view) == 2
    assert "b" not in view and "d" not in view and view.get("b") is None
