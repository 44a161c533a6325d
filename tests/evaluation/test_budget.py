"""The budget curve: each point is an evaluation with that limit."""

from itertools import pairwise

import pytest

from searchr3.evaluation import evaluate
from searchr3.evaluation.bench import Bench
from searchr3.evaluation.budget import budget_curve
from searchr3.evaluation.thoughts import given
from searchr3.model import SearchR3

BUDGETS = (0, 1, 2, 4, 6)


@pytest.fixture
def curve(thinker, data):
    return evaluate(thinker, data, baselines=(), budgets=BUDGETS, max_new_tokens=6).summary["curves"][
        "budget"
    ]


def test_a_point_is_an_evaluation_with_that_limit(curve, thinker, data):
    assert [point["tokens"] for point in curve] == [*BUDGETS]
    for point in curve[1:]:
        run = evaluate(thinker, data, baselines=(), max_new_tokens=point["tokens"]).summary["runs"][1]
        assert (run["name"], run["ndcg@10"]) == ("reasoned", pytest.approx(point["ndcg@10"], abs=1e-9))
        for key in ("thinking_tokens_mean", "emission_rate"):
            assert run[key] == point[key]
        assert point["ci95"][0] <= point["ndcg@10"] <= point["ci95"][1]
    assert len({point["ndcg@10"] for point in curve}) > 2


def test_no_budget_is_no_thought_and_more_is_no_less_thinking(curve):
    assert (curve[0]["thinking_tokens_mean"], curve[0]["emission_rate"]) == (0, 0)
    for less, more in pairwise(curve):
        assert less["thinking_tokens_mean"] <= more["thinking_tokens_mean"] <= more["tokens"]
        assert less["emission_rate"] <= more["emission_rate"]
    assert all(point["seconds_per_query"] > 0 for point in curve)


@pytest.mark.parametrize(("most", "reasoning", "times"), [(6, "both", 1), (3, "both", 2), (3, "off", 1)])
def test_it_thinks_once_at_most(thinker, data, curve, most, reasoning, times):
    thinker.asked.clear()
    budgets = [4, 6, 0, 2, 1, 6]
    found = evaluate(
        thinker, data, baselines=(), reasoning=reasoning, budgets=budgets, max_new_tokens=most
    ).summary
    assert len(thinker.asked) == times
    assert [point["ndcg@10"] for point in found["curves"]["budget"]] == [point["ndcg@10"] for point in curve]


def test_seconds_are_a_share_of_the_one_generation(thinker, data, monkeypatch):
    ticks = iter(range(10_000))
    monkeypatch.setattr(Bench, "clock", lambda self: float(next(ticks)))
    bench = Bench(data, "test", 100, None)
    documents = bench.encode_documents(thinker)
    reasoned = bench.reasoned(thinker, documents, 6)
    assert reasoned.thinking_seconds == 1
    reasoned.thoughts.update(dict.fromkeys(bench.ids, given(thinker.conversation, [0, 1, 2], emitted=True)))
    found = budget_curve(bench, thinker, documents, (0, 1, 2, 4, 6), reasoned, 6)
    # embedding and searching is one tick; of the thinking four tokens, the last of which ends it
    assert [point["seconds_per_query"] * 40 for point in found] == pytest.approx([1, 1.25, 1.5, 2, 2])


def test_no_budget_is_the_reasoning_prompt_and_the_token(search: SearchR3, toy, monkeypatch):
    bench = Bench(toy.without_reasoning(), "test", 100, None)
    seen = []
    encode = search.encode_rendered
    monkeypatch.setattr(
        search, "encode_rendered", lambda rows, *rest: seen.append(rows) or encode(rows, *rest)
    )
    documents = search.encode_document(list(bench.documents[:]))
    seen.clear()
    budget_curve(bench, search, documents, [0])
    prompts = search.conversation.reasoning_prompts(bench.queries)
    ((*rows,),) = seen
    assert [row.ids for row in rows] == [[*prompt, search.conversation.embed_id] for prompt in prompts]


def test_budgets_below_nothing_are_refused(thinker, data):
    with pytest.raises(ValueError, match="0 or more"):
        evaluate(thinker, data, budgets=[4, -1])
