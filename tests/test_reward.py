from math import log2

import numpy as np
import pytest
import pytrec_eval
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from searchr3.reward import (
    RewardWeights,
    combine,
    format_reward,
    length_cost,
    rank_slope,
    score_spread,
    soft_ndcg,
    soft_rank,
)

finite = st.floats(-3, 3, width=32)
steps = st.integers(-96, 96).map(lambda i: i / 32)  # sums of these are exact, so no tie comes from rounding
temperatures = st.floats(0, 5)


@st.composite
def ranked_lists(draw, score=finite, most=12):
    """Scores and grades of one list, (c,) each, at least one grade above 0."""
    size = draw(st.integers(1, most))
    scores = draw(st.lists(score, min_size=size, max_size=size))
    grades = draw(st.lists(st.integers(0, 4), min_size=size, max_size=size).filter(any))
    return torch.tensor(scores), torch.tensor(grades)


def loop_ranks(scores, temperature):
    """The formula of the docstring, term by term."""
    return [
        1 + sum(1 / (1 + np.exp(-(c - d) / temperature)) for j, c in enumerate(scores) if j != i)
        for i, d in enumerate(scores)
    ]


# --- rank


def test_soft_rank_is_the_formula():
    scores = [0.9, 0.1, 0.4, 0.4]
    ranks = soft_rank(torch.tensor(scores, dtype=torch.float64), 0.3)
    assert ranks.numpy() == pytest.approx(loop_ranks(scores, 0.3), abs=1e-9)


def test_soft_rank_at_zero_is_the_rank_and_ties_follow_the_order():
    scores = torch.tensor([[0.5, 0.7, 0.5, 0.1]])
    assert soft_rank(scores, 0).tolist() == [[2, 1, 3, 4]]
    assert soft_rank(scores, 0, tie_order=torch.tensor([[3, 2, 1, 0]])).tolist() == [[3, 1, 2, 4]]


def test_soft_rank_takes_a_temperature_a_list():
    scores = torch.tensor([[0.5, 0.7], [0.5, 0.7]])
    both = soft_rank(scores, torch.tensor([0.0, 0.1]))
    assert both[0].tolist() == [2, 1]
    assert both[1].tolist() == pytest.approx(loop_ranks([0.5, 0.7], 0.1), abs=1e-6)


@settings(deadline=None)
@given(st.lists(finite, min_size=1, max_size=10), temperatures)
def test_soft_ranks_add_up_to_those_of_a_permutation(scores, temperature):
    ranks = soft_rank(torch.tensor(scores, dtype=torch.float64), temperature)
    assert float(ranks.sum()) == pytest.approx(len(scores) * (len(scores) + 1) / 2)


# --- nDCG


@st.composite
def runs(draw):
    """Document ids, scores with many ties, grades."""
    ids = draw(st.lists(st.text("abzAZ09é漢", min_size=1, max_size=3), min_size=1, max_size=15, unique=True))
    scores = [draw(st.sampled_from([0.0, 0.25, 0.5, 0.5 + 2**-24, 1.0])) for _ in ids]
    grades = [draw(st.integers(-1, 4)) for _ in ids]
    assume(max(grades) >= 0)  # pytrec_eval may never return if all grades are negative
    return ids, scores, grades


@settings(max_examples=300, deadline=None)
@given(runs(), st.integers(1, 20))
def test_at_temperature_zero_it_is_trec_evals_ndcg(run, cutoff):
    ids, scores, grades = run
    evaluator = pytrec_eval.RelevanceEvaluator(
        {"q": dict(zip(ids, grades, strict=True))}, {"ndcg", f"ndcg_cut_{cutoff}"}
    )
    expected = evaluator.evaluate({"q": dict(zip(ids, scores, strict=True))})["q"]
    descending = sorted(ids, reverse=True)
    tensors = (torch.tensor([scores]), torch.tensor([grades]))
    order = torch.tensor([[descending.index(document) for document in ids]])
    assert float(soft_ndcg(*tensors, 0, tie_order=order)) == pytest.approx(expected["ndcg"], abs=1e-6)
    cut = soft_ndcg(*tensors, 0, tie_order=order, cutoff=cutoff)
    assert float(cut) == pytest.approx(expected[f"ndcg_cut_{cutoff}"], abs=1e-6)


@pytest.mark.parametrize("first, second", [("a", "b"), ("B", "b"), ("10", "9"), ("a", "aa"), ("z", "é")])
def test_trec_eval_puts_the_greater_id_first_on_a_tie(first, second):
    """What `tie_order` stands for; what float32 cannot tell apart is a tie as well."""
    evaluator = pytrec_eval.RelevanceEvaluator({"q": {second: 1}}, {"ndcg"})
    assert evaluator.evaluate({"q": {first: 1.0 + 1e-9, second: 1.0}})["q"]["ndcg"] == 1.0


