"""Data sets on disk: the same data as in memory, whose size memory does not feel."""

import gzip
import json
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from searchr3.dataset import Document, Query, RetrievalDataset, disk, load_dataset
from searchr3.dataset.disk import DISK, MEMORY, Table, numbered, shelves_for, writable
from searchr3.dataset.traces import make_traces
from searchr3.errors import DataError

keys = st.text(st.characters(codec="utf-8"), max_size=3)


@given(st.lists(st.tuples(keys, st.lists(keys, max_size=2))))
def test_a_table_is_a_dict(written):
    table, expected = Table(list, list), {}
    for key, value in written:
        table[key] = expected[key] = value
    assert list(table.items()) == list(expected.items())  # in order, the last value of each
    assert list(table) == list(expected) and list(table.values()) == list(expected.values())
    assert len(table) == len(expected) and table == expected
    assert [table.key(number) for number in range(len(table))] == list(expected)
    assert [table.number(key) for key in expected] == list(range(len(expected)))
    copy = table.copy()
    copy["another key"] = []
    assert table == expected and len(copy) == len(expected) + 1


def test_what_a_table_does_not_hold():
    table = Table(list, list)
    table["a"] = []
    assert "b" not in table and table.number("b") is None and 3 not in table and "\ud800" not in table
    with pytest.raises(KeyError):
        table["b"]
    with pytest.raises(IndexError):
        table.key(1)
    with pytest.raises(TypeError, match="never taken out"):
        del table["a"]


def whole(folder: Path) -> Path:
    """A BEIR folder with everything that one can hold."""
    RetrievalDataset(
        "whole",
        {
            f"d{n}": Document(f"T {n}", "text \u2028 " * n, {"n": str(n)} if n % 2 else {})
            for n in range(1, 60)
        },
        {f"q{n}": Query(f"ask {n}", "think" if n % 3 else None, ("d2",) if n % 5 else ()) for n in range(50)},
        {
            "train": {f"q{n}": {"d1": 0, f"d{n + 3}": 2, "d5": 1} for n in range(40)},
            "test": {"q44": {"d3": 1}},
        },
        frozenset({"d7"}),
        "Find it.",
    ).save(folder)
    return folder


def test_a_folder_on_disk_is_the_folder_in_memory(tmp_path):
    held, read = (load_dataset(whole(tmp_path / str(on)), on_disk=on) for on in (False, True))
    assert isinstance(read.corpus, Table) and isinstance(read.queries, Table)
    assert isinstance(read.split("stage1"), Table) and type(read.split("test")) is dict
    assert read == held and held.qrels.keys() == {"stage1", "stage2", "dev", "test"}
    assert read.training_corpus() == held.training_corpus()
    assert read.without_reasoning() == held.without_reasoning()
    assert make_traces(read, ("stage1",)) == make_traces(held, ("stage1",)) != held
    assert read == held  # traces went into a copy
    for one, name in ((held, "a"), (read, "b")):
        one.save(tmp_path / name)
    files = [path for path in (tmp_path / "a").rglob("*") if path.is_file()]
    assert len(files) > 4
    assert all(
        path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()
        for path in files
    )


def test_a_split_that_is_divided_makes_one_table_for_each_part(tmp_path, monkeypatch):
    made = []

    class Counted(Table):
        def __init__(self, *how):
            super().__init__(*how)
            made.append(self)

    folder = whole(tmp_path / "x")
    monkeypatch.setattr(disk, "Table", Counted)
    dataset = load_dataset(folder, on_disk=True)
    assert len(dataset.split("stage1")) > 1 < len(dataset.split("stage2"))
    assert len(made) == 2 + 2 + 2  # corpus and queries, `train` and `test`, both stages


def test_triples_on_disk_are_those_in_memory(tmp_path):
    rows = [
        {"query": f"q {n % 70}", "positive": [f"p {n}", f"p {n % 9}"], "negatives": [f"n {n % 4}"]}
        for n in range(200)
    ]
    rows.append({"query": "q 1", "positive": "n 1", "reasoning": "late"})  # was a negative before
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    held, read = (load_dataset(path, on_disk=on) for on in (False, True))
    assert read == held and isinstance(read.corpus, Table)
    assert list(read.corpus) == list(held.corpus) and list(read.queries) == list(held.queries)


