"""The BEIR layout: reading, writing, every bad line."""

import gzip
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from searchr3.dataset import Document, Query, RetrievalDataset
from searchr3.dataset.beir import read_beir
from searchr3.dataset.splits import TRAIN_DEV_SHARES, query_key, split_of
from searchr3.dataset.types import Eligible, own_copies
from searchr3.errors import DataError, SearchR3Error

HEADER = "query-id\tcorpus-id\tscore\n"


def lines(*rows: dict) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def folder(path: Path, corpus: str = "", queries: str = "", **qrels: str) -> Path:
    """A small BEIR folder with parts replaced."""
    files = {
        "corpus.jsonl": corpus
        or lines({"_id": "d1", "title": "T", "text": "one"}, {"_id": "d2", "text": "two"}),
        "queries.jsonl": queries or lines({"_id": "q1", "text": "first"}, {"_id": "q2", "text": "second"}),
        **{f"qrels/{split}.tsv": text for split, text in (qrels or {"test": f"{HEADER}q1\td1\t1\n"}).items()},
    }
    for name, text in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text, encoding="utf-8")
    return path


def test_reads_a_plain_folder(tmp_path):
    dataset = read_beir(folder(tmp_path / "mine"))
    assert dataset == RetrievalDataset(
        "mine",
        {"d1": Document("T", "one"), "d2": Document("", "two")},
        {"q1": Query("first"), "q2": Query("second")},
        {"test": {"q1": {"d1": 1}}},
    )


def test_reads_a_zipped_folder(tmp_path):
    plain = read_beir(folder(tmp_path))
    for name in ("corpus.jsonl", "queries.jsonl"):
        path = tmp_path / name
        with gzip.open(f"{path}.gz", "wt", encoding="utf-8") as file:
            file.write(path.read_text())
        path.unlink()
    assert read_beir(tmp_path) == plain


def test_reads_reasoning_negatives_and_numbers_as_ids(tmp_path):
    path = folder(
        tmp_path,
        corpus=lines(
            {"_id": 1, "text": "one", "metadata": {"year": 1999, "author": "A"}}, {"_id": 2, "text": "two"}
        ),
        queries=lines({"_id": 7, "text": "first", "reasoning": "because", "negatives": [2]}),
        test=f"{HEADER}7\t1\t1.0\r\n\n",
    )
    dataset = read_beir(path)
    assert dataset.queries == {"7": Query("first", "because", ("2",))}
    assert dataset.corpus["1"].metadata == {"year": "1999", "author": "A"}
    assert dataset.qrels == {"test": {"7": {"1": 1}}}


def test_reasoning_that_is_blank_is_none(tmp_path):
    """Else nobody would be asked for it, and a model would learn to say nothing."""
    path = folder(tmp_path, queries=lines({**QUERY_ROW, "reasoning": " \n"}))
    assert [query.reasoning for query in read_beir(path).queries.values()] == [None]


def many_queries(**splits: range) -> dict[str, str]:
    queries = lines(*({"_id": f"q{n}", "text": f"question number {n}"} for n in range(700)))
    qrels = {split: HEADER + "".join(f"q{n}\td1\t1\n" for n in numbers) for split, numbers in splits.items()}
    return {"queries": queries, **qrels}


def test_a_foreign_train_serves_both_stages_and_dev(tmp_path):
    path = folder(tmp_path, **many_queries(train=range(500), dev=range(0), test=range(500, 700)))
    dataset = read_beir(path)
    assert set(dataset.qrels) == {"stage1", "stage2", "dev", "test"}
    assert len(dataset.qrels["test"]) == 200
    carved = [set(dataset.qrels[split]) for split in ("stage1", "stage2", "dev")]
    assert sum(map(len, carved)) == len(set.union(*carved)) == 500
    for split in ("stage1", "stage2", "dev"):
        keys = [query_key(dataset.queries[query].text) for query in dataset.qrels[split]]
        assert {split_of(key, TRAIN_DEV_SHARES) for key in keys} == {split}