def test_graded_documents_by_hand():
    """Ranks 1 and 3 among four; a grade 3 document behind one of grade 1."""
    reward = soft_ndcg(torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor([1, 0, 3, 0]), 0)
    assert float(reward) == pytest.approx((1 / log2(2) + 3 / log2(4)) / (3 / log2(2) + 1 / log2(3)))


def test_soft_reward_of_several_relevant_documents_by_hand():
    scores, grades, temperature = [0.9, 0.5, 0.8, 0.1, 0.3], [2, 1, 0, 0, 0], 0.7
    ranks = loop_ranks(scores, temperature * np.std(scores[2:]))
    expected = (2 / log2(1 + ranks[0]) + 1 / log2(1 + ranks[1])) / (2 / log2(2) + 1 / log2(3))
    reward = soft_ndcg(torch.tensor(scores, dtype=torch.float64), torch.tensor(grades), temperature)
    assert float(reward) == pytest.approx(expected)


def test_relevant_documents_compete_with_each_other():
    """Two of them at one score share ranks 1 and 2."""
    reward = soft_ndcg(torch.tensor([5.0, 5.0, -1.0, 1.0]), torch.tensor([1, 1, 0, 0]), 0.1)
    assert float(reward) == pytest.approx(2 / log2(2.5) / (1 + 1 / log2(3)), abs=1e-5)


@settings(deadline=None)
@given(ranked_lists(), temperatures)
def test_it_lies_between_0_and_1(ranked, temperature):
    assert 0 < float(soft_ndcg(*ranked, temperature)) <= 1


def test_others_of_one_score_have_no_spread_and_are_ranked_against_as_at_temperature_zero():
    scores, grades = torch.tensor([0.1] * 7 + [0.3, 0.2]), torch.tensor([0] * 7 + [1, 1])
    assert float(score_spread(scores, grades)) == 0
    assert float(soft_ndcg(scores, grades, 0.5)) == 1


@settings(deadline=None)
@given(ranked_lists(), st.floats(0.01, 100), st.floats(-10, 10))
def test_scale_and_offset_of_the_scores_do_not_matter(ranked, scale, offset):
    scores, grades = ranked[0].double(), ranked[1]
    assume(float(score_spread(scores, grades)) > 1e-3)  # else the rounding of the offset would show
    moved = soft_ndcg(scores * scale + offset, grades, 0.5)
    assert float(moved) == pytest.approx(float(soft_ndcg(scores, grades, 0.5)), abs=1e-6)


@settings(deadline=None)
@given(ranked_lists(steps), temperatures, st.integers(0, 9))
def test_raising_the_relevant_document_never_lowers_the_reward(ranked, temperature, raised):
    scores = ranked[0].double()
    grades = torch.nn.functional.one_hot(ranked[1].argmax(), len(scores))
    before, after = (soft_ndcg(s, grades, temperature) for s in (scores, scores + raised / 8 * grades))
    assert float(after) >= float(before) - 1e-9


@settings(deadline=None)
@given(ranked_lists(steps), temperatures, st.integers(0, 9))
def test_raising_all_relevant_documents_never_lowers_the_reward(ranked, temperature, raised):
    scores, grades = ranked[0].double(), ranked[1]
    before, after = (soft_ndcg(s, grades, temperature) for s in (scores, scores + raised / 8 * (grades > 0)))
    assert float(after) >= float(before) - 1e-9


@settings(deadline=None)
@given(ranked_lists(steps), st.integers(0, 11), st.integers(0, 9))
def test_at_temperature_zero_raising_any_of_equal_grade_never_lowers_the_reward(ranked, place, raised):
    scores, grades = ranked[0].double(), (ranked[1] > 0).long()
    place %= len(scores)
    assume(grades[place])
    higher = scores.clone()
    higher[place] += raised / 8
    assert float(soft_ndcg(higher, grades, 0)) >= float(soft_ndcg(scores, grades, 0)) - 1e-9


def test_a_small_temperature_comes_near_to_ndcg():
    rng = np.random.default_rng(0)
    scores, grades = torch.tensor(rng.standard_normal((50, 20))), torch.tensor(rng.integers(0, 3, (50, 20)))
    gap = (soft_ndcg(scores, grades, 1e-4) - soft_ndcg(scores, grades, 0)).abs()
    assert float(gap.max()) < 0.02


