"""Mining from a data set to a data set: what may become a negative, and a work that a kill does not harm."""

import json
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from searchr3.dataset import Document, Query, RetrievalDataset, load_dataset
from searchr3.dataset.disk import Table
from searchr3.errors import DataError, SearchR3Error
from searchr3.mining import Rule, Teacher, Work, blocks, mine, mining
from searchr3.model import SearchR3

ALL = Rule(negatives=100, from_rank=1, to_rank=100, max_share=None)  # everything that may be a negative


def mined(dataset: RetrievalDataset, output: Path, *arguments: Any, **more: Any) -> RetrievalDataset:
    mine(dataset, Work(output), *arguments, **more)
    return load_dataset(output)


def pets(**changes: Any) -> RetrievalDataset:
    """Documents that all hold the one word of all queries."""
    names = ["cat", "dog", "hen", "pig", "cow", "emu", "yak", "owl"]
    corpus = {
        f"d{n}": Document("", f"pet {name} {name}s {name}ling {name}let") for n, name in enumerate(names)
    }
    queries = {f"q{n}": Query(f"pet {names[n]}") for n in range(5)}
    splits = ["stage1", "stage1", "stage2", "dev", "test"]
    qrels: dict[str, Any] = {split: {} for split in splits}
    for number, split in enumerate(splits):
        qrels[split][f"q{number}"] = {f"d{number}": 1}
    return replace(RetrievalDataset("pets", corpus, queries, qrels), **changes)


