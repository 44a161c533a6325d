"""`evaluate`: the runs it makes, what it never sees, and how it refuses."""

import re
import sys
import tracemalloc
import types
from dataclasses import replace
from importlib.machinery import ModuleSpec

import numpy as np
import pytest
from safetensors.torch import load_file

from searchr3.dataset import Document, Query, RetrievalDataset, load_dataset
from searchr3.errors import DataError, ModelError
from searchr3.evaluation import check_baselines, evaluate
from searchr3.evaluation.bench import Bench
from searchr3.ranking import METRICS, trec_metrics

COMMIT = "a" * 40


def test_runs_and_their_figures(model, data):
    results = evaluate(model, data, name="bag of words")
    assert [run.name for run in results.runs] == ["direct", "reasoned"]
    assert [run.name for run in results.baselines] == ["bm25"]
    assert (results.model, results.data, results.split, results.documents) == (
        "bag of words",
        "colours",
        "test",
        150,
    )
    assert set(results.query_ids) == set(data.qrels["test"])
    direct, reasoned, bm25 = (results.run(name) for name in ("direct", "reasoned", "bm25"))
    queries = [data.queries[query].text for query in results.query_ids]
    scores = model.vectors(queries) @ model.vectors([each.content for each in data.corpus.values()]).T
    run = {
        query: dict(zip(data.corpus, row, strict=True))
        for query, row in zip(results.query_ids, scores, strict=True)
    }
    expected = trec_metrics(run, data.qrels["test"])
    for query in results.query_ids:
        assert direct.values["ndcg@10"][query] == pytest.approx(expected["ndcg@10"][query], abs=1e-6)
        assert len(direct.hits[query]) == 100
        assert [hit.score for hit in direct.hits[query]] == sorted(
            (hit.score for hit in direct.hits[query]), reverse=True
        )
        assert len(reasoned.thoughts[query].token_ids) == 1 + len(data.queries[query].text) % 2
        assert reasoned.thoughts[query].emitted == ("teal" not in data.queries[query].text)
        assert set(reasoned.thoughts[query].text.split()) == {"extra"}
    assert 1 < reasoned.thinking_tokens_mean < 2
    assert 0 < reasoned.emission_rate < 1
    for run in (direct, bm25):
        assert (run.thinking_tokens_mean, run.emission_rate, run.thoughts) == (0, None, {})
    assert bm25.values["recall@100"] != direct.values["recall@100"]
    assert "chosen on dev" in bm25.setting
    assert all(run.seconds > 0 for run in (direct, reasoned, bm25))
    np.testing.assert_array_equal(direct.query_vectors, model.vectors(queries))
    assert not np.allclose(direct.query_vectors, reasoned.query_vectors)
    assert results.document_vectors.shape == (150, 64)


def test_documents_on_disk_are_not_all_held_in_memory(model, tmp_path):
    long = "many words " * 1000
    corpus = {f"d{n}": Document("", f"{n} {long}") for n in range(3000)}
    queries, qrels = {"q": Query("words")}, {"test": {"q": {"d7": 1}}}
    RetrievalDataset("large", corpus, queries, qrels).save(tmp_path / "large")
    del corpus
    dataset = load_dataset(tmp_path / "large", on_disk=True)
    model.vectors = lambda texts: np.ones((len(texts), 4), dtype=np.float32)
    tracemalloc.start()
    try:
        evaluate(model, dataset, baselines=())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert model.encoded == 3000
    assert peak < 25e6  # of 33 MB, a third at a time


def test_vectors_of_documents_are_not_held_twice(model):
    corpus = {f"d{n}": Document("", "word") for n in range(4096)}
    dataset = RetrievalDataset("many", corpus, {"q": Query("words")}, {"test": {"q": {"d7": 1}}})
    bench = Bench(dataset, "test", 100, None)
    model.vectors = lambda texts: np.ones((len(texts), 1024), dtype=np.float32)
    tracemalloc.start()
    try:
        vectors = bench.encode_documents(model)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert vectors.shape == (4096, 1024) and vectors.all()
    assert peak < 1.6 * vectors.nbytes  # all of them, and a block or two


def test_no_trace_reaches_evaluation(model, make_data):
    trace = "xyzzy"
    plain, traced = evaluate(model, make_data()), evaluate(model, make_data(reasoning=trace))
    for run in ("direct", "reasoned", "bm25"):
        assert plain.run(run).values == traced.run(run).values
        assert plain.run(run).hits == traced.run(run).hits
        assert plain.run(run).thoughts == traced.run(run).thoughts
    assert model.seen and not any(trace in text for text in model.seen)
    # the trace would have shown: the same text in the query changes the vectors
    data = make_data()
    assert not np.allclose(
        model.vectors([data.queries["q20"].text]), model.vectors([data.queries["q20"].text + trace])
    )


