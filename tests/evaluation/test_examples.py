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


def three(data, corpus, judged, hits):
    """Arguments: three queries, each with these hits before and after thinking, which helps the first two."""
    queries = {"q1": Query("many words " * 90), "q2": Query("b"), "q3": Query("c")}
    data = replace(data, corpus=corpus, queries=queries, qrels={"test": dict.fromkeys(queries, judged)})
    found = {query: [Hit(document, 0.5) for document in hits] for query in queries}
    direct = run("direct", {"q1": 0.25, "q2": 0.5, "q3": 1.0}, found)
    reasoned = run("reasoned", {"q1": 0.75, "q2": 1.0, "q3": 1.0}, found)
    reasoned = replace(reasoned, thoughts={q: GivenThought("so on and " * 90, (1, 2)) for q in queries})
    return direct, reasoned, data, "test"


def test_texts_are_short_and_a_document_without_title_is_how_it_begins(data):
    corpus = {"d1": Document(" ", "no name " * 50), "d2": Document("a long\ntitle " * 50, "text")}
    asked = three(data, corpus, {"d1": 1, "d2": 0}, ["d2", "d1"])
    found = helped_and_hurt(*asked)
    assert ([each["query"] for each in found["helped"]], found["hurt"]) == (["q1", "q2"], [])
    first = found["helped"][0]
    assert first["text"].startswith("many words") and first["text"].endswith("…")
    assert max(len(first["text"]), len(first["reasoning"])) <= 300
    assert first["relevant"] == first["direct_hits"][1:]
    assert first["relevant"][0].startswith("no name no name") and len(first["relevant"][0]) <= 100
    assert len(first["direct_hits"][0]) <= 100 and "\n" not in first["direct_hits"][0]
    assert len(helped_and_hurt(*asked, count=1)["helped"]) == 1


def test_what_is_relevant_is_told_of_documents_and_not_of_titles(data):
    """Functions are called `main`, and answers bear the question that others bear, too."""
    corpus = {f"d{i}": Document("main", f"text {i}") for i in range(9)}

    def shown(judged, hits):
        return helped_and_hurt(*three(data, corpus, judged, hits))["helped"][0]

    near = shown({"d3": 1, "d1": 0, "d8": 2}, ["d1", "d2", "d3"])
    assert near["reasoned_hits"] == ["main"] * 3
    assert near["reasoned_relevant"] == near["direct_relevant"] == [False, False, True]
    assert near["reasoned_rank"] == 3
    far = shown({"d8": 1}, list(corpus))
    assert (far["direct_relevant"], far["direct_rank"]) == ([False] * 5, 9)
    never = shown({"d8": 1}, ["d1"])
    assert (never["direct_relevant"], never["direct_rank"]) == ([False], None)


def test_a_judged_document_that_the_corpus_lacks_loses_no_evaluation(thinker, data):
    """Tasks of MTEB may name such documents, and this is told when all else is measured."""
    qrels = {query: {"gone": 1, **judged} for query, judged in data.qrels["test"].items()}
    shown = evaluate(thinker, replace(data, qrels={"test": qrels}), baselines=()).summary["examples"]
    assert shown["helped"] and shown["hurt"]
    assert all(each["relevant"][0] == "gone" for each in (*shown["helped"], *shown["hurt"]))


@pytest.mark.parametrize("reasoning", ["on", "off"])
def test_one_way_alone_gives_none(thinker, data, reasoning):
    assert "examples" not in evaluate(thinker, data, reasoning=reasoning, baselines=()).summary