def test_the_rest_of_the_data_stays(toy, tmp_path):
    found = mined(toy, tmp_path / "out", Rule(from_rank=1))
    assert replace(found, queries={}) == replace(toy, queries={})
    for key, query in found.queries.items():
        assert replace(query, negatives=()) == toy.queries[key]
        assert len(query.negatives) == (8 if key in toy.qrels["stage1"] else 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


@pytest.mark.parametrize("anew", [False, True])
@pytest.mark.parametrize("held_out", [(), ("d140",)])
def test_data_on_disk_are_mined_as_data_in_memory(toy, tmp_path, monkeypatch, held_out, anew):
    """And stay there: they may be larger than memory."""
    queries = {key: replace(query, negatives=("d7",)) for key, query in toy.queries.items()}
    toy = replace(toy, queries=queries, held_out=frozenset(held_out))
    toy.save(tmp_path / "data")
    finished, finish = [], Work.finish
    monkeypatch.setattr(Work, "finish", lambda *given: finished.append(given[1].queries) or finish(*given))
    found = [
        mined(load_dataset(tmp_path / "data", on_disk=disk), tmp_path / f"out-{disk}", anew=anew)
        for disk in (False, True)
    ]
    assert found[0] == found[1] and found[0] != toy
    assert [type(one) for one in finished] == [dict, Table]


def test_relevant_held_out_and_known_documents_are_no_negatives(tmp_path):
    data = pets(held_out=frozenset({"d7"}))
    data.queries["q0"] = Query("pet cat", negatives=("d5",))
    data.qrels["stage1"]["q0"] = {"d0": 2, "d1": 1, "d2": 0}
    found = mined(data, tmp_path / "out", ALL, splits=["train"]).queries
    assert found["q0"].negatives[0] == "d5", "what is there stays, and stays first"
    assert sorted(found["q0"].negatives[1:]) == ["d2", "d3", "d4", "d6"], "judged 0 is no answer"
    assert sorted(found["q2"].negatives) == ["d0", "d1", "d3", "d4", "d5", "d6"]
    assert found["q3"].negatives == found["q4"].negatives == ()
    anew = mined(data, tmp_path / "anew", ALL, anew=True).queries
    assert sorted(anew["q0"].negatives) == ["d2", "d3", "d4", "d5", "d6"]
    assert anew["q2"].negatives == ()


def test_what_is_right_for_a_query_of_the_same_words_is_no_negative_unless_only_a_test_says_so(tmp_path):
    data = pets()
    data.queries["q2"] = Query("Pet: CAT?")
    data.queries["q4"] = Query("pet cat!")
    found = mined(data, tmp_path / "out", ALL).queries
    assert sorted(found["q0"].negatives) == ["d1", "d3", "d4", "d5", "d6", "d7"]
    assert "d0" in found["q1"].negatives


def test_copies_of_a_relevant_document_or_of_the_query_are_no_negatives(tmp_path):
    data = pets()
    data.corpus["d8"] = Document("PET", "cat cats catling catlet")
    data.corpus["d9"] = Document("", "Pet   cat")
    data.corpus["d10"] = Document("", "# pet of mine")  # prose has no comments
    data.corpus["d11"] = Document("", "# pet of yours")
    data.qrels["stage1"]["q0"] = {"d0": 1, "d10": 1}
    result = mine(data, Work(tmp_path / "out"), ALL)
    found = load_dataset(tmp_path / "out").queries
    assert sorted(found["q0"].negatives) == ["d1", "d11", "d2", "d3", "d4", "d5", "d6", "d7"]
    assert {"d8", "d9"} <= {*found["q1"].negatives}
    assert result["copies"] == 2


def test_the_margin_counts_from_the_weakest_relevant_document(tmp_path):
    data = pets()
    data.qrels["stage1"] = {"q0": {"d0": 1, "d3": 1}}  # d3 shares only the word that all have
    assert mined(data, tmp_path / "weak", replace(ALL, margin=0.0)).queries["q0"].negatives
    assert not mined(data, tmp_path / "strict", replace(ALL, max_share=0.95)).queries["q0"].negatives
    rule = replace(ALL, max_share=0.95, against="strongest")
    assert len(mined(data, tmp_path / "strong", rule).queries["q0"].negatives) == 6


def test_figures_tell_what_was_chosen(tmp_path):
    data = pets(held_out=frozenset({"d1"}))
    result = mine(data, Work(tmp_path / "out"), Rule(3, 2, 5, max_share=None))
    assert result["queries"] == 1 and result["without_relevant"] == 1
    assert (result["negatives"], result["by_count"]) == (3, {"3": 1})
    assert (result["candidates"], result["dropped"], result["copies"], result["mean_rank"]) == (4, 0, 0, 3.0)
    assert result["mean_gap"] > 0
    summary = json.loads((tmp_path / "out" / "mining.json").read_text())
    assert summary["figures"] == result and summary["settings"]["to_rank"] == 5
    nothing = mine(data, Work(tmp_path / "none"), Rule(max_share=0.01, from_rank=1))
    assert (nothing["negatives"], nothing["mean_rank"], nothing["by_count"]) == (0, None, {"0": 1})
    assert nothing["dropped"] == nothing["candidates"] == 6


def test_a_model_mines_what_it_ranks_high(toy, tiny_model, tmp_path):
    found = mined(toy, tmp_path / "out", Rule(4, 1, 4, max_share=None), Teacher(str(tiny_model)))
    model = SearchR3(tiny_model)
    ids = list(toy.corpus)
    documents = model.encode_document([document.content for document in toy.corpus.values()])
    key = next(iter(toy.qrels["stage1"]))
    order = (-(model.encode_query([toy.queries[key].text]) @ documents.T)[0]).argsort()
    best = [ids[row] for row in order if ids[row] not in toy.qrels["stage1"][key]][:4]
    assert list(found.queries[key].negatives) == best


def test_a_model_is_told_the_instruction_of_the_data(toy, tiny_model, tmp_path):
    rule, teacher = Rule(4, 1, 4, max_share=None), Teacher(str(tiny_model))
    asked = mined(replace(toy, instruction="Find code."), tmp_path / "asked", rule, teacher)
    told = mined(toy, tmp_path / "told", rule, replace(teacher, instruction="Find code."))
    assert asked.queries == told.queries != mined(toy, tmp_path / "none", rule, teacher).queries
    assert asked.instruction == "Find code."


@pytest.mark.parametrize(
    ("splits", "words"),
    [
        (["test"], "no negatives for the split 'test': it is for evaluation"),
        (["stage1", "dev"], "no negatives for the split 'dev'"),
        (["stage3"], "no split 'stage3'"),
        ([], "no split to mine for; name one"),
    ],
)
def test_wrong_splits_are_refused(toy, tmp_path, splits, words):
    with pytest.raises(DataError, match=re.escape(words)):
        mine(toy, Work(tmp_path / "out"), splits=splits)
    assert not [*tmp_path.iterdir()]


def test_data_without_a_relevant_document_are_refused(tmp_path):
    data = pets(held_out=frozenset({"d0", "d1"}))
    with pytest.raises(DataError, match="no query of stage1 has a relevant document to train on"):
        mine(data, Work(tmp_path / "out"))
    with pytest.raises(DataError, match="no split 'stage1'"):
        mine(pets(qrels={"test": {"q0": {"d0": 1}}}), Work(tmp_path / "out"), splits=["train"])


def test_a_model_that_cannot_be_used_leaves_nothing_behind(toy, tiny_base, tmp_path):
    with pytest.raises(SearchR3Error, match="embed"):
        mine(toy, Work(tmp_path / "out"), teacher=Teacher(str(tiny_base)))
    assert not [*tmp_path.iterdir()]


# Interrupted


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def interrupted(toy: RetrievalDataset, output: Path, overwrite: bool = False, **more: Any) -> None:
    """Mine until the work but for the output is done."""

    class Killed(Exception):
        pass

    def die(*_: Any) -> None:
        raise Killed

    work = Work(output, overwrite=overwrite)
    work.finish = die  # type: ignore[method-assign]
    with pytest.raises(Killed):
        mine(toy, work, **more)


def test_an_interrupted_mining_goes_on_only_when_asked_and_as_it_was_begun(toy, tmp_path):
    output = tmp_path / "out"
    interrupted(toy, output)
    with pytest.raises(SearchR3Error, match=r"out: mining was interrupted; continue it with --resume"):
        Work(output)
    others = [
        ({"rule": Rule(negatives=4)}, "the interrupted mining had negatives 8, not 4; resume it as"),
        ({"splits": ["stage2"]}, r"had splits \['stage1'\], not \['stage2'\]"),
        ({"anew": True}, "had anew False, not True"),
    ]
    for arguments, words in others:
        with pytest.raises(SearchR3Error, match=words):
            mine(toy, Work(output, resume=True), **arguments)
    toy = replace(toy, queries={**toy.queries, "q0": Query("parse it")})
    with pytest.raises(SearchR3Error, match="had other data"):
        mine(toy, Work(output, resume=True))
    assert mine(toy, Work(output, overwrite=True))["queries"] and output.is_dir()


def test_two_never_mine_at_one_place(toy, tmp_path):
    output = tmp_path / "out"
    interrupted(toy, output)
    before = contents(tmp_path)
    work = Work(output, overwrite=True)
    with work.held(), pytest.raises(SearchR3Error, match="out: another `searchr3 mine` is at work there"):
        mine(toy, Work(output, overwrite=True))
    assert contents(tmp_path) == before
    mine(toy, work)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_another_model_of_the_same_name_is_noticed(toy, tiny_model, tmp_path):
    model = shutil.copytree(tiny_model, tmp_path / "model")
    teacher = Teacher(str(model))
    interrupted(toy, tmp_path / "out", teacher=teacher)
    (model / "searchr3.json").write_text((model / "searchr3.json").read_text().replace("96", "90"))
    with pytest.raises(SearchR3Error, match="a model with other weights, tokenizer or prompts"):
        mine(toy, Work(tmp_path / "out", resume=True), teacher=teacher)


def test_a_finished_mining_is_told_again_and_replaced_only_when_asked(toy, tmp_path):
    output = tmp_path / "out"
    first = mine(toy, Work(output))
    before = contents(output)
    with pytest.raises(SearchR3Error, match="out: exists already"):
        Work(output)
    assert mine(toy, Work(output, resume=True)) == first and contents(output) == before
    with pytest.raises(SearchR3Error, match="out: exists already"):
        mine(toy, Work(output, resume=True), Rule(negatives=2))
    interrupted(toy, output, overwrite=True, rule=Rule(negatives=2))
    assert contents(output) == before, "it stays until the new one is whole"
    with pytest.raises(SearchR3Error, match="out: exists already"):
        mine(toy, Work(output, resume=True), Rule(negatives=2))
    mine(toy, Work(output, resume=True, overwrite=True), Rule(negatives=2))
    assert contents(output) != before
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_mining_did_not_make_is_never_replaced(toy, tmp_path):
    toy.save(tmp_path / "toy")
    for flags in ({"overwrite": True}, {"resume": True}):
        with pytest.raises(SearchR3Error, match="toy: not made by `searchr3 mine`, so it stays"):
            Work(tmp_path / "toy", **flags)


def test_a_damaged_work_is_named(toy, tmp_path):
    interrupted(toy, tmp_path / "out")
    (tmp_path / ".out.mining" / "settings.json").write_text("{")
    with pytest.raises(SearchR3Error, match=r"settings\.json: damaged; begin anew with --overwrite"):
        mine(toy, Work(tmp_path / "out", resume=True))


def test_work_that_is_done_is_not_done_again(toy, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr(mining, "PART", 30)
    monkeypatch.setattr(blocks, "BLOCK", 60)
    teacher = Teacher(str(tiny_model))
    interrupted(toy, tmp_path / "out", teacher=teacher)
    work = tmp_path / ".out.mining"
    (work / "queries-000001.jsonl").unlink()
    encoded: list[str] = []
    queries = SearchR3.encode_query
    monkeypatch.setattr(SearchR3, "encode_document", lambda *_: pytest.fail("a document is encoded again"))
    monkeypatch.setattr(
        SearchR3,
        "encode_query",
        lambda self, texts, **more: encoded.extend(texts) or queries(self, texts, **more),
    )
    mine(toy, Work(tmp_path / "out", resume=True), teacher=teacher)
    asked = [toy.queries[key].text for key in toy.qrels["stage1"]]
    assert encoded == asked[30:60]


Job = Callable[..., tuple[int, str]]


@pytest.fixture
def job(toy: RetrievalDataset, tmp_path: Path) -> Iterator[Job]:
    """Mines in a process of its own that may die at a moment; exit code, and what the process said."""
    toy.save(tmp_path / "toy")
    errors = tmp_path / "stderr"
    with errors.open("w+") as said:
        script = Path(__file__).with_name("killed.py")
        process = subprocess.Popen(
            [sys.executable, str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
        )
        assert process.stdin and process.stdout

        def run(output: Path, by: str, moment: int | None, resume: bool = True) -> tuple[int, str]:
            start = errors.stat().st_size
            values = {"data": str(tmp_path / "toy"), "output": str(output), "by": by}
            process.stdin.write(json.dumps({**values, "moment": moment, "resume": resume}) + "\n")
            process.stdin.flush()
            code = int(process.stdout.readline())
            return code, errors.read_text()[start:]

        yield run
        process.stdin.close()
        process.wait(timeout=300)  # a busy machine is no failure


def test_a_mining_killed_again_and_again_ends_with_the_same_bytes(job, tiny_model, tmp_path):
    by = str(tiny_model)
    (tmp_path / "a").mkdir()
    code, said = job(tmp_path / "a" / "out", by, None, resume=False)
    assert code == 0, said
    moments = len(said.splitlines()[-1].split())
    kills = 0
    for moment in range(0, moments, 3):  # each round begins where the one before was killed
        code, said = job(tmp_path / "b" / "out", by, moment)
        if code == 0:
            break
        assert code == -signal.SIGKILL, said
        kills += 1
    assert code == 0 and kills >= 4
    assert contents(tmp_path / "b" / "out") == contents(tmp_path / "a" / "out")
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["out"]


@pytest.mark.slow
@pytest.mark.parametrize("by", ["bm25", "model"])
def test_a_mining_killed_at_any_moment_ends_with_the_same_bytes(by, job, tiny_model, tmp_path):
    by = str(tiny_model) if by == "model" else by
    (tmp_path / "a").mkdir()
    moments = len(job(tmp_path / "a" / "out", by, None, resume=False)[1].splitlines()[-1].split())
    for moment in range(moments):
        folder = tmp_path / str(moment)
        assert job(folder / "out", by, moment, resume=False)[0] == -signal.SIGKILL
        code, said = job(folder / "out", by, None)
        assert code == 0, said
        assert contents(folder / "out") == contents(tmp_path / "a" / "out")
        assert [path.name for path in folder.iterdir()] == ["out"]
        shutil.rmtree(folder)
