"""Triples, the Hub, and which source is read how."""

import gzip
import json
import re
from pathlib import Path

import pytest

from searchr3.dataset import load_dataset, readers
from searchr3.dataset.readers import read_hub, read_triples
from searchr3.dataset.splits import query_key, split_of
from searchr3.errors import DataError


def triples(path: Path, *rows: dict) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_triples(tmp_path):
    dataset = read_triples(
        triples(
            tmp_path / "mine.jsonl",
            {"query": "first", "positive": "one", "negatives": ["two", "three"], "reasoning": "think"},
            {"query": "second", "positive": ["two", "four"]},
            {"query": " first ", "positive": "five", "negatives": ["six"]},
        )
    )
    assert dataset.name == "mine"
    texts = {key: document.text for key, document in dataset.corpus.items()}
    assert sorted(texts.values()) == ["five", "four", "one", "six", "three", "two"]
    found = {}
    for split, qrels in dataset.qrels.items():
        for key, judged in qrels.items():
            query = dataset.queries[key]
            assert split == split_of(query_key(query.text))
            found[query.text] = (
                [texts[one] for one in judged],
                [texts[one] for one in query.negatives],
                query.reasoning,
            )
    assert found == {
        "first": (["one", "five"], ["two", "three", "six"], "think"),
        "second": (["two", "four"], [], None),
    }


def test_a_negative_that_another_line_calls_relevant_is_dropped(tmp_path):
    rows = [
        {"query": "q", "positive": "a", "negatives": ["b"]},
        {"query": "q", "positive": "b", "negatives": ["a"]},
    ]
    (query,) = read_triples(triples(tmp_path / "x.jsonl", *rows)).queries.values()
    assert query.negatives == ()


def test_many_triples_make_all_splits(tmp_path):
    rows = [{"query": f"question {n}", "positive": f"answer {n}"} for n in range(300)]
    dataset = read_triples(triples(tmp_path / "x.jsonl", *rows))
    assert set(dataset.qrels) == {"stage1", "stage2", "dev", "test"}
    assert sum(map(len, dataset.qrels.values())) == 300