def test_a_dev_that_is_there_stays(tmp_path):
    path = folder(tmp_path, **many_queries(train=range(500), validation=range(500, 700)))
    dataset = read_beir(path)
    assert set(dataset.qrels) == {"stage1", "stage2", "dev"}
    assert set(dataset.qrels["dev"]) == {f"q{n}" for n in range(500, 700)}


@pytest.mark.parametrize(("one", "other"), [("dev", "val"), ("valid", "validation")])
def test_two_files_of_one_split_are_refused(tmp_path, one, other):
    path = folder(tmp_path, **many_queries(**{one: range(10), other: range(10, 20), "test": range(20, 30)}))
    places = f"{tmp_path}/qrels/{one}.tsv and {tmp_path}/qrels/{other}.tsv: both are the split 'dev'; put"
    with pytest.raises(DataError, match=re.escape(places)):
        read_beir(path)
    (tmp_path / "qrels" / f"{other}.tsv").write_text(HEADER)  # an empty file takes nothing from the other
    assert len(read_beir(path).qrels["dev"]) == 10


def test_own_splits_stay(tmp_path):
    path = folder(tmp_path, **many_queries(stage1=range(10), stage2=range(10, 20), test=range(20, 30)))
    assert {split: len(qrels) for split, qrels in read_beir(path).qrels.items()} == {
        "stage1": 10,
        "stage2": 10,
        "test": 10,
    }


@pytest.mark.parametrize("own", ["stage1", "stage2"])
def test_a_train_beside_our_own_stages_is_left_out(tmp_path, own):
    splits = {own: range(10), "train": range(20), "test": range(20, 30)}
    assert {
        split: len(qrels)
        for split, qrels in read_beir(folder(tmp_path, **many_queries(**splits))).qrels.items()
    } == {
        own: 10,
        "test": 10,
    }


CORPUS_ROW, QUERY_ROW = {"_id": "d1", "text": "one"}, {"_id": "q1", "text": "first"}