@pytest.mark.parametrize(
    ("file", "line", "words"),
    [
        ("corpus.jsonl", '{"_id": "d1", "text": "x"}', "document id 'd1' comes twice"),
        ("queries.jsonl", '{"_id": "q1", "text": "x"}', "query id 'q1' comes twice"),
        ("queries.jsonl", '{"_id": "x", "text": "x", "negatives": ["no"]}', "negative 'no' is no document"),
        ("queries.jsonl", r'{"_id": "x", "text": "x", "negatives": ["\ud800"]}', "is no document"),
        ("qrels/test.tsv", "q44\td3\t2", "again, with another score"),
        ("qrels/test.tsv", "q1\td3\t2", "query 'q1' is in the splits"),
    ],
)
def test_faults_are_found_on_disk_too(tmp_path, file, line, words):
    with (whole(tmp_path / "x") / file).open("a") as lines:
        lines.write(line + "\n")
    with pytest.raises(DataError, match=words):
        load_dataset(tmp_path / "x", on_disk=True)


def test_large_data_stay_on_disk_unless_told_otherwise(tmp_path, monkeypatch):
    small, large = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    small.write_bytes(b"x" * 99)
    large.write_bytes(b"x" * 100)
    zipped = tmp_path / "c.jsonl.gz"
    zipped.write_bytes(b"x" * 25)
    monkeypatch.setattr(disk, "LARGE", 100)
    assert shelves_for([small], None) is MEMORY is shelves_for([large], False)
    assert shelves_for([large], None) is DISK is shelves_for([small], True)
    assert shelves_for([zipped], None) is DISK is shelves_for([small, zipped], None)


def test_numbers_of_keys(tmp_path):
    read = load_dataset(whole(tmp_path / "x"), on_disk=True)
    for mapping in (read.training_corpus(), {"a": 1, "b": 2}):
        names, number_of = numbered(mapping)
        assert all(names[number_of(key)] == key for key in mapping)
        assert number_of("nobody") is None and number_of("d7") is None  # d7 is held out


def test_a_copy_to_be_changed_lies_where_the_mapping_does():
    assert writable({"a": 1}) == {"a": 1}
    assert isinstance(writable(DISK.queries()), Table)


def test_a_full_disk_is_one_line():
    script = (
        "import resource, signal\n"
        "from searchr3.dataset.disk import Table\n"
        "from searchr3.errors import SearchR3Error\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))\n"
        "table = Table(str, str)\n"
        "table._base.execute('PRAGMA cache_size=-512')\n"
        "try:\n"
        "    for n in range(4000):\n"
        "        table[str(n)] = 'x' * 1000\n"
        "except SearchR3Error as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "free some space, or set TMPDIR to another folder" in done.stdout


def test_long_texts_leave_no_trace_in_memory(tmp_path):
    text = "long " * 4000
    with (tmp_path / "x.jsonl").open("w") as file:
        for n in range(1500):
            file.write(json.dumps({"query": f"q {n}", "positive": f"{n} {text}"}) + "\n")
    tracemalloc.start()
    try:
        dataset = load_dataset(tmp_path / "x.jsonl", on_disk=True)
        read = sum(len(document.content) for document in dataset.corpus.values())
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert read > 30e6
    assert peak < 3e6


@pytest.mark.slow
def test_many_pairs_take_little_memory(tmp_path):
    """Reading them, and all that stage 1 needs before its first batch; their text alone is 300 MB."""
    with (tmp_path / "x.jsonl").open("w") as file:
        for n in range(400_000):
            row = {"query": f"what is number {n}", "positive": f"number {n} is {'some text ' * 65}{n}"}
            file.write(json.dumps(row) + "\n")
    script = (
        "import resource, sys, torch, searchr3.training.stage1\n"
        "from itertools import islice\n"
        "from searchr3.dataset import load_dataset\n"
        "from searchr3.training.batches import NeighbourSampler\n"
        "from searchr3.training.mixture import Source\n"
        "from searchr3.training.pairs import Pairs\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024\n"
        "before = peak()\n"
        "data = load_dataset(sys.argv[1])\n"
        "pairs = Pairs(data, 'stage1', 'stage2')\n"
        "contents = Source('x', data, pairs, 1.0, 1.0).contents()\n"
        "rows = list(islice(NeighbourSampler(contents, 8, 0), 64))\n"
        "print(len(pairs), len({contents[row] for row in rows}), peak() - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "x.jsonl")], capture_output=True, text=True, check=True
    )
    pairs, distinct, megabytes = done.stdout.split()
    assert int(pairs) > 300_000 and int(distinct) == 64
    assert float(megabytes) < 200
