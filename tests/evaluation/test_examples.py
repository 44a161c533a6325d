"""The queries that thinking helped and hurt most."""

from dataclasses import replace

import pytest

from searchr3.dataset import Document, Query
from searchr3.evaluation import evaluate
from searchr3.evaluation.examples import helped_and_hurt
from searchr3.evaluation.results import Hit, Run
from searchr3.evaluation.thoughts import GivenThought
from searchr3.ranking import METRICS


@pytest.fixture
def results(thinker, data):
    return evaluate(thinker, data, baselines=(), max_new_tokens=6)


def test_they_are_those_that_moved_most(results, data):
    direct, reasoned = (results.run(name).values["ndcg@10"] for name in ("direct", "reasoned"))
    gain = {query: reasoned[query] - direct[query] for query in results.query_ids}
    shown = results.summary["examples"]
    for way, sign in (("helped", 1), ("hurt", -1)):
        moved = sorted((sign * each for each in gain.values() if sign * each > 0), reverse=True)
        found = [sign * (each["reasoned"] - each["direct"]) for each in shown[way]]
        assert found == moved[:10] and moved
        for each in shown[way]:
            thought = results.run("reasoned").thoughts[each["query"]]
            assert each["text"] == data.queries[each["query"]].text
            assert (each["reasoning"], each["thinking_tokens"]) == (thought.text, len(thought.token_ids))
            best = results.run("direct").hits[each["query"]][0].document
            assert each["direct_hits"][0] == data.corpus[best].title
            assert len(each["direct_hits"]) == len(each["reasoned_hits"]) == 5
            wanted = data.qrels["test"][each["query"]]
            assert each["relevant"] == [data.corpus[document].title for document in wanted]


def run(name, values, hits):
    return Run(name, dict.fromkeys(METRICS, values), hits, 1.0)


def test_texts_are_short_and_a_document_without_title_is_its_id(data):
    corpus = {"d1": Document("", "nameless"), "d2": Document("a long\ntitle " * 50, "text")}
    queries = {"q1": Query("many words " * 90), "q2": Query("b"), "q3": Query("c")}
    data = replace(
        data, corpus=corpus, queries=queries, qrels={"test": {q: {"d1": 1, "d2": 0} for q in queries}}
    )
    hits = {query: [Hit("d2", 0.5), Hit("d1", 0.4)] for query in queries}
    direct = run("direct", {"q1": 0.25, "q2": 0.5, "q3": 1.0}, hits)
    reasoned = run("reasoned", {"q1": 0.75, "q2": 1.0, "q3": 1.0}, hits)
    reasoned = replace(reasoned, thoughts={q: GivenThought("so on and " * 90, (1, 2)) for q in queries})
    found = helped_and_hurt(direct, reasoned, data, "test")
    assert ([each["query"] for each in found["helped"]], found["hurt"]) == (["q1", "q2"], [])
    first = found["helped"][0]
    assert first["text"].startswith("many words") and first["text"].endswith("…")
    assert max(len(first["text"]), len(first["reasoning"])) <= 300
    assert first["relevant"] == ["d1"]
    assert len(first["direct_hits"][0]) <= 100 and "\n" not in first["direct_hits"][0]
    assert len(helped_and_hurt(direct, reasoned, data, "test", count=1)["helped"]) == 1


@pytest.mark.parametrize("reasoning", ["on", "off"])
def test_one_way_alone_gives_none(thinker, data, reasoning):
    assert "examples" not in evaluate(thinker, data, reasoning=reasoning, baselines=()).summary
