"""Our models inside mteb, and mteb's tasks as our data sets: the same scores, query by query."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from searchr3.dataset import Document, Eligible, load_dataset
from searchr3.dataset.mteb_task import dataset_of, document_from, find_task, read_mteb, task_instruction
from searchr3.errors import DataError
from searchr3.evaluation import evaluate
from searchr3.evaluation.collection import read_collection
from searchr3.evaluation.mteb_adapter import SearchR3Encoder, with_own_metric
from searchr3.evaluation.page import render_page
from searchr3.evaluation.several import Plan, evaluate_several
from searchr3.evaluation.suites import SUITES

mteb = pytest.importorskip("mteb")
from mteb._evaluators.retrieval_metrics import evaluate_p_mrr_change  # noqa: E402
from mteb.abstasks import AbsTaskRetrieval  # noqa: E402
from mteb.abstasks.task_metadata import TaskMetadata  # noqa: E402

PACK = Path(os.environ.get("SEARCHR3_PACK", Path(__file__).parents[3] / "shared" / "packs" / "scifact"))


def task_of(folder: Path, name: str = "Colours", split: str = "test", **traits: Any) -> AbsTaskRetrieval:
    """A task of mteb whose data is a BEIR folder; it keeps mteb's own scores of each query in `scored`."""
    kind = traits.pop("kind", "Retrieval")
    metadata = TaskMetadata(
        name=name,
        description="A task of a local folder.",
        dataset={"path": f"nobody/{name}", "revision": "1"},
        type=kind,
        category="t2t",
        modalities=["text"],
        eval_splits=[split],
        eval_langs=["eng-Latn"],
        main_score=traits.pop("main_score", "ndcg_at_10"),
        prompt=traits.pop("prompt", None),
        reference=None,
        date=None,
        domains=None,
        task_subtypes=None,
        license=None,
        annotations_creators=None,
        dialect=None,
        sample_creation=None,
        bibtex_citation=None,
    )

    def load_data(self: Any, **_: Any) -> None:
        if self.data_loaded:
            return
        data = load_dataset(folder)
        documents = {key: {"title": one.title, "text": one.text} for key, one in data.corpus.items()}
        judged = {query: dict(grades) for query, grades in data.qrels["test"].items()}
        self.corpus = {split: documents}
        self.queries = {split: {query: data.queries[query].text for query in judged}}
        self.relevant_docs = {split: judged}
        for trait in ("instructions", "top_ranked"):
            if trait in traits:
                setattr(self, trait, {split: traits[trait]})
        self.data_loaded = True

    def task_specific_scores(self: Any, scores: Any, qrels: Any, results: Any, **_: Any) -> dict[str, float]:
        self.scored = scores
        if "changed" in traits:
            return evaluate_p_mrr_change(qrels, results, traits["changed"], self.k_values)
        return {}

    members = {"metadata": metadata, "load_data": load_data, "task_specific_scores": task_specific_scores}
    members["ignore_identical_ids"] = traits.pop("ignore_identical_ids", False)
    return type(name, (AbsTaskRetrieval,), members)()


@pytest.fixture
def beir(data, tmp_path: Path) -> Path:
    """The colours as a BEIR folder, with graded judgements, one of them 0, and a query nothing suits."""
    qrels = {split: dict(judged) for split, judged in data.qrels.items()}
    qrels["test"]["q20"] = {**qrels["test"]["q20"], "d1": 0, "d2": 3}
    qrels["test"]["q21"] = {"d3": 0}
    replace(data, qrels=qrels).save(tmp_path / "beir")
    return tmp_path / "beir"


def run_mteb(encoder: SearchR3Encoder, task: AbsTaskRetrieval) -> dict[str, Any]:
    """mteb's scores of a task."""
    found = mteb.evaluate(encoder, task, cache=None, show_progress_bar=False)
    (result,) = found.task_results
    ((scores,),) = result.scores.values()
    return scores


