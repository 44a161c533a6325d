"""Near-duplicate groups."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from searchr3.dataset.near_duplicates import jaccard, minhash, near_duplicate_groups, shingles

words = st.sampled_from(["a", "b", "c", "x1", "(", ")", "+", "return"])
codes = st.lists(words, min_size=0, max_size=30).map(" ".join)


def long_code(seed: int, size: int = 200) -> list[str]:
    rng = random.Random(seed)
    return [f"name{rng.randrange(10**6)}" for _ in range(size)]


@given(st.lists(codes, max_size=12))
@settings(deadline=None)
def test_only_verified_pairs_are_joined(texts):
    groups = near_duplicate_groups(texts)
    sets = [shingles(text) for text in texts]
    labels = list(range(len(texts)))  # a plain closure over all pairs
    for _ in texts:
        for one in range(len(texts)):
            for other in range(one):
                if jaccard(sets[one], sets[other]) >= 0.8:
                    labels[one] = labels[other] = min(labels[one], labels[other])
    # LSH may miss a pair near the threshold, but nothing is ever joined wrongly.
    for one in range(len(texts)):
        assert labels[groups[one]] == labels[one]
        for other in range(one):
            if np.array_equal(sets[one], sets[other]):
                assert groups[one] == groups[other]


@given(st.lists(codes, min_size=1, max_size=10), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_order_does_not_matter(texts, rng):
    order = list(range(len(texts)))
    rng.shuffle(order)
    plain, shuffled = near_duplicate_groups(texts), near_duplicate_groups([texts[index] for index in order])
    for a in range(len(texts)):
        for b in range(a):
            same = shuffled[order.index(a)] == shuffled[order.index(b)]
            assert same == (plain[a] == plain[b])


@given(st.lists(codes, min_size=1, max_size=12))
@settings(deadline=None)
def test_a_group_is_named_by_its_first_member(texts):
    groups = near_duplicate_groups(texts)
    assert all(groups[label] == label <= index for index, label in enumerate(groups))


def test_a_small_change_is_found_and_a_large_one_is_not():
    original, texts = long_code(0), []
    for changes in (0, 1, 2, 3, 60):
        copy = list(original)
        for place in range(changes):
            copy[3 + 3 * place] = f"other{place}"
        texts.append(" ".join(copy))
    assert near_duplicate_groups(texts).tolist() == [0, 0, 0, 0, 4]


def test_near_duplicates_are_found_among_many():
    """Of 300 pairs at a Jaccard of about 0.85, none is missed."""
    texts = []
    for seed in range(300):
        one = long_code(seed, 100)
        texts += [" ".join(one), " ".join(["def", *one[2:], "new", "words"])]
    groups = near_duplicate_groups(texts)
    assert groups.tolist() == [index - index % 2 for index in range(600)]


def test_white_space_and_comments_do_not_count():
    a = "def f(x):\n    # adds one\n    y = x + 1\n    return y"
    b = "def f( x ):\n  y = x+1   # here\n\n  return y"
    assert near_duplicate_groups([a, b]).tolist() == [0, 0]


def test_signatures_estimate_jaccard():
    numbers = np.random.default_rng(0).integers(0, 2**63, 1300).astype(np.uint64)
    a, b = np.sort(numbers[:1000]), np.sort(numbers[300:])
    signatures = minhash([a, b], 2000)
    assert (signatures[0] == signatures[1]).mean() == pytest.approx(jaccard(a, b), abs=0.05)
    assert jaccard(a, b) == pytest.approx(700 / 1300)


def test_nothing_and_empty_texts():
    assert near_duplicate_groups([]).tolist() == []
    assert near_duplicate_groups(["", "# only", "pass"]).tolist() == [0, 0, 2]


def test_comments_count_only_where_they_are_asked_for():
    one, other = "# pet of mine", "# pet of yours"
    assert jaccard(shingles(one), shingles(other)) == 1
    assert jaccard(shingles(one, comments=True), shingles(other, comments=True)) == 0
