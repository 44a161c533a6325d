"""Controls: what takes the thought's place, and that nothing else differs."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from searchr3.dataset import Query, RetrievalDataset
from searchr3.errors import DataError, ModelError, SearchR3Error
from searchr3.evaluation import CONTROLS, evaluate, read_queries, read_results
from searchr3.evaluation.bench import Bench
from searchr3.evaluation.bm25 import BM25, as_run, tune
from searchr3.evaluation.controls import FILLERS, derangement, echo, filler_token
from searchr3.model import SearchR3
from searchr3.ranking import METRICS, trec_metrics


@given(items=st.lists(st.integers(0, 4), min_size=2, max_size=30), seed=st.integers(0, 9))
def test_nobody_keeps_its_own_nor_an_equal_one_where_that_can_be(items, seed):
    donors = derangement(items, seed)
    assert sorted(donors) == list(range(len(items)))
    assert all(donor != place for place, donor in enumerate(donors))
    equal = sum(items[donor] == item for donor, item in zip(donors, items, strict=True))
    # the others are too few for the largest group: so many of it must meet their like, whoever draws
    assert equal == max(0, 2 * max(Counter(items).values()) - len(items))
    assert derangement(items, seed) == donors


def test_another_seed_is_another_draw():
    assert len({tuple(derangement(range(20), seed)) for seed in range(5)}) == 5


@given(ids=st.lists(st.integers(0, 9), max_size=6), least=st.integers(0, 20))
def test_a_query_is_repeated_whole_and_no_oftener_than_it_takes(ids, least):
    said = echo(ids, least)
    assert said[: len(ids)] == ids and said == ids * (len(said) // max(1, len(ids)))
    if ids:
        assert len(said) >= least and len(said) - len(ids) < max(1, least)


def test_one_query_has_no_other(thinker, data):
    data.qrels["test"] = {"q20": data.qrels["test"]["q20"]}
    with pytest.raises(DataError, match="single query has no other's thought"):
        evaluate(thinker, data, baselines=(), controls=["other_trace"])


@pytest.fixture
def results(thinker, data):
    return evaluate(thinker, data, controls=CONTROLS, max_new_tokens=6)


def thoughts(results, name):
    return [results.run(name).thoughts[query] for query in results.query_ids]


def test_each_has_the_tokens_that_it_promises(results, thinker, data):
    own = [tuple(one.token_ids) for one in thoughts(results, "reasoned")]
    assert len({len(ids) for ids in own}) > 2
    other = [one.token_ids for one in thoughts(results, "other_trace")]
    for one in thoughts(results, "other_trace"):
        assert one.text == thinker.conversation.thought_text(one.token_ids)
    assert Counter(other) == Counter(own)
    assert all(a != b for a, b in zip(other, own, strict=True))
    dot = thinker.conversation.words.index(".")
    assert [one.token_ids for one in thoughts(results, "filler")] == [(dot,) * len(ids) for ids in own]
    for query, mine, said in zip(results.query_ids, own, thoughts(results, "repeated"), strict=True):
        (ids,) = thinker.conversation.thought_ids([data.queries[query].text])
        times = len(said.token_ids) // len(ids)
        assert said.token_ids == tuple(ids * times) and times >= 1
        assert len(said.token_ids) >= len(mine) and (times == 1 or len(ids) * (times - 1) < len(mine))
        assert said.text == thinker.conversation.thought_text(said.token_ids)
    assert thoughts(results, "bm25+trace") == thoughts(results, "reasoned")
    for name in ("other_trace", "filler"):
        assert results.run(name).thinking_tokens_mean == results.run("reasoned").thinking_tokens_mean
    for name in ("other_trace", "filler", "repeated"):
        assert results.run(name).emission_rate == 0  # nobody said the token
        assert results.run(name).thinking_seconds is None
    needs, thinking = results.run("bm25+trace"), results.run("reasoned").thinking_seconds
    assert needs.seconds > needs.thinking_seconds == thinking > 0  # it is no search without the thoughts


def test_seconds_leave_the_thinking_out_but_where_it_is_searched_with(thinker, data, monkeypatch):
    ticks = iter(range(10_000))
    monkeypatch.setattr(Bench, "clock", lambda self: float(next(ticks)))
    found = evaluate(thinker, data, baselines=(), controls=CONTROLS)
    reasoned = found.run("reasoned")
    assert (reasoned.seconds, reasoned.thinking_seconds) == (3, 1)
    assert {name: found.run(name).seconds for name in CONTROLS} == {
        **dict.fromkeys(CONTROLS[:3], 1),
        "bm25+trace": 1 + 1,
    }


def ranked(data, ids, vectors, documents):
    scores = vectors @ documents.T
    run = {
        query: dict(zip(data.corpus, row.tolist(), strict=True))
        for query, row in zip(ids, scores, strict=True)
    }
    return trec_metrics(run, data.qrels["test"])


def test_rankings_are_those_of_query_and_what_was_put_there(results, thinker, data):
    texts = [data.queries[query].text for query in results.query_ids]
    documents = thinker.vectors([each.content for each in data.corpus.values()])
    for name in ("other_trace", "filler", "repeated"):
        put = [thinker.conversation.thought_text(one.token_ids) for one in thoughts(results, name)]
        vectors = thinker.vectors([f"{text} {words}" for text, words in zip(texts, put, strict=True)])
        np.testing.assert_array_equal(results.run(name).query_vectors, vectors)
        expected = ranked(data, results.query_ids, vectors, documents)
        for query in results.query_ids:
            found = results.run(name).values["ndcg@10"][query]
            assert found == pytest.approx(expected["ndcg@10"][query], abs=1e-6)
    index = BM25([each.content for each in data.corpus.values()], tune(data))
    own = thoughts(results, "reasoned")
    both = [f"{text} {thought.text}" for text, thought in zip(texts, own, strict=True)]
    run = as_run(results.query_ids, list(data.corpus), *index.search(both, 100))
    assert results.run("bm25+trace").values == trec_metrics(run, data.qrels["test"])
    assert results.run("bm25+trace").setting == results.run("bm25").setting
    assert results.run("bm25+trace").values != results.run("bm25").values


def test_results_hold_them_and_their_differences(results, tmp_path):
    summary = results.summary
    kinds = {run["name"]: run["kind"] for run in summary["runs"]}
    assert kinds == {
        "direct": "own",
        "reasoned": "own",
        **dict.fromkeys(CONTROLS, "control"),
        "bm25": "baseline",
    }
    pairs = Counter((row["a"], row["b"]) for row in summary["differences"])
    assert all(pairs["reasoned", name] == len(METRICS) for name in CONTROLS)
    assert not any(name in (a, b) and a != "reasoned" for name in CONTROLS for a, b in pairs)
    settings = {run["name"]: run.get("setting", "") for run in summary["runs"]}
    assert "seed 0" in settings["other_trace"] and "'.'" in settings["filler"]
    results.save(tmp_path / "results.json")
    assert read_results(tmp_path / "results.json") == summary
    assert read_queries(tmp_path / "results.json").keys() == kinds.keys()


def test_the_runs_are_those_without_controls(results, data, thinker):
    plain = evaluate(thinker, data, max_new_tokens=6)
    assert plain.controls == ()
    for run in plain.all_runs:
        assert results.run(run.name).values == run.values


def test_some_only_in_their_order_and_each_once(thinker, data):
    found = evaluate(thinker, data, baselines=(), controls=["filler", "other_trace", "filler"])
    assert [run.name for run in found.controls] == ["filler", "other_trace"]
    again = evaluate(thinker, data, baselines=(), reasoning="on", controls=["other_trace"])
    assert again.run("other_trace").values == found.run("other_trace").values


def test_thoughts_that_are_all_alike_are_told(thinker, data):
    queries = {key: Query("red green") for key in data.queries}
    found = evaluate(thinker, replace(data, queries=queries), baselines=(), controls=["other_trace"])
    assert "40 of 40 got one equal to their own" in found.run("other_trace").setting


def test_no_trace_of_the_data_is_put_there(thinker, make_data):
    traced: RetrievalDataset = make_data(reasoning="xyzzy")
    budgets, samples = (0, 4), (1, 2)
    asked = {"controls": CONTROLS, "budgets": budgets, "samples": samples}
    found = evaluate(thinker, traced, **asked).summary
    assert not any("xyzzy" in text for text in thinker.seen)
    plain = evaluate(type(thinker)(), make_data(), **asked).summary
    for key in ("differences", "examples", "uncertainty"):
        assert found[key] == plain[key]


def test_a_wrong_wish_is_refused_before_the_work(thinker, data):
    with pytest.raises(SearchR3Error, match="no control 'fillers'; did you mean 'filler'"):
        evaluate(thinker, data, controls=["fillers"])
    with pytest.raises(SearchR3Error, match="run 'reasoned', which will not be there"):
        evaluate(thinker, data, reasoning="off", controls=["filler"])
    assert thinker.encoded == 0


def test_a_real_model_reads_them_after_the_reasoning_prompt(search: SearchR3, toy):
    found = evaluate(search, toy, baselines=(), controls=CONTROLS[:3], samples=[2], max_new_tokens=5)
    again = evaluate(search, toy, baselines=(), samples=[2], max_new_tokens=5)
    texts = [toy.queries[query].text for query in found.query_ids]
    own = [len(one.token_ids) for one in thoughts(found, "reasoned")]
    for name in CONTROLS[:3]:
        put = thoughts(found, name)
        vectors = search.encode_query(texts, reasoning=put)
        np.testing.assert_allclose(found.run(name).query_vectors, vectors, atol=1e-5)
        sizes = [len(one.token_ids) for one in put]
        if name == "repeated":
            assert all(size >= least for size, least in zip(sizes, own, strict=True))
        else:
            assert (sizes == own) if name == "filler" else (sorted(sizes) == sorted(own))
    assert found.summary["uncertainty"] == again.summary["uncertainty"]


def test_a_filler_is_one_token(search: SearchR3):
    token = filler_token(search.conversation)
    assert [token] in search.conversation.thought_ids(FILLERS)
    assert search.conversation.thought_text([token]) in {filler.strip() for filler in FILLERS}


def test_a_tokenizer_without_a_filler_is_named():
    class Letters:
        def thought_ids(self, texts):
            return [[*text.encode(), 0] for text in texts]

    with pytest.raises(ModelError, match="as one token; leave this control out"):
        filler_token(Letters())