def assert_same(task: AbsTaskRetrieval, scores: dict[str, Any], values: Any) -> None:
    """mteb's nDCG@10 and recall of each query, and its rounded means, are ours."""
    assert task.scored.keys() == values["ndcg@10"].keys()
    for query, theirs in task.scored.items():
        assert values["ndcg@10"][query] == pytest.approx(theirs["ndcg_cut_10"], abs=1e-6)
        assert values["recall@10"][query] == pytest.approx(theirs["recall_10"], abs=1e-6)
    for ours, name in (("ndcg@10", "ndcg_at_10"), ("recall@10", "recall_at_10"), ("mrr@10", "mrr_at_10")):
        assert np.mean([*values[ours].values()]) == pytest.approx(scores[name], abs=6e-6)  # theirs: 5 digits


def test_a_document_without_text_is_its_title_once():
    in_the_corpus = {"title": "Red ", "text": ""}
    in_a_batch = {"title": "Red", "text": "Red ", "body": ""}
    assert document_from(in_the_corpus) == document_from(in_a_batch) == Document("Red", "")
    assert document_from({"text": "blue", "body": None}) == Document("", "blue")


@pytest.mark.parametrize("reasoning", [False, True])
def test_the_score_is_mteb_s_own(model, beir, reasoning):
    task = task_of(beir)
    scores = run_mteb(SearchR3Encoder(model, reasoning, name="a/bag", revision="1"), task)
    run = "reasoned" if reasoning else "direct"
    assert_same(task, scores, evaluate(model, load_dataset(beir), baselines=()).run(run).values)
    ours = evaluate(model, dataset_of(task_of(beir, split="standard")), baselines=())
    assert_same(task, scores, ours.run(run).values)


def test_with_excluded_documents_and_without_itself(model, beir):
    """BRIGHT's way: everything is a candidate but some; and ArguAna's: a document is not its own answer."""
    data = load_dataset(beir)
    everything = list(data.corpus)
    left_out = {query: everything[number::7] for number, query in enumerate(data.qrels["test"])}
    top_ranked = {query: [d for d in everything if d not in out] for query, out in left_out.items()}
    bright = task_of(beir, top_ranked=top_ranked)
    read = dataset_of(bright)
    assert read.eligible["q20"] == Eligible(frozenset(left_out["q20"]), others=True)

    named = replace(
        data,
        queries={f"d{query[1:]}": one for query, one in data.queries.items()},
        qrels={"test": {f"d{query[1:]}": judged for query, judged in data.qrels["test"].items()}},
    )
    named.save(beir.with_name("named"))
    arguana = task_of(beir.with_name("named"), ignore_identical_ids=True)
    for task in (bright, arguana):
        scores = run_mteb(SearchR3Encoder(model, False, name="a/bag", revision="1"), task)
        results = evaluate(model, dataset_of(task), reasoning="off")
        assert_same(task, scores, results.run("direct").values)
        for query, hits in results.run("bm25").hits.items():
            assert query not in {hit.document for hit in hits}
            if task is bright:
                assert not {hit.document for hit in hits} & set(left_out[query])