BAD_LINES = [
    ({"corpus": lines(CORPUS_ROW) + '{"_id": \n'}, "corpus.jsonl:2: not valid JSON"),
    ({"corpus": lines(CORPUS_ROW) + "[1]\n"}, "corpus.jsonl:2: expected a JSON object"),
    (
        {"corpus": lines({"id": "d1", "text": "one"})},
        "corpus.jsonl:1: key '_id' is missing (there is 'id', 'text')",
    ),
    ({"corpus": lines({"_id": "d1"})}, "corpus.jsonl:1: key 'text' is missing"),
    ({"corpus": lines({"_id": "", "text": "one"})}, "corpus.jsonl:1: '_id' is empty"),
    ({"corpus": lines({"_id": "d1", "title": "", "text": " \n"})}, "corpus.jsonl:1: 'text' is empty"),
    (
        {"corpus": lines(CORPUS_ROW, {"_id": "a\tb", "text": "one"})},
        "corpus.jsonl:2: '_id' holds a tab or a line break ('a\\tb'); rename it",
    ),
    ({"queries": lines({"_id": "a\n", "text": "x"})}, "queries.jsonl:1: '_id' holds a tab or a line break"),
    (
        {"corpus": lines({**CORPUS_ROW, "metadata": {"author": "\ud800"}})},
        "corpus.jsonl:1: 'metadata' holds half a character",
    ),
    (
        {"corpus": lines({**CORPUS_ROW, "metadata": {"\ud800": "x"}})},
        "corpus.jsonl:1: 'metadata' holds half a character",
    ),
    ({"corpus": "\n"}, "corpus.jsonl: is empty; write one object a line"),
    ({"queries": "\n"}, "queries.jsonl: is empty; write one object a line"),
    ({"corpus": lines({"_id": "d1", "text": 5})}, "corpus.jsonl:1: 'text' must be a text, found int"),
    ({"corpus": lines({"_id": "d1", "text": "a \ud800"})}, "corpus.jsonl:1: 'text' holds half a character"),
    (
        {"corpus": lines({**CORPUS_ROW, "metadata": [1]})},
        "corpus.jsonl:1: 'metadata' must be an object, found list",
    ),
    ({"corpus": lines(CORPUS_ROW, CORPUS_ROW)}, "corpus.jsonl:2: the document id 'd1' comes twice"),
    ({"queries": lines(QUERY_ROW, QUERY_ROW)}, "queries.jsonl:2: the query id 'q1' comes twice"),
    ({"queries": lines({"_id": "q1", "text": ""})}, "queries.jsonl:1: 'text' is empty"),
    ({"queries": lines({**QUERY_ROW, "reasoning": 1})}, "queries.jsonl:1: 'reasoning' must be a text"),
    (
        {"queries": lines({**QUERY_ROW, "negatives": ["d9"]})},
        "queries.jsonl:1: the negative 'd9' is no document",
    ),
    ({"queries": lines({**QUERY_ROW, "negatives": "d1"})}, "queries.jsonl:1: 'negatives' must be a list"),
    ({"test": f"{HEADER}q1\td1\t1\nq9\td1\t1\n"}, "test.tsv:3: judges the unknown query id 'q9'"),
    ({"test": f"{HEADER}q1\td9\t1\n"}, "test.tsv:2: judges the unknown document id 'd9'"),
    ({"test": f"{HEADER}q1\td1\thigh\n"}, "test.tsv:2: the score 'high' is not a whole number"),
    ({"test": f"{HEADER}q1\td1\t1_0\n"}, "test.tsv:2: the score '1_0' is not a whole number"),
    ({"test": f"{HEADER}q1\td1\t0.5\n"}, "test.tsv:2: the score '0.5' is not a whole number"),
    ({"test": f"{HEADER}q1\td1\tinf\n"}, "test.tsv:2: the score 'inf' is not a whole number"),
    ({"test": f"{HEADER}q1\td1\tnan\n"}, "test.tsv:2: the score 'nan' is not a whole number"),
    (
        {"test": f"{HEADER}q1\td1\t1e300\n"},
        "test.tsv:2: the score '1e300' is not a whole number from 0 to 100",
    ),
    ({"test": f"{HEADER}q1\td1\t101\n"}, "test.tsv:2: the score '101' is not a whole number from 0 to 100"),
    ({"test": f"{HEADER}q1\td1\t-101\n"}, "test.tsv:2: the score '-101' is not a whole number from 0 to 100"),
    ({"train": f"{HEADER}q1\td1\t1\nq1\td9\t1\n"}, "train.tsv:3: judges the unknown document id 'd9'"),
    ({"test": f"{HEADER}q1 d1 1\n"}, "test.tsv:2: 1 columns"),
    ({"test": "q1\td1\t1\n"}, "test.tsv:1: the header is missing (there is 'q1\\td1\\t1'); the first line"),
    ({"test": ""}, "test.tsv:1: the header is missing (the line is empty)"),
    ({"test": f"{HEADER}q1\td1\t1\nq1\td1\t2\n"}, "test.tsv:3: judges query 'q1' and document 'd1' again"),
]


@pytest.mark.parametrize(("parts", "message"), BAD_LINES, ids=[message for _, message in BAD_LINES])
def test_bad_lines_are_named(tmp_path, parts, message):
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        read_beir(folder(tmp_path, **parts))
    assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


# What BEIR's own folders hold


def many(there: int, **parts: str) -> dict[str, str]:
    """A corpus of so many documents, and a test that judges each of them for one query."""
    corpus = lines(*({"_id": f"d{n}", "title": "T", "text": f"text {n}"} for n in range(there)))
    return {"corpus": corpus, "test": HEADER + "".join(f"q1\td{n}\t1\n" for n in range(there)), **parts}


def test_grades_below_0_are_no_answers(tmp_path):
    """TREC's −1 and −2, in trec-covid: pooled and not judged, rubbish."""
    found = read_beir(folder(tmp_path, test=f"{HEADER}q1\td1\t2\nq1\td2\t-1\n"))
    assert found.qrels == {"test": {"q1": {"d1": 2, "d2": 0}}}