def test_the_model_is_told_the_instruction(model, data):
    told = []

    class Told(type(model)):
        def generate(self, batch, max_new_tokens, instruction=None):
            told.append(instruction)
            return super().generate(batch, max_new_tokens)

        def encode_query(self, queries, reasoning=False, instruction=None):
            told.append(instruction)
            return super().encode_query(queries, reasoning)

    evaluate(Told(), replace(data, instruction="Find colours."), baselines=())
    assert told == ["Find colours."] * 3  # direct; thinking, then after it


def test_a_query_that_gives_its_trace_away_is_never_asked(model, make_data):
    """Whatever an evaluation reads, it reads from the data set without traces."""

    class Watched:
        def __init__(self, data):
            self.data = data

        def without_reasoning(self):
            return self.data.without_reasoning()

        name = property(lambda self: self.data.name)
        corpus = property(lambda self: self.data.corpus)

        @property
        def queries(self):
            raise AssertionError("evaluation read the queries with their traces")

    assert evaluate(model, Watched(make_data(reasoning="xyzzy"))).run("direct")


@pytest.mark.parametrize(("reasoning", "names"), [("off", ["direct"]), ("on", ["reasoned"])])
def test_one_way_only(model, data, reasoning, names):
    results = evaluate(model, data, reasoning=reasoning, baselines=())
    assert [run["name"] for run in results.summary["runs"]] == names
    assert results.summary["differences"] == []


def test_known_document_vectors_are_used(model, data):
    vectors = model.vectors([document.content for document in data.corpus.values()])
    backwards = evaluate(model, data, baselines=(), document_vectors=vectors[::-1])
    assert model.encoded == 0
    forwards = evaluate(model, data, baselines=(), document_vectors=vectors)
    assert forwards.summary["runs"][0]["ndcg@10"] > backwards.summary["runs"][0]["ndcg@10"]
    with pytest.raises(ValueError, match="3 document vectors for a corpus of 150"):
        evaluate(model, data, document_vectors=vectors[:3])


def test_tokens_are_limited(model, data):
    assert evaluate(model, data, baselines=(), max_new_tokens=1).run("reasoned").thinking_tokens_mean == 1


def test_a_run_made_before_serves_as_baseline(model, data, make_data):
    before = evaluate(model, data).run("bm25")
    assert evaluate(model, data, baselines=[before]).run("bm25") is before
    with pytest.raises(ValueError, match="same queries"):
        evaluate(model, make_data(), split="dev", baselines=[before])


def test_bm25_without_dev_is_not_tuned(model, data):
    data.qrels.pop("dev")
    assert "not tuned" in evaluate(model, data).run("bm25").setting


def test_progress_tells_every_phase_to_its_end(model, data):
    told = {}

    def progress(what, done, total):
        assert told.get(what, (0, total))[0] <= done <= total
        told[what] = (done, total)

    evaluate(model, data, progress=progress)
    assert {"documents", "direct queries", "thinking", "bm25: ranking"} <= told.keys()
    assert told["documents"] == (150, 150)
    assert told["thinking"] == told["direct queries"] == (40, 40)


def test_refusals(model, data):
    with pytest.raises(ValueError, match="off, on, auto, both, all"):
        evaluate(model, data, reasoning="maybe")
    with pytest.raises(ValueError, match="at least 100"):
        evaluate(model, data, depth=10)
    with pytest.raises(DataError, match=r"no split 'tset'.*did you mean 'test'"):
        evaluate(model, data, split="tset")
    data.qrels["test"] = {}
    with pytest.raises(DataError, match="judges no query"):
        evaluate(model, data)


def test_a_diverged_model_is_named(model, data):
    model.vectors = lambda texts: np.full((len(texts), 4), np.nan, dtype=np.float32)
    with pytest.raises(ModelError, match="diverged"):
        evaluate(model, data, baselines=())


class FakeTransformer:
    """Stands in for SentenceTransformer: a bag of words under another name."""

    def __init__(self, path, device, model_kwargs):
        assert model_kwargs == {"use_safetensors": True}
        if "broken" in path:
            raise OSError("no file named model.safetensors\nmore lines")
        from hashlib import sha256

        self.salt = sha256(path.encode()).hexdigest()

    def encode_query(self, texts, normalize_embeddings, show_progress_bar):
        assert normalize_embeddings and not show_progress_bar
        return np.stack([np.bincount([ord(c) % 32 for c in text], minlength=32) for text in texts]).astype(
            np.float32
        )

    encode_document = encode_query