@pytest.mark.parametrize("of_three", [1, 2, 3])  # a third of the corpus, more than half of it, all
def test_p_mrr_is_mteb_s_own_for_every_run(model, data, tmp_path, monkeypatch, of_three):
    """FollowIR's way: each query twice, with an instruction and a changed one, over some candidates."""
    chosen = [f"q{number}" for number in range(20, 30)]
    queries = {f"{q}-{way}": data.queries[q] for q in chosen for way in ("og", "changed")}
    changed = {q: [f"d{int(q[1:])}", f"d{int(q[1:]) + 60}"] for q in chosen}
    judged = {
        query: {**data.qrels["test"][q], **dict.fromkeys(changed[q], int(query.endswith("-og")))}
        for query in queries
        for q in [query.split("-")[0]]
    }
    replace(data, queries=queries, qrels={"test": judged}).save(tmp_path / "follow")
    instructions = {query: "red teal" if query.endswith("-changed") else "" for query in queries}
    candidates = {
        query: [f"d{n}" for n in range(150) if (n - int(query[1:3])) % 3 < of_three] for query in queries
    }
    traits = {"kind": "InstructionReranking", "main_score": "p-MRR", "changed": changed}
    traits |= {"instructions": instructions, "top_ranked": candidates}

    monkeypatch.setattr(mteb, "get_task", lambda name, **_: task_of(tmp_path / "follow", **traits))
    source = "mteb:Colours"
    results = Plan("bag").measure(model, source, load_dataset(source))
    for name, reasoning in (("direct", False), ("reasoned", True)):
        task = find_task(source)
        scores = run_mteb(SearchR3Encoder(model, reasoning, name="a/bag", revision="1"), task)
        assert_same(task, scores, results.run(name).values)
        assert results.scores[name]["p-mrr"] == pytest.approx(scores["p-MRR"], abs=1e-9)
        assert scores["p-MRR"] != 0
        low, high = results.summary["runs"][reasoning]["ci95"]["p-mrr"]
        assert -1 <= low < scores["p-MRR"] < high <= 1
    by_name = {run["name"]: run for run in results.summary["runs"]}
    assert "p-mrr" in by_name["bm25"]
    (row,) = [
        row
        for row in results.summary["differences"]
        if (row["a"], row["b"], row["metric"]) == ("reasoned", "direct", "p-mrr")
    ]
    gain = by_name["reasoned"]["p-mrr"] - by_name["direct"]["p-mrr"]
    assert row["mean"] == pytest.approx(gain, abs=1e-9)
    assert row["ci95"][0] <= gain <= row["ci95"][1] and 0 < row["p"] <= 1
    results.save(tmp_path / "follow.json")
    (one,) = read_collection([tmp_path / "follow.json"]).evaluations
    assert one.difference("direct", "reasoned", "p-mrr").mean == pytest.approx(-gain)
    assert "reasoned − direct, p-MRR" in render_page(read_collection([tmp_path / "follow.json"]))

    traits["changed"] = {q: ["d1"] for q in chosen}  # not what the judgements show: no interval is invented
    found = with_own_metric(source, load_dataset(source), results)
    assert "ci95" not in found.scores["direct"] and found.own_differences == []


def test_the_instruction_of_the_task_is_told_and_documents_do_not_think(model, beir):
    told = []

    class Told(type(model)):
        def generate(self, batch, max_new_tokens, instruction=None):
            told.append(instruction)
            return super().generate(batch, max_new_tokens)

        def encode_query(self, queries, reasoning=False, instruction=None):
            told.append(instruction)
            return super().encode_query(queries, reasoning)

    prompt = {"query": "Represent this colour for searching: "}
    ours = Told()
    run_mteb(SearchR3Encoder(ours, True, name="a/bag", revision="1"), task_of(beir, prompt=prompt))
    assert told == ["Represent this colour for searching"] * 2
    assert len(ours.seen) == 2 * 40 and ours.encoded == 150
    told.clear()
    encoder = SearchR3Encoder(ours, True, instructions=False, name="a/bag", revision="1")
    run_mteb(encoder, task_of(beir, prompt=prompt))
    assert told == [None, None]
    assert dataset_of(task_of(beir, prompt=prompt)).instruction == "Represent this colour for searching"
    assert task_instruction(SimpleNamespace(prompt=None)) is None
    assert task_instruction(SimpleNamespace(prompt="Find it")) == "Find it"