def test_a_few_judged_documents_may_be_missing_where_it_is_only_measured(tmp_path, caplog):
    """As in arguana. They stay: a system cannot find them, and trec_eval counts that."""
    parts = many(19)
    parts["test"] += "q2\tgone\t1\n"
    found = read_beir(folder(tmp_path / "few", **parts))
    assert found.qrels["test"]["q2"] == {"gone": 1}
    assert f"{tmp_path}/few/qrels/test.tsv:21: judges the unknown document id 'gone'" in caplog.text
    assert found.validate() is found
    found.save(tmp_path / "saved")
    assert read_beir(tmp_path / "saved").qrels == found.qrels
    parts["test"] += "q2\tfurther\t1\n"
    with pytest.raises(DataError, match=r"test.tsv:21: judges the unknown document id 'gone'; remove"):
        read_beir(folder(tmp_path / "more", **parts))


def test_a_few_documents_may_be_empty_and_are_not_trained_on(tmp_path, caplog):
    """As in trec-covid."""
    parts = many(19)
    parts["corpus"] += lines({"_id": "none", "title": "", "text": " "})
    found = read_beir(folder(tmp_path / "few", **parts))
    assert len(found.corpus) == 20 and found.corpus["none"].content == ""
    assert found.held_out == {"none"} and "none" not in found.training_corpus()
    assert f"{tmp_path}/few/corpus.jsonl:20: 'text' is empty" in caplog.text
    assert found.validate() is found
    found.save(tmp_path / "saved")
    assert read_beir(tmp_path / "saved").corpus == found.corpus
    parts["corpus"] += lines({"_id": "nothing", "text": ""})
    with pytest.raises(DataError, match=r"corpus.jsonl:20: 'text' is empty; fill it or remove the line"):
        read_beir(folder(tmp_path / "more", **parts))


def test_a_query_that_is_a_document_does_not_find_itself(tmp_path):
    """As in arguana and quora. Ids that are the same by chance, and judged answers, are no such thing."""
    words = {"a": "One, two", "b": "other words", "c": "five six", "d": "seven"}
    parts = {
        "corpus": lines(*({"_id": key, "title": "Numbers", "text": text} for key, text in words.items())),
        "queries": lines(
            *({"_id": key, "text": text} for key, text in {**words, "a": "one two", "b": "three"}.items())
        ),
        "test": f"{HEADER}a\tb\t1\nb\ta\t1\nc\tc\t1\n",
        "dev": f"{HEADER}d\ta\t1\nd\td\t0\n",
    }
    found = read_beir(folder(tmp_path / "data", **parts))
    itself = {query: Eligible(frozenset({query}), others=True) for query in ("a", "d")}
    assert found.eligible == itself
    found.save(tmp_path / "saved")
    assert replace(read_beir(tmp_path / "saved"), name="data") == found
    part = replace(found, queries={"b": Query("three")}, qrels={"test": {"b": {"a": 1}}})
    part.save(tmp_path / "part")
    assert not read_beir(tmp_path / "part").eligible


def test_judgements_in_another_encoding(tmp_path):
    file = folder(tmp_path) / "qrels" / "test.tsv"
    file.write_bytes(b"\xef\xbb\xbf" + file.read_bytes())  # as spreadsheets save UTF-8
    assert read_beir(tmp_path).qrels == {"test": {"q1": {"d1": 1}}}
    file.write_bytes(HEADER.encode() + b"q1\td1\t1\nq\xe9\td1\t1\n")
    with pytest.raises(DataError, match=r"test\.tsv:3: not UTF-8 text; convert the file"):
        read_beir(tmp_path)


@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl"])
def test_a_file_and_its_zipped_twin_are_refused(tmp_path, name):
    (folder(tmp_path) / f"{name}.gz").write_bytes(gzip.compress(b"{}"))
    both = f"{tmp_path}/{name} and {tmp_path}/{name}.gz: only one of them"
    with pytest.raises(DataError, match=re.escape(both)):
        read_beir(tmp_path)