def cached(cache, name, file):
    """A model as the Hub's cache holds it, as far as it tells what the model is."""
    folder = cache / f"models--{name.replace('/', '--')}"
    (folder / "snapshots" / COMMIT).mkdir(parents=True)
    (folder / "snapshots" / COMMIT / file).write_text("{}")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """The Hub's cache, with two models of sentence-transformers, one of ours, and one of neither."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    files = {
        "some/model": "modules.json",
        "broken/model": "modules.json",
        "our/model": "searchr3.json",
        "bare/model": "config.json",
    }
    for name, file in files.items():
        cached(tmp_path / "hub", name, file)


@pytest.fixture
def sentence_transformers(hub, monkeypatch):
    module = types.ModuleType("sentence_transformers")
    module.SentenceTransformer = FakeTransformer
    module.__spec__ = ModuleSpec("sentence_transformers", None)
    monkeypatch.setitem(sys.modules, "sentence_transformers", module)


def test_another_model_as_baseline(model, data, sentence_transformers):
    results = evaluate(model, data, baselines=("bm25", "some/model", "some/model"))
    assert [run.name for run in results.baselines] == ["bm25", "some/model"]
    pairs = {(row["a"], row["b"]) for row in results.summary["differences"]}
    assert pairs == {
        ("reasoned", "direct"),
        *((own, other) for own in ("direct", "reasoned") for other in ("bm25", "some/model")),
    }
    assert len(results.summary["differences"]) == len(pairs) * len(METRICS)


@pytest.mark.parametrize("device", ["cpu", "cuda:1", None])
def test_a_baseline_computes_where_the_model_does(model, data, sentence_transformers, monkeypatch, device):
    """Else their seconds could not be compared; and another GPU may have no room for it."""
    asked = []

    class Told(FakeTransformer):
        def __init__(self, path, device, model_kwargs):
            asked.append(device)
            super().__init__(path, device, model_kwargs)

    monkeypatch.setattr(sys.modules["sentence_transformers"], "SentenceTransformer", Told)
    if device:
        model.device = device
    evaluate(model, data, baselines=("some/model",))
    assert asked == [device]


def test_a_baseline_that_cannot_be_loaded(model, data, sentence_transformers, tmp_path, monkeypatch):
    with pytest.raises(
        ModelError, match=r"baseline broken/model: cannot load it \(no file named model.safetensors\); give"
    ):
        evaluate(model, data, baselines=("broken/model",))
    for neither in (str(tmp_path), "bare/model"):
        with pytest.raises(ModelError, match="neither a searchr3 nor a sentence-transformers model"):
            evaluate(model, data, baselines=(neither,))
    with pytest.raises(ModelError, match="baseline bm52: neither bm25, nor a folder, nor a Hub id"):
        evaluate(model, data, baselines=("bm25", "bm52"))
    with pytest.raises(ModelError, match="baseline nobody/nothing: no such folder, and the Hub"):
        evaluate(model, data, baselines=("nobody/nothing",))
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ModelError, match="pip install"):
        evaluate(model, data, baselines=("some/model",))
    assert model.encoded == 0  # all of this before the work begins


def test_a_searchr3_model_as_baseline_is_not_pooled(model, data, tmp_path, hub, monkeypatch):
    (tmp_path / "searchr3.json").write_text("{}")
    monkeypatch.setitem(
        sys.modules, "searchr3.model", types.SimpleNamespace(SearchR3=lambda path, device: model)
    )
    results = evaluate(model, data, baselines=(str(tmp_path), "our/model"))
    for name in (str(tmp_path), "our/model"):
        assert results.run(name).values == results.run("direct").values


def test_baselines_are_checked_without_loading_them(sentence_transformers, monkeypatch):
    monkeypatch.setattr(FakeTransformer, "__init__", lambda *_, **__: pytest.fail("loaded"))
    check_baselines(["bm25", "some/model", "our/model"])


@pytest.mark.parametrize("name", ["direct", "reasoned", "auto", "filler", "bm25+trace"])
def test_a_baseline_has_no_name_of_another_run(name, tmp_path, monkeypatch):
    """Its values would be taken for those of the model."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).mkdir()
    (tmp_path / name / "searchr3.json").write_text("{}")
    with pytest.raises(ModelError, match=re.escape(f"write ./{name}")):
        check_baselines([name])
    check_baselines([f"./{name}"])


def test_hits_stand_in_the_order_that_is_measured(model):
    """Of equal scores the greater id is first, as trec_eval has it."""
    corpus = {key: Document("", "red thing") for key in ("b", "c", "a")}
    tied = RetrievalDataset("tied", corpus, {"q": Query("red")}, {"test": {"q": {"b": 1}}})
    for run in evaluate(model, tied).all_runs:
        assert [hit.document for hit in run.hits["q"]] == ["c", "b", "a"], run.name
        assert run.values["mrr@10"]["q"] == 1 / 2


def test_nothing_is_judged_an_answer(model, data):
    none = replace(data, qrels={"test": {"q1": {"d1": 0}, "q2": {"d2": 0}}})
    with pytest.raises(DataError, match="split 'test' judges no document to be an answer: all scores are 0"):
        evaluate(model, none)


def test_weights_of_a_baseline_are_never_unpickled(model, data, tiny_base, tmp_path):
    pytest.importorskip("sentence_transformers")
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    words = Transformer(str(tiny_base))
    folder = tmp_path / "other"
    SentenceTransformer(modules=[words, Pooling(32)], device="cpu").save(str(folder))
    check_baselines([str(folder)])
    (weights,) = folder.rglob("*.safetensors")
    torch.save(load_file(weights), weights.with_name("pytorch_model.bin"))
    weights.unlink()
    with pytest.raises(ModelError, match=r"cannot load it .*safetensors"):
        evaluate(model, data, baselines=(str(folder),))
