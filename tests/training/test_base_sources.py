"""What a tiny base reads: never a query of dev or test, and what `base.json` tells about it afterwards."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from searchr3.dataset import Document, Query, RetrievalDataset
from searchr3.errors import DataError, ModelError
from searchr3.training.base_facts import ids_digest, read_facts, was_taught
from searchr3.training.base_rows import LONGEST_TEXT
from searchr3.training.base_sources import (
    Source,
    data_sources,
    hold_out_source,
    kept_apart,
    pair_talk,
    pieces,
    text_source,
)


def toy(name: str = "toy") -> RetrievalDataset:
    """Eight documents; two queries in each split, the first ones of dev and stage1 in the same words."""
    corpus = {f"d{i}": Document(f"title {i}", f"body {name} {i}") for i in range(8)}
    splits = ("stage1", "stage2", "dev", "test")
    queries = {f"q{i}": Query(f"{name} query {i}") for i in range(8)}
    queries["q4"] = Query(f"{name.upper()}: query 0?")
    qrels = {
        split: {f"q{2 * n + i}": {f"d{2 * n + i}": 1} for i in range(2)} for n, split in enumerate(splits)
    }
    return RetrievalDataset(name, corpus, queries, qrels, frozenset({"d7"}))


def test_pairs_are_of_training_queries_alone(tmp_path: Path) -> None:
    toy().save(tmp_path / "toy")
    other = toy("other")
    queries = other.queries | {"q1": Query("toy query 7")}  # a test query of the first data set
    replace(other, queries=queries).save(tmp_path / "other")

    first, second = kept_apart(data_sources([tmp_path / "toy", tmp_path / "other"], pairs=True))

    asked = [(talk[0][1], talk[1][1]) for talk in first.talks]
    assert asked == [(f"toy query {i}", f"title {i}\nbody toy {i}") for i in (1, 2, 3)]
    assert [talk[0] for talk in second.talks] == [("user", f"other query {i}") for i in (2, 3)]
    held_out = [toy().queries[f"q{i}"].text for i in range(4, 8)]
    read = [*first.texts, *(text for talk in first.talks for _, text in talk)]
    assert not [query for query in held_out if any(query in text for text in read)]


def test_all_documents_but_held_out_ones_are_read_and_no_query(tmp_path: Path) -> None:
    toy().save(tmp_path / "toy")
    (source,) = data_sources([tmp_path / "toy"])
    assert source.texts == [f"title {i}\nbody toy {i}" for i in range(7)]
    assert not source.talks
    assert source.facts["pairs"] is False


def test_a_relevant_document_that_is_held_out_is_no_answer(tmp_path: Path) -> None:
    dataset = toy()
    dataset.qrels["stage1"]["q1"] = {"d7": 1, "d5": 0}
    dataset.save(tmp_path / "toy")
    (source,) = kept_apart(data_sources([tmp_path / "toy"], pairs=True))
    assert [talk[0][1] for talk in source.talks] == ["toy query 2", "toy query 3"]


def test_what_will_be_tested_is_in_no_pair_whatever_its_source(tmp_path: Path) -> None:
    toy().save(tmp_path / "toy")
    turns = (("system", "toy query 4"), ("user", "hi"), ("assistant", "hello"), ("user", "Toy query 7?"))
    docstrings = [pair_talk(f"toy query {i}", "def f(): ...") for i in range(8)]
    others = [Source("python", ["toy query 7"], docstrings), Source("text", [], [turns, turns[:3]])]

    code, text, held = kept_apart([*others, hold_out_source(tmp_path / "toy")])

    assert [talk[0][1] for talk in code.talks] == ["toy query 1", "toy query 2", "toy query 3", "toy query 4"]
    assert text.talks == [turns[:3]] and code.texts == ["toy query 7"]  # what is only said is no pair
    assert (held.name, held.texts, held.talks) == ("hold-out-toy", [], [])
    assert held.facts["held_out_queries"] == 4 and not was_taught({"sources": [held.facts]}, toy())
    assert kept_apart(others) == others


def test_running_text_and_conversations_of_a_file(tmp_path: Path) -> None:
    rows = [
        {"text": "word " * 600},
        {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]},
    ]
    place = tmp_path / "small" / "train.jsonl.gz"
    place.parent.mkdir()
    place.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    source = text_source(place)
    assert source.name == "small-train"
    assert " ".join(source.texts).split() == ["word"] * 600
    assert len(source.texts) == 3
    assert source.talks == [(("user", "hi"), ("assistant", "hello"))]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"title": "x"}, "key 'text' is missing"),
        ({"messages": []}, "must be a list of objects"),
        ({"messages": ["hi"]}, "must be a list of objects"),
        ({"messages": [{"role": "user"}]}, "key 'content' is missing"),
        ({"messages": [{"role": "robot", "content": "hi"}]}, "unknown role 'robot'"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, row: dict, words: str) -> None:
    (tmp_path / "text.jsonl").write_text(json.dumps({"text": "fine"}) + "\n" + json.dumps(row))
    with pytest.raises(DataError, match=rf"text\.jsonl:2: .*{words}"):
        text_source(tmp_path / "text.jsonl")


@given(text=st.text(alphabet="ab \n\u00a0", max_size=4000).map(lambda text: text * 2))
def test_pieces_lose_nothing_but_white_space(text: str) -> None:
    found = list(pieces(text))
    assert all(0 < len(one) <= LONGEST_TEXT and one == one.strip() for one in found)
    assert "".join("".join(found).split()) == "".join(text.split())
    if max(map(len, text.split()), default=0) <= LONGEST_TEXT:
        assert " ".join(found).split() == text.split()


def facts_of(folder: Path, *, pairs: bool) -> dict:
    (source,) = data_sources([folder], pairs)
    return {"sources": [{"name": source.name, **source.facts}]}


def test_a_base_is_refused_where_other_queries_are_held_out(tmp_path: Path) -> None:
    dataset = toy()
    dataset.save(tmp_path / "toy")
    taught, untaught = (facts_of(tmp_path / "toy", pairs=pairs) for pairs in (True, False))
    swapped = replace(
        dataset, qrels=dataset.qrels | {"test": dataset.qrels["stage1"], "stage1": dataset.qrels["test"]}
    )
    renamed = replace(swapped, name="another")
    smaller = replace(dataset, qrels={"test": {"q0": {"d0": 1}}}, queries={"q0": Query("q")})

    assert not was_taught(taught, dataset)
    assert not was_taught(taught, replace(dataset, name="another"))
    assert all(was_taught(taught, one) for one in (swapped, renamed, smaller))
    assert not any(was_taught(untaught, one) for one in (dataset, swapped, renamed, smaller))
    assert not was_taught(taught, replace(smaller, name="unknown"))
    assert not was_taught({}, swapped)


def test_installed_code_is_known_by_how_it_was_split() -> None:
    python = replace(toy("python"), held_out=frozenset())
    facts = {"sources": [{"name": "python", "kind": "python", "split_by": "hash", "pairs": True}]}
    assert not was_taught(facts, python)
    assert was_taught(facts, replace(python, held_out=frozenset({"d0"})))


def test_a_folder_without_facts_and_one_with_wrong_ones(tmp_path: Path) -> None:
    assert read_facts(tmp_path) == {}
    for wrong in ("{}", "[1]", "{", '{"sources": [1]}'):
        (tmp_path / "base.json").write_text(wrong)
        with pytest.raises(ModelError, match=r"base\.json: does not say how the base was made"):
            read_facts(tmp_path)


@given(st.lists(st.text(min_size=1), unique=True))
def test_a_set_of_ids_has_one_name_in_any_order(ids: list[str]) -> None:
    assert ids_digest(ids) == ids_digest(reversed(ids))
    assert ids_digest([*ids, "one\nmore"]) != ids_digest(ids)