def test_similarities_are_cosines_and_copies_tie(model, monkeypatch):
    monkeypatch.setattr("searchr3.evaluation.mteb_adapter._QUERIES", 3)
    encoder = SearchR3Encoder(model, False, name="a/bag", revision="1")
    rng = np.random.default_rng(0)
    queries, documents = (rng.normal(size=(n, 8)).astype(np.float32) for n in (7, 5))
    documents[4] = documents[1]
    found = encoder.similarity(queries, documents)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, queries @ documents.T, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found[:, 4], found[:, 1])
    assert encoder.similarity(queries[0], documents).shape == (1, 5)
    pairwise = encoder.similarity_pairwise(queries[:5], documents)
    np.testing.assert_allclose(pairwise, np.diag(found), rtol=1e-6)


def test_a_real_model_in_mteb(tiny_model, toy, tmp_path):
    from searchr3 import SearchR3

    model = SearchR3(tiny_model)
    toy.save(tmp_path / "toy")
    task = task_of(tmp_path / "toy", "Toy")
    encoder = SearchR3Encoder(model, max_new_tokens=4)
    scores = run_mteb(encoder, task)
    ours = evaluate(model, load_dataset(tmp_path / "toy"), baselines=(), max_new_tokens=4)
    assert_same(task, scores, ours.run("reasoned").values)
    meta = encoder.mteb_model_meta
    assert meta.name.startswith("searchr3/") and meta.name.endswith("tiny-model")
    same, other = SearchR3(tiny_model), SearchR3(tiny_model, max_length=32)
    assert SearchR3Encoder(same).mteb_model_meta.revision == meta.revision
    assert SearchR3Encoder(other).mteb_model_meta.revision != meta.revision
    assert SearchR3Encoder(same, False).mteb_model_meta.experiment_name != meta.experiment_name


def test_what_is_no_search_among_texts_is_refused():
    for source, words in (
        ("mteb:SciFcat", "did you mean mteb:SciFact"),
        ("mteb:MKQARetrieval", "mteb:MKQARetrieval/… with ar, da"),
        ("mteb:MKQARetrieval/xx", "name one of its subsets"),
        ("mteb:SciFact/en", "name one of its subsets"),
        ("mteb:CQADupstackRetrieval", "mteb:CQADupstackAndroidRetrieval"),
        ("mteb:STS12", "is STS of text, not a search"),
    ):
        with pytest.raises(DataError, match=words):
            find_task(source)
    assert find_task("mteb:MKQARetrieval/en").hf_subsets == ["en"]


def test_every_task_of_the_suites_is_there():
    for sources in SUITES.values():
        for source in sources:
            assert find_task(source).metadata.name in source


def test_data_that_cannot_be_had_is_one_line_and_the_others_are_measured(model, beir, tmp_path, monkeypatch):
    def get_task(name: str, **_: Any) -> AbsTaskRetrieval:
        task = task_of(beir, name)
        if name == "Away":
            monkeypatch.setattr(task, "load_data", lambda **_: (_ for _ in ()).throw(OSError("no\nroute")))
        return task

    monkeypatch.setattr(mteb, "get_task", get_task)
    with pytest.raises(DataError, match=r"mteb:Away: its data, nobody/Away of .* \(no\); check the network"):
        read_mteb("mteb:Away")
    summary = evaluate_several(lambda: model, ["mteb:Away", "mteb:Here"], tmp_path / "out", Plan("bag"))
    assert [one["task"] for one in summary["missing"]] == ["Away"]
    assert json.loads((tmp_path / "out" / "Here.json").read_text())["data"] == "Here"


@pytest.mark.slow
@pytest.mark.skipif(not PACK.is_dir(), reason="no pack there; name one in SEARCHR3_PACK")
def test_a_pack_scores_as_in_mteb(model):
    model.dimension = 256
    task = task_of(PACK, "Pack")
    scores = run_mteb(SearchR3Encoder(model, False, name="a/bag", revision="1"), task)
    ours = evaluate(model, load_dataset(PACK), reasoning="off", baselines=())
    assert_same(task, scores, ours.run("direct").values)