@pytest.mark.parametrize("temperature", [0, 0.3])
def test_a_batch_with_padding_is_its_lists_one_by_one(temperature):
    lists = [([0.3, 0.5, 0.1], [1, 0, 0]), ([0.2, 0.9, 0.4, 0.4, 0.5], [0, 1, 2, 0, 0]), ([0.7], [3])]
    scores = torch.full((3, 5), torch.nan)
    grades, mask = torch.full((3, 5), 9), torch.zeros(3, 5, dtype=torch.bool)
    for i, (s, g) in enumerate(lists):
        scores[i, : len(s)], grades[i, : len(s)], mask[i, : len(s)] = torch.tensor(s), torch.tensor(g), True
    alone = [float(soft_ndcg(torch.tensor(s), torch.tensor(g), temperature)) for s, g in lists]
    assert soft_ndcg(scores, grades, temperature, mask=mask).tolist() == pytest.approx(alone, abs=1e-6)


def test_a_list_without_relevant_documents_gets_nothing():
    reward = soft_ndcg(torch.tensor([[0.1, 0.2], [0.1, 0.2]]), torch.tensor([[0, 0], [0, 1]]), 0.1)
    assert reward.tolist() == [0, 1]
    assert soft_ndcg(torch.tensor([[0.1]]), torch.tensor([[0]]), 0.1).tolist() == [0]


def top_others(rng, corpus, candidates, queries):
    """The highest `candidates` of `corpus` normal scores, (queries, candidates) descending."""
    found = [np.partition(rng.standard_normal(corpus), -candidates)[-candidates:] for _ in range(queries)]
    return torch.tensor(-np.sort(-np.stack(found), axis=1))


@pytest.fixture(scope="module")
def corpora():
    rng = np.random.default_rng(0)
    return top_others(rng, 10_000, 101, 400), top_others(rng, 1_000_000, 101, 60)


@pytest.mark.parametrize("temperature", [0.1, 0.2, 0.5])
def test_stable_from_10k_to_1m_documents(temperature, corpora):
    """A document far ahead of the corpus, its best and its fifth keep their rewards."""
    small, large = corpora

    def mean_reward(scores, relevant):
        grades = torch.zeros(scores.shape, dtype=torch.long)
        grades[:, relevant] = 1
        return float(soft_ndcg(scores, grades, temperature).mean())

    ahead = [torch.cat([torch.full((len(s), 1), 6.0), s[:, :100]], dim=1) for s in (small, large)]
    assert mean_reward(ahead[0], 0) > 0.98
    assert mean_reward(ahead[1], 0) == pytest.approx(mean_reward(ahead[0], 0), abs=0.01)
    for rank in (0, 4):
        assert mean_reward(large, rank) == pytest.approx(mean_reward(small, rank), abs=0.05)


@pytest.mark.parametrize("temperature, cutoff", [(-0.1, None), (0.1, 10), (0, 0)])
def test_impossible_settings_are_refused(temperature, cutoff):
    with pytest.raises(ValueError, match="temperature"):
        soft_ndcg(torch.tensor([0.1]), torch.tensor([1]), temperature, cutoff=cutoff)


# --- form, length and the sum


def test_rank_slope_is_what_one_more_competitor_costs():
    """A candidate that halfway outranks the relevant one, and then a little more."""
    grades = torch.tensor([3, 0, 1, 0])
    scores = torch.tensor([0.5, 0.45, 0.3, 0.1], dtype=torch.float64)
    temperature, h = 0.1, 1e-5
    slope = rank_slope(scores, grades, temperature)
    ranks = soft_rank(scores, temperature)
    ideal = 3 + 1 / log2(3)
    for place in (0, 2):
        fall = grades[place] / torch.log2(1 + ranks[place]) - grades[place] / torch.log2(1 + ranks[place] + h)
        assert slope[place].item() == pytest.approx(fall.item() / h / ideal, rel=1e-3)
    assert slope[1] == slope[3] == 0


def test_rank_slope_of_padding_is_none():
    scores, grades = torch.tensor([[0.9, 0.8, 7.0]]), torch.tensor([[0, 1, 1]])
    mask = torch.tensor([[True, True, False]])
    slope = rank_slope(scores, grades, 0.3, mask)[0]
    assert slope[2] == 0 and slope[1] == pytest.approx(
        rank_slope(scores[:, :2], grades[:, :2], 0.3)[0, 1].item()
    )
    assert rank_slope(scores, torch.zeros(1, 3), 0.3, mask).abs().sum() == 0


def test_format_and_length():
    assert format_reward(torch.tensor([True, False])).tolist() == [1, 0]
    assert length_cost(torch.tensor([0, 8, 9, 20]), 8, 0.5).tolist() == [0, 0, 0.5, 6]


def test_a_forced_rollout_gets_no_format_reward():
    weights = RewardWeights(ndcg=2.0, format=0.5, length=0.01, free_tokens=10)
    reward = combine(torch.tensor([0.4, 0.4]), torch.tensor([True, False]), torch.tensor([30, 5]), weights)
    assert reward.tolist() == pytest.approx([0.8 + 0.5 - 0.2, 0.8])


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_bad_weights_are_named(value):
    with pytest.raises(ValueError, match="format"):
        RewardWeights(format=value)