def test_zipped_triples_are_the_same(tmp_path):
    path = triples(tmp_path / "mine.jsonl", {"query": "first", "positive": "one"})
    with gzip.open(tmp_path / "mine.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(path.read_text())
    assert load_dataset(tmp_path / "mine.jsonl.gz") == load_dataset(str(path))


BAD_LINES = [
    ({"positive": "one"}, "key 'query' is missing"),
    ({"query": "q"}, "key 'positive' is missing"),
    ({"query": "", "positive": "one"}, "'query' is empty"),
    ({"query": "q", "positive": ""}, "'positive' is empty"),
    ({"query": "q", "positive": []}, "'positive' is empty"),
    ({"query": "q", "positive": ["one", None]}, "key 'positive' is missing"),
    ({"query": "q", "positive": ["one", 2]}, "'positive' must be a text, found int"),
    ({"query": "q", "positive": {"text": "one"}}, "'positive' must be a text or a list of texts, found dict"),
    ({"query": "q", "positive": "one", "negatives": [" "]}, "'negatives' is empty"),
    (
        {"query": "q", "positive": "one", "negatives": ["one"]},
        "the same text is positive and negative: 'one'",
    ),
    ({"query": "q", "positive": "one", "reasoning": ["x"]}, "'reasoning' must be a text, found list"),
]


@pytest.mark.parametrize(("row", "message"), BAD_LINES, ids=[message for _, message in BAD_LINES])
def test_bad_triples_are_named(tmp_path, row, message):
    path = triples(tmp_path / "x.jsonl", {"query": "good", "positive": "good"}, row)
    with pytest.raises(DataError, match=re.escape(f"{path}:2: {message}")):
        read_triples(path)


def test_empty_and_missing_triples(tmp_path):
    with pytest.raises(DataError, match="no triples"):
        read_triples(triples(tmp_path / "x.jsonl"))
    with pytest.raises(DataError, match="no such file"):
        load_dataset(tmp_path / "y.jsonl")


class Hub:
    """A stand-in for `datasets.load_dataset` with some repositories."""

    def __init__(self, **tables):
        self.tables = tables

    def __call__(self, repository, configuration=None):
        return self.tables[f"{repository}/{configuration}" if configuration else repository]


CORPUS = {"corpus": [{"_id": "1", "title": "", "text": "one"}, {"_id": "2", "title": None, "text": "two"}]}
QUERIES = {"queries": [{"_id": "a", "text": "first"}, {"_id": "b", "text": "second"}]}
QRELS = {
    "test": [{"query-id": "a", "corpus-id": 1, "score": 1}, {"query-id": "b", "corpus-id": 2, "score": 2.0}]
}


@pytest.mark.parametrize("place", ["hub-qrels", "hub/qrels", "hub/default"])
def test_hub(place):
    dataset = read_hub("hub", Hub(**{"hub/corpus": CORPUS, "hub/queries": QUERIES, place: QRELS}))
    assert dataset.name == "hub"
    assert [document.text for document in dataset.corpus.values()] == ["one", "two"]
    assert dataset.qrels == {"test": {"a": {"1": 1}, "b": {"2": 2}}}


def test_hub_faults_are_named():
    with pytest.raises(DataError, match=r"hub: no such folder, and the Hub does not give it .*network"):
        read_hub("hub", Hub())
    both = {"hub/corpus": CORPUS, "hub/queries": QUERIES}
    with pytest.raises(DataError, match="hub: no judgements in hub-qrels"):
        read_hub("hub", Hub(**both))
    with pytest.raises(DataError, match="hub qrels test row 1: key 'corpus-id' is missing"):
        read_hub("hub", Hub(**both, **{"hub-qrels": {"test": [{"query-id": "a", "score": 1}]}}))
    with pytest.raises(DataError, match="hub qrels test row 1: judges the unknown document id '9'"):
        read_hub(
            "hub", Hub(**both, **{"hub-qrels": {"test": [{"query-id": "a", "corpus-id": 9, "score": 1}]}})
        )
    with pytest.raises(DataError, match="hub corpus corpus row 2: the document id '1' comes twice"):
        read_hub(
            "hub", Hub(**both | {"hub/corpus": {"corpus": [CORPUS["corpus"][0]] * 2}}, **{"hub-qrels": QRELS})
        )


def test_which_source_is_read_how(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "read_hub", lambda name, on_disk: f"hub {name}")
    monkeypatch.setattr(readers, "read_beir", lambda path, on_disk: f"beir {path.name}")
    monkeypatch.setattr(readers, "read_triples", lambda path, on_disk: f"triples {path.name}")
    (tmp_path / "folder.jsonl").mkdir()
    assert load_dataset(tmp_path / "folder.jsonl") == "beir folder.jsonl"
    assert load_dataset(tmp_path / "file.jsonl.gz") == "triples file.jsonl.gz"
    assert load_dataset("BeIR/scifact") == "hub BeIR/scifact"
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match=r"neither a folder in BEIR's layout nor a \.jsonl"):
        load_dataset(tmp_path / "notes.txt")
    for missing in (tmp_path / "missing", "./missing/here", "a/b/c"):
        with pytest.raises(DataError, match="no such file or folder"):
            load_dataset(missing)
    with pytest.raises(DataError, match="for the data set 'python' only"):
        load_dataset(tmp_path, max_documents=3)


def test_python_is_read_from_this_machine(monkeypatch):
    monkeypatch.setattr("searchr3.dataset.python_code.python_dataset", lambda **options: options)
    assert load_dataset("python", max_documents=5, split_by="package") == {
        "max_documents": 5,
        "split_by": "package",
    }
