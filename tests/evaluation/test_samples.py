"""Several sampled thoughts: their mean, that they are repeatable, and what their agreement tells."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from searchr3.dataset.types import Eligible
from searchr3.evaluation import evaluate
from searchr3.evaluation.bench import Bench
from searchr3.evaluation.results import Run
from searchr3.evaluation.samples import agreement, overlap, uncertainty
from searchr3.ranking import METRICS, top_k


def sampled(thinker, data, samples=(1, 2, 4), **options):
    return evaluate(thinker, data, baselines=(), samples=samples, max_new_tokens=6, **options).summary


def test_a_point_is_the_mean_of_its_samples(thinker, data, monkeypatch):
    seen = []
    encode = type(thinker).encode_query

    def watched(self, queries, reasoning=False, **rest):
        vectors = encode(self, queries, reasoning, **rest)
        seen.append((reasoning, vectors))
        return vectors

    monkeypatch.setattr(type(thinker), "encode_query", watched)
    summary = sampled(thinker, data, reasoning="off")
    (_, direct), *parts = seen
    assert len(parts) == 4 and len(direct) == 40
    documents = thinker.vectors([each.content for each in data.corpus.values()])
    each = [vectors for _, vectors in parts]
    tops = np.stack([top_k(vectors, documents, 10)[1] for vectors in each])
    told = summary["uncertainty"]
    assert told["overlap_mean"] == pytest.approx(overlap(tops).mean())
    assert told["agreement_mean"] == pytest.approx(agreement(np.sum(each, axis=0, dtype=float), 4).mean())
    for point in summary["curves"]["samples"]:
        some = parts[: point["samples"]]
        mean = np.mean([vectors for _, vectors in some], axis=0)
        expected = evaluate(
            Fixed(mean / np.linalg.norm(mean, axis=1, keepdims=True)),
            data,
            baselines=(),
            reasoning="off",
            document_vectors=documents,
        ).summary["runs"][0]
        assert point["ndcg@10"] == pytest.approx(expected["ndcg@10"], abs=1e-6)
        tokens = [sum(len(thoughts[query].token_ids) for thoughts, _ in some) for query in range(40)]
        assert point["thinking_tokens_mean"] == pytest.approx(np.mean(tokens))
        said = [thought.emitted for thoughts, _ in some for thought in thoughts]
        assert point["emission_rate"] == pytest.approx(np.mean(said))
        assert point["ci95"][0] <= point["ndcg@10"] <= point["ci95"][1]


class Fixed:
    """A model whose query vectors are given."""

    def __init__(self, vectors):
        self.vectors = vectors

    def encode_query(self, queries, reasoning=False):
        return self.vectors.astype(np.float32)


def figures(summary):
    return [{key: value for key, value in point.items() if key != "seconds_per_query"} for point in summary]


def test_again_is_the_same_and_fewer_are_the_first_of_more(thinker, data):
    first, again = sampled(thinker, data), sampled(type(thinker)(), data)
    assert figures(first["curves"]["samples"]) == figures(again["curves"]["samples"])
    assert first["uncertainty"] == again["uncertainty"]
    fewer = sampled(thinker, data, [2, 1, 2])
    for less, more in zip(fewer["curves"]["samples"], first["curves"]["samples"], strict=False):
        assert less["ndcg@10"] == more["ndcg@10"]
        assert less["thinking_tokens_mean"] == more["thinking_tokens_mean"]
    assert "uncertainty" not in sampled(thinker, data, [1])


def test_no_two_batches_share_their_random_numbers(thinker, data, monkeypatch):
    monkeypatch.setattr("searchr3.evaluation.samples.QUERIES", 15)
    sampled(thinker, data, [3])
    seeds = [asked["seed"] for asked in thinker.asked if asked["temperature"]]
    assert len(seeds) == 9 == len(set(seeds))
    assert {asked["temperature"] for asked in thinker.asked} == {0.0, 1.0}


vectors = st.integers(2, 5).flatmap(
    lambda samples: st.lists(
        st.lists(st.floats(-1, 1).filter(lambda x: abs(x) > 1e-3), min_size=3, max_size=3),
        min_size=samples,
        max_size=samples,
    )
)


@given(vectors)
@settings(max_examples=40)
def test_agreement_is_the_mean_cosine_of_all_pairs(rows):
    units = np.array(rows) / np.linalg.norm(rows, axis=1, keepdims=True)
    pairs = [a @ b for a, b in combinations(units, 2)]
    assert agreement(units.sum(axis=0)[None], len(units))[0] == pytest.approx(np.mean(pairs), abs=1e-9)


@given(st.integers(2, 4), st.integers(0, 99))
@settings(max_examples=30)
def test_overlap_is_the_mean_share_of_all_pairs(samples, seed):
    rng = np.random.default_rng(seed)
    rows = np.stack([[rng.permutation(12)[:5] for _ in range(3)] for _ in range(samples)])
    for query in range(3):
        pairs = [len({*a} & {*b}) / 5 for a, b in combinations(rows[:, query], 2)]
        assert overlap(rows)[query] == pytest.approx(np.mean(pairs))


def test_agreement_that_knows_a_miss_says_so():
    ids = [f"q{i}" for i in range(6)]
    found = dict(zip(ids, [0.0, 0.0, 0.3, 0.5, 0.9, 1.0], strict=True))
    recall = dict(zip(ids, [0.0, 0.0, 1.0, 0.5, 1.0, 0.5], strict=True))
    run = Run("direct", dict.fromkeys(METRICS, found) | {"recall@10": recall}, {}, 1.0)
    knows = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    report = uncertainty(knows, knows[::-1], [run], ids, 4)
    assert (report["samples"], report["agreement_mean"]) == (4, pytest.approx(0.35))
    good, bad = report["signals"]
    assert (good["signal"], good["auroc"], bad["signal"], bad["auroc"]) == ("agreement", 1, "overlap", 0)
    assert (
        good["rank_correlation"] == pytest.approx(-bad["rank_correlation"]) and good["rank_correlation"] > 0.9
    )


def test_seconds_are_those_of_all_samples_and_one_search(thinker, data, monkeypatch):
    ticks = iter(range(10_000))
    monkeypatch.setattr(Bench, "clock", lambda self: float(next(ticks)))
    points = sampled(thinker, data)["curves"]["samples"]
    assert [point["seconds_per_query"] * 40 for point in points] == pytest.approx([1 + 1, 2 + 1, 4 + 1])


def test_the_signals_are_held_against_each_run(thinker, data):
    report = sampled(thinker, data)["uncertainty"]
    assert [(row["signal"], row["run"]) for row in report["signals"]] == [
        (signal, run) for signal in ("agreement", "overlap") for run in ("direct", "reasoned", "4 samples")
    ]
    assert -1 <= report["agreement_mean"] <= 1 and 0 <= report["overlap_mean"] <= 1
    for row in report["signals"]:
        assert row["auroc"] is None or 0 <= row["auroc"] <= 1


def test_no_sample_is_refused(thinker, data):
    with pytest.raises(ValueError, match="1 or more"):
        evaluate(thinker, data, samples=[0, 2])


def test_only_what_may_be_found_is_common(thinker, data):
    """Where a query has ten candidates, all samples find these: they have everything in common."""
    ten, others = (frozenset(f"d{i}" for i in some) for some in (range(10), range(10, 150)))
    for limits in (Eligible(ten), Eligible(others, True)):
        few = dict.fromkeys(data.split("test"), limits)
        found = evaluate(thinker, replace(data, eligible=few), baselines=(), samples=(1, 2)).summary
        assert found["uncertainty"]["overlap_mean"] == 1
    assert evaluate(thinker, data, baselines=(), samples=(1, 2)).summary["uncertainty"]["overlap_mean"] < 1


def test_rankings_of_few_hits_have_these_in_common():
    rows = np.array([[[3, 5, -1], [-1, -1, -1]], [[5, 4, -1], [-1, -1, -1]]])
    assert overlap(rows).tolist() == [0.5, 1.0]
