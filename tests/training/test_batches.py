import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from searchr3.training import batches
from searchr3.training.batches import (
    Cycle,
    GenerationSampler,
    NeighbourSampler,
    group_neighbours,
    hashed_tf_idf,
)

TOPICS = [
    [f"matrix inverse determinant row {word}" for word in ("pivot", "rank", "trace", "solve")],
    [f"socket connect listen port {word}" for word in ("host", "bind", "close", "accept")],
    [f"font glyph kerning baseline {word}" for word in ("bold", "italic", "size", "family")],
]
TEXTS = [text for topic in TOPICS for text in topic]


@settings(deadline=None)
@given(rows=st.integers(1, 40), size=st.integers(1, 9), seed=st.integers(0, 5))
def test_every_row_stands_in_one_group(rows, size, seed):
    rng = np.random.default_rng(seed)
    groups = group_neighbours(rng.normal(size=(rows, 5)).astype(np.float32), size, rng)
    assert sorted(row for group in groups for row in group) == list(range(rows))
    assert all(len(group) == size for group in groups[:-1]) and len(groups[-1]) <= size


def test_groups_hold_what_is_alike():
    groups = group_neighbours(hashed_tf_idf(TEXTS), 4, np.random.default_rng(0))
    assert sorted(sorted(group.tolist()) for group in groups) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


@given(
    topics=st.lists(st.integers(0, 5), min_size=1, max_size=40),
    size=st.integers(1, 9),
    seeds=st.integers(1, 6),
    seed=st.integers(0, 5),
)
def test_groups_are_those_of_one_seed_after_the_other(topics, size, seeds, seed):
    vectors = np.eye(6, dtype=np.float32)[topics]  # whose products are exact, with many ties
    expected, waiting = [], np.random.default_rng(seed).permutation(len(vectors)).tolist()
    while waiting:
        first = waiting[0]
        like = sorted(waiting, key=lambda row: (row != first, -(vectors[row] @ vectors[first])))[:size]
        expected.append(like)
        waiting = [row for row in waiting if row not in like]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batches, "_SEEDS", seeds)
        groups = group_neighbours(vectors, size, np.random.default_rng(seed))
    assert [group.tolist() for group in groups] == expected


def test_vectors_are_of_unit_length_and_empty_texts_are_zero():
    lengths = np.linalg.norm(hashed_tf_idf([*TEXTS, "", "  "]), axis=1)
    np.testing.assert_allclose(lengths, [1.0] * len(TEXTS) + [0.0, 0.0], atol=1e-6)


def test_epochs_differ_and_can_be_repeated():
    sampler = NeighbourSampler(TEXTS, 4, seed=3)
    first = list(sampler)
    assert list(sampler) == first == list(NeighbourSampler(TEXTS, 4, seed=3))
    sampler.set_epoch(1)
    second = list(sampler)
    assert second != first and sorted(second) == sorted(first) == list(range(len(TEXTS)))


def test_more_than_a_block_is_read_block_by_block(monkeypatch):
    monkeypatch.setattr(batches, "_WHOLE", 8)
    monkeypatch.setattr(batches, "_BLOCK", 6)
    seen = []

    class Watched(list):
        def __getitem__(self, row):
            seen.append(row)
            return super().__getitem__(row)

    rows = iter(NeighbourSampler(Watched(TEXTS), 2, seed=0))
    first = [next(rows) for _ in range(6)]
    assert sorted(first) == sorted(seen)  # no other text was read
    rest = list(rows)
    assert sorted(first + rest) == list(range(12)) == sorted(seen)
    again = NeighbourSampler(TEXTS, 2, seed=0)
    assert list(again) == first + rest == list(again)


def test_size_one_is_a_plain_shuffle():
    order = list(NeighbourSampler(TEXTS, 1, seed=0))
    assert sorted(order) == list(range(len(TEXTS))) and order != sorted(order)


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 50), st.integers(0, 30), st.integers(1, 4))
def test_a_cycle_names_its_batches_by_number(rows, size, number, group):
    texts = [f"word{row % 5} other{row}" for row in range(rows)]
    cycle, again = (Cycle(NeighbourSampler(texts, group, 0), size) for _ in range(2))

    epoch = rows // min(rows, size)
    found = [cycle.batch(one) for one in range(number + epoch)]

    assert again.batch(number) == found[number]  # whatever was asked before
    assert [again.batch(one) for one in (number, 0)] == [found[number], found[0]]
    assert all(len(one) == min(rows, size) for one in found)
    first = [row for one in found[:epoch] for row in one]
    assert len(first) == len(set(first))


@settings(deadline=None)
@given(st.integers(1, 30), st.integers(1, 8), st.integers(0, 9), st.integers(1, 4), st.integers(1, 4))
def test_generations_have_the_order_that_grpo_expects(rows, queries, generations, rollouts, repeats):
    """Each query `rollouts` times in a row, each generation `repeats` times; a longer run begins the same."""
    cycle = Cycle(NeighbourSampler([""] * rows, 1, 0), queries)
    sampler = GenerationSampler(cycle, generations, rollouts, repeats)

    order = np.array(list(sampler), dtype=int)

    assert len(order) == len(sampler)
    parts = order.reshape(generations, repeats, cycle.size, rollouts)
    assert (parts == parts[:, :1, :, :1]).all()
    chosen = [sorted(part) for part in parts[:, 0, :, 0].tolist()]
    assert all(len(set(part)) == cycle.size for part in chosen)
    longer = list(GenerationSampler(cycle, generations + 1, rollouts, repeats))
    assert longer[: len(order)] == order.tolist()
