"""Splits by a stable hash."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from searchr3.dataset.splits import (
    SHARES,
    TRAIN_DEV_SHARES,
    TRAIN_SHARES,
    first_of,
    fraction,
    query_key,
    split_of,
)


@pytest.mark.parametrize(
    ("text", "position", "split"),
    [
        ("Walk the tree", 0.063253, "test"),
        ("Merge two sorted lists", 0.145283, "dev"),
        ("Split the path", 0.429888, "stage2"),
        ("Return the name of the file", 0.719711, "stage1"),
    ],
)
def test_stays_the_same_for_ever(text, position, split):
    """A base model may have left out the dev and test queries of these very values: never change them."""
    assert fraction(query_key(text)) == pytest.approx(position, abs=1e-6)
    assert split_of(query_key(text)) == split


@pytest.mark.parametrize("shares", [SHARES, TRAIN_SHARES, TRAIN_DEV_SHARES])
def test_shares_are_kept(shares):
    assert sum(shares.values()) == pytest.approx(1)
    counts = Counter(split_of(f"query {number}", shares) for number in range(20_000))
    for name, share in shares.items():
        assert counts[name] / 20_000 == pytest.approx(share, abs=0.015)


def test_purposes_are_independent():
    pairs = [(fraction(str(n)) < 0.5, fraction(str(n), "cap") < 0.5) for n in range(4_000)]
    assert all(900 < count < 1_100 for count in Counter(pairs).values())


@given(st.text(), st.floats(0, 0.5), st.floats(0, 0.5))
def test_growing_the_test_share_keeps_its_queries(key, share, more):
    if split_of(key, {"test": share, "stage1": 1 - share}) == "test":
        assert split_of(key, {"test": share + more, "stage1": 1 - share - more}) == "test"


@given(st.text())
def test_key_is_settled(text):
    key = query_key(text)
    assert query_key(key) == key
    assert 0 <= fraction(key) < 1


def test_key_ignores_case_space_and_punctuation():
    assert query_key("  Return the *name*, of `file_name`.\n") == query_key("return THE name of file name")
    assert query_key("???") == "???"


@given(st.sets(st.text(max_size=8), max_size=40), st.integers(0, 50), st.integers(0, 50), st.randoms())
def test_the_first_of_some_keys_are_nested_whatever_their_order(keys, few, many, rng):
    few, many = sorted((few, many))
    shuffled = sorted(keys)
    rng.shuffle(shuffled)
    chosen = first_of(keys, many, "toy")
    assert len(chosen) == min(many, len(keys)) and set(chosen) <= keys
    assert first_of(shuffled, few, "toy") == chosen[:few]


def test_purposes_choose_apart():
    keys = [str(number) for number in range(2000)]
    both = {*first_of(keys, 1000, "one")} & {*first_of(keys, 1000, "another")}
    assert 400 < len(both) < 600
