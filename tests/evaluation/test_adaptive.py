"""The frontier of thinking, the rule chosen on it, and the run "auto"."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from searchr3.adaptive import SIGNALS, Adaptive
from searchr3.dataset.types import Eligible
from searchr3.errors import ModelError
from searchr3.evaluation import evaluate
from searchr3.evaluation.adaptive import (
    Measured,
    Point,
    _held_out,
    _rule,
    bulge,
    choice_lines,
    choice_table,
    choose,
    frontier,
    least_that_keeps,
)
from searchr3.evaluation.bench import Bench
from searchr3.evaluation.saved import SavedResults, checked
from searchr3.files import json_text
from searchr3.ranking import METRICS

THIRDS = st.integers(0, 3).map(lambda value: value / 3)


def measured_of(rows: list[tuple[float, float, float, int]]) -> Measured:
    """Rows of doubt by "score", direct, reasoned, tokens."""
    doubt, direct, reasoned, tokens = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    scores = np.stack([1 - doubt, *[np.full(len(doubt), -1.0)] * 9], axis=1)
    return Measured(scores, direct, reasoned, tokens)


def some():
    row = st.tuples(st.integers(0, 9).map(lambda v: v / 10), THIRDS, THIRDS, st.integers(0, 20))
    return st.lists(row, min_size=1, max_size=25).map(measured_of)


def simulated(count: int, rng: np.random.Generator, noise: float) -> Measured:
    """Thinking mostly changes nothing, and gains where the best score is low, a few per cent on average."""
    doubt = rng.random(count)
    scores = np.sort(rng.uniform(-1, -0.5, (count, 10)), axis=1)[:, ::-1].copy()
    scores[:, 0] = 1 - doubt + 0.3 * rng.standard_normal(count)
    scores[:, 0] = scores[:, 0].clip(-0.4, 1)
    happens = rng.random(count) < 0.5
    gain = happens * (0.25 * doubt - 0.06 + noise * rng.standard_normal(count))
    return Measured(scores, np.full(count, 0.4), 0.4 + gain, 6.0 + rng.integers(0, 6, count))


@given(some(), st.sampled_from(list(SIGNALS)))
def test_each_point_is_what_its_threshold_gives(measured: Measured, signal: str) -> None:
    points = frontier(measured, signal)

    assert points[0] == Point(None, 0.0, pytest.approx(measured.direct.mean()), 0.0)
    assert (points[-1].threshold, points[-1].share) == (0.0, 1.0)
    assert points[-1].ndcg == pytest.approx(measured.reasoned.mean())
    for point in points:
        thinks = Adaptive(signal, point.threshold).thinks(measured.scores)
        assert point.share == pytest.approx(thinks.mean())
        assert point.ndcg == pytest.approx(np.where(thinks, measured.reasoned, measured.direct).mean())
        assert point.tokens == pytest.approx(np.where(thinks, measured.tokens, 0).mean())
    tokens = [point.tokens for point in points]
    assert tokens == sorted(tokens)


def test_a_threshold_lies_halfway_between_two_doubts() -> None:
    points = frontier(measured_of([(0.2, 0, 1, 3), (0.8, 0, 1, 3), (0.5, 0, 1, 3)]), "score")
    assert [point.threshold for point in points[1:]] == pytest.approx([0.65, 0.35, 0.0])


@given(some(), st.sampled_from([0.5, 0.95, 1.0]))
def test_the_chosen_rule_keeps_enough_or_does_not_think(measured: Measured, keep: float) -> None:
    choice = choose(measured, keep)

    thinks = choice.rule.thinks(measured.scores)
    gain = (measured.reasoned - measured.direct).sum()
    if gain <= 1e-6:
        assert choice.rule.threshold is None and not thinks.any()
        assert math.isnan(choice.gain_share)
        return
    assert (measured.reasoned - measured.direct)[thinks].sum() >= keep * gain - 1e-6
    assert choice.gain_share >= keep - 1e-6
    assert 0 <= choice.token_share <= 1
    points = choice.frontiers[choice.rule.signal]
    later = points[points.index(choice.point) :]
    start, whole = points[0].ndcg, points[-1].ndcg
    assert all(point.ndcg - start >= keep * (whole - start) - 1e-6 for point in later)


@given(st.lists(st.tuples(st.floats(0, 0.1), st.integers(0, 9)), min_size=2, max_size=12))
def test_the_frontier_of_chance_is_straight(gains: list[tuple[float, int]]) -> None:
    spent = np.cumsum([tokens for _, tokens in gains])
    straight = [
        Point(None, 0, 0.3, 0.0),
        *(Point(0.1, 1, 0.3 + 0.2 * x / max(1, spent[-1]), x) for x in spent),
    ]
    assert bulge(straight) == pytest.approx(0, abs=1e-9)
    raised = [point._replace(ndcg=point.ndcg + 0.1) for point in straight[1:-1]]
    if spent[-1] and any(0 < point.tokens < spent[-1] for point in raised):
        assert bulge([straight[0], *raised, straight[-1]]) > 0


def test_a_lucky_point_is_passed_over() -> None:
    points = [
        Point(None, 0.0, 0.30, 0.0),
        Point(0.8, 0.2, 0.41, 2.0),  # more than all of the gain
        Point(0.6, 0.4, 0.33, 4.0),
        Point(0.4, 0.6, 0.40, 6.0),
        Point(0.0, 1.0, 0.40, 9.0),
    ]
    assert least_that_keeps(points, 0.95).threshold == 0.4
    assert least_that_keeps(points, 0.2).threshold == 0.8
    assert least_that_keeps([points[0], points[-1]._replace(ndcg=0.2)], 0.95).threshold is None


def test_on_other_queries_it_keeps_most_of_the_gain_and_says_how_much() -> None:
    """The first point that keeps enough on 400 queries keeps far less of the gain of others."""
    rng, naive, kept, told, signals = np.random.default_rng(0), [], [], [], []
    for _ in range(30):
        own, other = simulated(400, rng, 0.3), simulated(2000, rng, 0.0)
        rule, frontiers, point = _rule(own, 0.95)
        if point.threshold is None:
            continue
        firsts = [
            (next(point for point in points if point.ndcg - 0.4 >= 0.95 * (points[-1].ndcg - 0.4)), name)
            for name, points in frontiers.items()
        ]
        first, name = min(firsts, key=lambda found: found[0].tokens)
        kept.append(other.shares(rule.thinks(other.scores)))
        naive.append(other.shares(Adaptive(name, first.threshold).thinks(other.scores)))
        told.append(_held_out(own, 0.95))
        signals.append(rule.signal)
    assert np.mean(kept, axis=0)[0] > 0.9 > np.mean(naive, axis=0)[0]
    # the queries that choose would say 1 or more; the held-out ones say what is true of others
    np.testing.assert_allclose(np.median(told, axis=0), np.mean(kept, axis=0), atol=0.06)
    assert min(told)[0] < 0.95  # of the queries that choose every rule keeps as much
    assert signals.count("score") > len(signals) / 2


def test_what_is_printed_and_what_a_machine_reads() -> None:
    measured = simulated(200, np.random.default_rng(3), 0.05)
    choice = choose(measured, chosen_on="colours dev")
    read = json.loads(json_text(choice.as_dict()))
    assert read["chosen_on"] == "colours dev"
    assert read["gain"] == pytest.approx((measured.reasoned - measured.direct).mean())
    assert set(read["frontiers"]) == set(SIGNALS)
    kept, spent = choice.held_out
    assert read["held_out"] == pytest.approx({"gain_share": kept, "token_share": spent})
    table = choice_table(choice, "[colours] dev")
    assert list(table.columns[-1].cells).count("chosen") == 1
    assert 10 <= table.row_count <= 12
    always, rule, others = choice_lines(choice)
    assert choice.gain.significant and "too few queries" not in always
    assert (
        rule
        == f"the rule: keeps {choice.gain_share:.0%} of that gain at {choice.token_share:.0%} of the tokens"
    )
    assert others == f"on queries that did not choose: {kept:.0%} at {spent:.0%}"
    assert choice_lines(choose(measured.at(np.arange(4))))[0].endswith("too few queries to be sure of it")

    worse = replace(measured, reasoned=measured.direct - 0.1)
    never = choose(worse)
    assert json.loads(json_text(never.as_dict()))["gain_share"] is None
    assert "never think" in choice_lines(never)[1]
    assert next(iter(choice_table(never, "t").columns[-1].cells)) == "chosen"
    assert math.isnan(choose(measured.at(np.arange(9))).held_out[0])  # too few to leave some out


@pytest.mark.parametrize("keep", [0, -1, 1.1, float("nan")])
def test_a_share_that_cannot_be_kept_is_refused(keep: float) -> None:
    with pytest.raises(ValueError, match="keep must be above 0"):
        choose(measured_of([(0.5, 0, 1, 3)]), keep)


# -- the run "auto"


def rule_for(model, data) -> Adaptive:
    """One that thinks about some queries, not all."""
    direct = evaluate(model, data, reasoning="off", baselines=()).run("direct")
    best = [hits[0].score for hits in direct.hits.values()]
    return Adaptive("score", 1 - float(np.median(best)) + 1e-6, "colours, dev")


def test_auto_is_each_query_s_own_way(model, data):
    rule = rule_for(model, data)
    every = evaluate(model, data, reasoning="all", baselines=(), adaptive=rule)
    direct, reasoned, auto = (every.run(name) for name in ("direct", "reasoned", "auto"))
    assert [run.name for run in every.runs] == ["direct", "reasoned", "auto"]
    assert 0 < len(auto.thoughts) < len(every.query_ids)
    for query in every.query_ids:
        source = reasoned if query in auto.thoughts else direct
        assert (query in auto.thoughts) == (1 - direct.hits[query][0].score >= rule.threshold)
        assert auto.hits[query] == source.hits[query]
        assert all(auto.values[metric][query] == source.values[metric][query] for metric in METRICS)
    tokens = sum(len(thought.token_ids) for thought in auto.thoughts.values())
    assert auto.thinking_tokens_mean == tokens / len(every.query_ids)
    assert direct.seconds < auto.seconds < direct.seconds + reasoned.seconds
    found = every.summary["adaptive"]
    assert found["chosen_on"] == "colours, dev"
    assert found["thinking_share"] == len(auto.thoughts) / len(every.query_ids)
    assert found["token_share"] == pytest.approx(auto.thinking_tokens_mean / reasoned.thinking_tokens_mean)
    assert found["ndcg@10"] == pytest.approx(every.summary["runs"][2]["ndcg@10"])
    means = [np.mean([*run.values["ndcg@10"].values()]) for run in (direct, reasoned, auto)]
    if means[1] > means[0]:
        assert found["gain_share"] == pytest.approx((means[2] - means[0]) / (means[1] - means[0]))
    else:
        assert found["gain_share"] is None
    assert {(row["a"], row["b"]) for row in every.summary["differences"]} >= {
        ("auto", "direct"),
        ("auto", "reasoned"),
    }


def test_what_auto_costs_is_direct_search_and_the_thinking_that_it_does(model, data, monkeypatch):
    rule = rule_for(model, data)
    ticks = iter(range(10_000))
    monkeypatch.setattr(Bench, "clock", lambda self: float(next(ticks)))
    every = evaluate(model, data, reasoning="all", baselines=(), adaptive=rule)
    direct, reasoned, auto = (every.run(name) for name in ("direct", "reasoned", "auto"))
    assert (direct.seconds, reasoned.seconds, reasoned.thinking_seconds) == (1, 3, 1)
    share = auto.thinking_tokens_mean / reasoned.thinking_tokens_mean
    assert share != pytest.approx(len(auto.thoughts) / len(every.query_ids))
    assert (auto.seconds, auto.thinking_seconds) == pytest.approx((1 + 3 * share, share))

    alone = evaluate(model, data, reasoning="auto", baselines=(), adaptive=rule).run("auto")
    assert (alone.seconds, alone.thinking_seconds) == (1 + 3, 1)


def test_the_saved_frontier_goes_from_direct_to_reasoned(model, data):
    results = evaluate(model, data, reasoning="all", baselines=(), adaptive=Adaptive("score", 0.2))
    found = results.summary
    runs = {run["name"]: run for run in found["runs"]}
    first, *between, last = checked(SavedResults, found, "results").adaptive.frontier
    own = frontier(Measured.of(results.run("direct"), results.run("reasoned")), "score")
    assert {(one.ndcg, one.thinking_tokens_mean) for one in between} <= {
        (one.ndcg, one.tokens) for one in own
    }
    for point, run in ((first, "direct"), (last, "reasoned")):
        assert point.ndcg == pytest.approx(runs[run]["ndcg@10"])
        assert point.thinking_tokens_mean == pytest.approx(runs[run]["thinking_tokens_mean"])


def test_queries_that_may_find_few_documents_are_judged_too(model, data):
    few = {"q20": Eligible(frozenset({"d20", "d21", "d22"})), "q21": Eligible(frozenset())}
    held = replace(data, eligible=few)
    found = evaluate(model, held, reasoning="all", baselines=(), adaptive=Adaptive("margin", 0.0))
    assert len(found.run("direct").hits["q20"]) == 3
    assert found.run("auto").values == found.run("reasoned").values
    assert choose(Measured.of(found.run("direct"), found.run("reasoned"))).rule.signal in SIGNALS


def test_each_query_finds_its_own_candidates_whoever_thinks(model, data):
    eligible = {f"q{i}": Eligible(frozenset(f"d{j}" for j in range(i, i + 11))) for i in range(60)}
    held = replace(data, eligible=eligible)
    rule = rule_for(model, held)
    alone = evaluate(model, held, reasoning="auto", baselines=(), adaptive=rule).run("auto")
    assert 0 < len(alone.thoughts) < len(alone.hits)
    assert alone.hits == evaluate(model, held, reasoning="all", baselines=(), adaptive=rule).run("auto").hits


def test_auto_alone_thinks_about_the_unsure_only_and_finds_the_same(model, data):
    rule = rule_for(model, data)
    every = evaluate(model, data, reasoning="all", baselines=(), adaptive=rule).run("auto")
    asked = []
    generate = model.generate
    model.generate = lambda batch, **named: asked.extend(batch) or generate(batch, **named)

    results = evaluate(model, data, reasoning="auto", baselines=(), adaptive=rule)

    auto = results.run("auto")
    assert [run.name for run in results.runs] == ["direct", "auto"]
    assert sorted(asked) == sorted(data.queries[key].text for key in auto.thoughts)
    assert (auto.values, auto.hits, auto.thoughts) == (every.values, every.hits, every.thoughts)
    assert auto.seconds > results.run("direct").seconds
    assert results.summary["adaptive"]["gain_share"] is None
    asked.clear()
    evaluate(model, data, reasoning="all", baselines=(), adaptive=rule)
    assert len(asked) == len(results.query_ids)  # nothing is thought twice


@pytest.mark.parametrize(("threshold", "of"), [(None, "direct"), (0.0, "reasoned")])
def test_never_and_always_are_the_other_two(model, data, threshold, of):
    rule = Adaptive("margin", threshold)
    results = evaluate(model, data, reasoning="all", baselines=(), adaptive=rule)
    auto, same = results.run("auto"), results.run(of)
    assert (auto.values, auto.hits, auto.emission_rate) == (same.values, same.hits, same.emission_rate)
    assert auto.thinking_tokens_mean == same.thinking_tokens_mean
    alone = evaluate(model, data, reasoning="auto", baselines=(), adaptive=rule).run("auto")
    assert alone.values == same.values


def test_the_model_s_own_rule_serves_and_without_one_nothing_is_encoded(model, data):
    with pytest.raises(ModelError, match="no rule of when to think; choose one with `searchr3 adapt"):
        evaluate(model, data, reasoning="auto", baselines=())
    assert model.encoded == 0
    model.adaptive = Adaptive("entropy", 0.5)
    found = evaluate(model, data, reasoning="auto", baselines=()).summary["adaptive"]
    assert (found["signal"], found["threshold"], found["chosen_on"]) == ("entropy", 0.5, None)
    assert "adaptive" not in evaluate(model, data, baselines=()).summary


def test_a_rule_is_chosen_from_an_evaluation_of_dev(model, data):
    results = evaluate(model, data, split="dev", baselines=())
    direct, reasoned = results.run("direct"), results.run("reasoned")
    measured = Measured.of(direct, reasoned)
    assert measured.scores.shape == (20, 10)
    assert (measured.scores[:, 0] == [direct.hits[key][0].score for key in results.query_ids]).all()
    assert measured.tokens.mean() == reasoned.thinking_tokens_mean
    choice = choose(measured)
    auto = evaluate(model, data, "dev", "all", (), adaptive=choice.rule).summary["adaptive"]
    assert auto["thinking_share"] == pytest.approx(choice.point.share)
    assert auto["ndcg@10"] == pytest.approx(choice.point.ndcg)