@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl", "qrels/test.tsv"])
def test_missing_files_are_named(tmp_path, name):
    (folder(tmp_path) / name).unlink()
    with pytest.raises(DataError, match=name.split("/")[0]):
        read_beir(tmp_path)


def test_a_query_in_two_splits_is_refused(tmp_path):
    row = f"{HEADER}q1\td1\t1\n"
    with pytest.raises(DataError, match="query 'q1' is in the splits"):
        read_beir(folder(tmp_path, train=row, test=row))


texts = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1).filter(str.strip)
ids = st.text(st.characters(codec="utf-8", exclude_characters="\t\r\n"), min_size=1, max_size=6).filter(
    lambda key: key.strip() == key
)


@st.composite
def datasets(draw) -> RetrievalDataset:
    documents = st.builds(
        Document, st.just("") | texts, texts, st.dictionaries(texts, st.text("xyz"), max_size=2)
    )
    corpus = draw(st.dictionaries(ids, documents, min_size=1, max_size=4))
    keys = st.sampled_from(sorted(corpus))
    query = st.builds(Query, texts, st.none() | texts, st.lists(keys, max_size=2).map(tuple))
    queries = draw(st.dictionaries(ids, query, min_size=1, max_size=4))
    qrels: dict = {}
    for key in queries:
        split = draw(st.sampled_from(["stage1", "stage2", "dev", "test"]))
        qrels.setdefault(split, {})[key] = draw(st.dictionaries(keys, st.integers(0, 3), min_size=1))
    return RetrievalDataset(draw(texts), corpus, queries, qrels, frozenset(draw(st.sets(keys))))


@given(datasets())
@settings(deadline=None)
def test_what_is_saved_is_loaded_again(tmp_path_factory, dataset):
    path = tmp_path_factory.mktemp("data") / "saved"
    dataset.save(path)
    loaded = RetrievalDataset.load(path)
    known = own_copies(dataset.corpus, dataset.queries, dataset.qrels)  # which no file holds
    assert loaded == replace(dataset, eligible=known)
    assert list(loaded.corpus) == list(dataset.corpus) and list(loaded.queries) == list(dataset.queries)


def test_saving_leaves_nothing_half_written(tmp_path):
    dataset = read_beir(folder(tmp_path / "mine"))
    broken = RetrievalDataset("x", {"a\tb": Document("", "x")}, {}, {})
    with pytest.raises(DataError, match="id 'a\\\\tb' is empty or holds a tab"):
        broken.save(tmp_path / "new")
    with pytest.raises(DataError, match="unknown query"):
        RetrievalDataset("x", {}, {}, {"test": {"q": {"d": 1}}}).save(tmp_path / "new")
    with pytest.raises(SearchR3Error, match="exists already"):
        dataset.save(tmp_path / "mine")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_an_instruction_that_is_no_text_is_named(tmp_path):
    (folder(tmp_path) / "dataset.json").write_text('{"name": "x", "instruction": 3}')
    with pytest.raises(DataError, match=r"dataset\.json: 'instruction' must be a text, found int"):
        read_beir(tmp_path)


@pytest.mark.parametrize("text", ["[]", "{}", "[" * 100_000])
def test_a_broken_name_file_is_named(tmp_path, text):
    (folder(tmp_path) / "dataset.json").write_text(text)
    with pytest.raises(DataError, match=r"dataset\.json: must be an object with a 'name'"):
        read_beir(tmp_path)


@pytest.mark.parametrize(
    ("name", "fault"),
    [
        ("null", "key 'name' is missing"),
        ('""', "'name' is empty"),
        ("7", "'name' must be a text, found int"),
        (r'"\ud800"', "'name' holds half a character"),
    ],
)
def test_a_name_that_is_no_text_is_told(tmp_path, name, fault):
    (folder(tmp_path) / "dataset.json").write_text(f'{{"name": {name}}}')
    with pytest.raises(DataError, match=rf"dataset\.json: {fault}"):
        read_beir(tmp_path)
