"""The command line: what it calls, what it prints, how it fails. Stand-ins replace the rooms behind it."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

import searchr3
from searchr3.adaptive import load_rule
from searchr3.cli import app
from searchr3.cli.terminal import one_line
from searchr3.dataset import RetrievalDataset, load_dataset
from searchr3.errors import DataError
from searchr3.files import read_jsonl, write_jsonl, write_text
from searchr3.runs.dry_run import Machine
from searchr3.runs.search import Hit, SearchAnswer

COMMANDS = ["quickstart", "train", "evaluate", "compare", "adapt", "report", "traces", "mine", "encode"]
COMMANDS += ["chat-check", "export", "index", "search", "serve", "evidence"]


ANSWER = SearchAnswer(
    reasoning="open file lines",
    thinking_tokens=3,
    emitted=True,
    hits=[Hit(1, 0.91, "d7", "io.read", "def read():\n    return 1\x1b[31m", {})],
)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[Any, ...]]:
    """Stand-ins for the pipeline; what they were called with, by name."""
    seen: dict[str, tuple[Any, ...]] = {}

    def record(name: str, answer: Any = None):
        def stand_in(*arguments: Any) -> Any:
            seen[name] = arguments
            if isinstance(answer, BaseException):
                raise answer
            return answer

        return stand_in

    stand_ins = SimpleNamespace(
        train=record("train"),
        search=record("search", ANSWER),
        record=record,
    )
    monkeypatch.setitem(sys.modules, "searchr3.runs.pipeline", stand_ins)
    monkeypatch.setattr(searchr3.runs, "pipeline", stand_ins, raising=False)
    seen["stand_ins"] = (stand_ins,)
    return seen


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def failing(calls: dict[str, Any], error: BaseException, *arguments: str) -> Result:
    """Run `train` with a pipeline that raises `error`."""
    (stand_ins,) = calls["stand_ins"]
    stand_ins.train = stand_ins.record("train", error)
    return run(*(arguments or ("train", "mine.yaml")))


def assert_one_line(result: Result, code: int, *words: str) -> None:
    assert result.exit_code == code
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    for word in words:
        assert word in result.stderr
    assert "Traceback" not in result.stderr


# What it calls


def test_quickstart_hands_on_folder_settings_and_resume(calls: dict) -> None:
    assert run("quickstart", "stage1.steps=10", "name=a=b", "--output", "here", "--resume").exit_code == 0
    assert calls["train"] == ("quickstart", ["stage1.steps=10", "name=a=b"], Path("here"), True)


def test_quickstart_needs_no_argument(calls: dict) -> None:
    assert run("quickstart").exit_code == 0
    assert calls["train"] == ("quickstart", [], Path("runs/quickstart"), False)


def test_train_hands_on_recipe_and_settings(calls: dict) -> None:
    assert run("train", "recipes/mine.yaml", "seed=1", "seed=2").exit_code == 0
    assert calls["train"] == ("recipes/mine.yaml", ["seed=1", "seed=2"], None, False)


def test_a_dry_run_gets_settings_and_machine_and_trains_nothing(
    calls: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    (stand_ins,) = calls["stand_ins"]
    monkeypatch.setattr("searchr3.runs.dry_run.dry_run", stand_ins.record("dry_run"))
    given = ("--shard", "--tflops", "400", "--tokens-per-second", "5000")

    assert run("train", "mine.yaml", "seed=1", "--dry-run", "--output", "full").exit_code == 0
    assert calls["dry_run"] == ("mine.yaml", ["seed=1"], Machine(), Path("full"), False)
    assert run("train", "mine.yaml", "--dry-run", "--processes", "8", *given).exit_code == 0
    assert calls["dry_run"] == ("mine.yaml", [], Machine(8, True, 400, 5000), None, False)
    monkeypatch.setenv("WORLD_SIZE", "4")  # as a launcher says it
    assert run("train", "mine.yaml", "--dry-run").exit_code == 0
    assert calls["dry_run"] == ("mine.yaml", [], Machine(4), None, False)
    assert "train" not in calls


def test_search_shows_thought_and_hits_without_control_characters(calls: dict) -> None:
    result = run("search", "read a file", "--run", "mine", "-k", "3")
    assert result.exit_code == 0
    assert calls["search"] == ("read a file", Path("mine"), 3, True, None, None)
    for words in ("open file lines", "3 tokens", "io.read", "0.910", "def read(): return 1"):
        assert words in result.stdout
    assert "\x1b" not in result.stdout


def test_what_bounds_a_search_is_handed_on(calls: dict) -> None:
    assert run("search", "x", "--run", "mine", "--max-new-tokens", "7", "--device", "cpu").exit_code == 0
    assert calls["search"][-2:] == (7, "cpu")


def test_search_without_reasoning_shows_no_thought(calls: dict) -> None:
    result = run("search", "read a file", "--run", "mine", "--no-reasoning")
    assert calls["search"][3] is False
    assert "thought" not in result.stdout


def test_search_may_think_where_it_is_unsure(calls: dict) -> None:
    assert "thought (3 tokens): open file lines" in run("search", "x", "--run", "mine", "--auto").stdout
    assert calls["search"][3] == "auto"
    sure = replace(ANSWER, thought=False, reasoning="", thinking_tokens=0)
    calls["stand_ins"][0].search = calls["stand_ins"][0].record("search", sure)
    assert run("search", "x", "--run", "mine", "--auto").stdout.startswith("no thought: the direct ranking")
    assert_one_line(run("search", "x", "--run", "m", "--auto", "--no-reasoning"), 1, "give one of them")


def test_search_as_json_is_one_object(calls: dict) -> None:
    answer = json.loads(run("search", "read a file", "--run", "mine", "--json").stdout)
    assert answer["reasoning"] == "open file lines"
    assert answer["emitted"] is True
    assert answer["hits"][0]["document_id"] == "d7"


def test_an_empty_query_is_refused(calls: dict) -> None:
    assert_one_line(run("search", "  ", "--run", "mine"), 1, "empty")


# Judging: the real rooms, with a stand-in for the model

WORDS = ["apple", "bread", "cheese", "dates", "eggs", "figs", "grapes", "honey"]


class WordModel:
    """Vectors that count words; thinking repeats the query's first word."""

    def __init__(self, path: str, **options: Any) -> None:
        self.path, self.options = path, options
        self.conversation = SimpleNamespace(
            thought_ids=lambda texts: [[1] for _ in texts], thought_text=lambda ids: "please " * len(ids)
        )
        self.adaptive = options.pop("adaptive", None)

    def generate(
        self, batch: Any, max_new_tokens: int, temperature: float = 0.0, seed: int | None = None
    ) -> list[SimpleNamespace]:
        return [SimpleNamespace(text=text.split()[0], token_ids=(1,), emitted=True) for text in batch]

    def encode_document(self, documents: Any) -> np.ndarray:
        counts = [[1 + text.split().count(word) for word in WORDS] for text in documents]
        vectors = np.array(counts, dtype=np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def encode_query(self, queries: Any, reasoning: Any = False) -> np.ndarray:
        thoughts = [thought.text for thought in reasoning] if reasoning else [""] * len(queries)
        return self.encode_document(
            [f"{text} {thought}" for text, thought in zip(queries, thoughts, strict=True)]
        )


@pytest.fixture
def pantry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A BEIR folder of one document and one query a word, and the stand-in where the model would be."""
    monkeypatch.setitem(vars(searchr3), "SearchR3", WordModel)
    folder = tmp_path / "pantry"
    documents = [
        {"_id": f"d{i}", "title": "", "text": f"{word} on the shelf"} for i, word in enumerate(WORDS)
    ]
    queries = [{"_id": f"q{i}", "text": f"{word} please"} for i, word in enumerate(WORDS)]
    write_jsonl(folder / "corpus.jsonl", documents)
    write_jsonl(folder / "queries.jsonl", queries)
    for split, numbers in {"stage1": (0, 1), "dev": (2, 3), "test": (4, 5, 6, 7)}.items():
        lines = [f"q{i}\td{i}\t1" for i in numbers]
        write_text(
            folder / "qrels" / f"{split}.tsv", "\n".join(["query-id\tcorpus-id\tscore", *lines]) + "\n"
        )
    return folder


def test_evaluate_prints_a_table_and_compare_reads_its_file(pantry: Path) -> None:
    for name in ("a.json", "b.json"):
        result = run("evaluate", "my/model", "--data", "pantry", "--output", name)
        assert result.exit_code == 0
    for words in ("pantry", "4 queries", "direct", "reasoned", "bm25", "1.000"):
        assert words in result.stdout
    saved = json.loads(Path("a.json").read_text())
    assert (saved["model"], saved["split"], saved["queries"]) == ("my/model", "test", 4)
    assert Path("a.queries.parquet").is_file()

    again = ("evaluate", "other/model", "--data", "pantry", "--output", "a.json")
    assert_one_line(run(*again), 1, "a.json: exists already", "--overwrite")
    assert json.loads(Path("a.json").read_text()) == saved
    Path("a.json").rename("elsewhere.json")
    assert_one_line(run(*again), 1, "a.queries.parquet: exists already")
    assert run(*again, "--overwrite").exit_code == 0
    assert json.loads(Path("a.json").read_text())["model"] == "other/model"

    assert "ndcg@10" in run("compare", "a.json", "b.json").stdout
    rows = json.loads(run("compare", "a.json", "b.json", "--json").stdout)
    assert {row["run"] for row in rows} == {"direct", "reasoned", "bm25"}
    assert all(row["mean"] == 0 for row in rows)


def test_adapt_saves_a_rule_with_the_model_and_evaluate_uses_it(
    pantry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(path: Any, **options: Any) -> WordModel:
        return WordModel(path, **options, adaptive=load_rule(Path(path)))

    monkeypatch.setitem(vars(searchr3), "SearchR3", load)
    assert_one_line(run("adapt", "my/model", "--data", "pantry"), 1, "my/model: no such folder", "local")
    Path("model").mkdir()
    assert_one_line(run("adapt", "model", "--data", "pantry", "--keep", "0"), 1, "--keep must be above 0")
    assert_one_line(run("adapt", "model", "--data", "pantry", "--split", "devv"), 1, "'dev'")
    unknown = run("evaluate", "model", "--data", "pantry", "--reasoning", "auto")
    assert_one_line(unknown, 1, "no rule of when to think", "searchr3 adapt")

    shown = run("adapt", "model", "--data", "pantry").stdout
    for words in ("pantry dev, 2 queries, 8 documents", "chosen", "thinking always", "the rule: never think"):
        assert words in shown
    assert [path.name for path in Path("model").iterdir()] == ["adaptive.json"]
    on_test = run("adapt", "model", "--data", "pantry", "--split", "test")
    assert_one_line(on_test, 1, "--split test: what is measured later must not choose the rule")
    read = json.loads(run("adapt", "model", "--data", "pantry", "--json").stdout)
    rule = load_rule(Path("model"))
    assert (rule.signal, rule.threshold) == (read["signal"], read["threshold"])
    assert rule.chosen_on == read["chosen_on"] == "pantry dev, 2 queries, 8 documents"

    every = run("evaluate", "model", "--data", "pantry", "--reasoning", "all", "--baseline", "", "--json")
    found = json.loads(every.stdout)
    assert [one["name"] for one in found["runs"]] == ["direct", "reasoned", "auto"]
    assert found["adaptive"]["chosen_on"] == rule.chosen_on


def test_evaluate_as_json_is_one_object_and_takes_split_reasoning_and_baselines(pantry: Path) -> None:
    result = run(
        *(
            "evaluate",
            "m",
            "--data",
            "pantry",
            "--split",
            "dev",
            "--reasoning",
            "off",
            "--baseline",
            "",
            "--json",
        )
    )
    summary = json.loads(result.stdout)
    assert [each["name"] for each in summary["runs"]] == ["direct"]
    assert summary["split"] == "dev"
    assert {*Path().iterdir()} == {Path("pantry")}, "nothing is written unless asked for"


def test_evaluate_tells_what_thinking_is_worth(pantry: Path) -> None:
    asked = ("--controls", "all", "--budget", "0,4", "--samples", "1,2")
    result = run("evaluate", "m", "--data", "pantry", *asked, "--output", "a.json")
    assert result.exit_code == 0
    for words in ("reasoned − filler", "bm25+trace", "thinking budget (direct: 1.000)", "sampled thoughts"):
        assert words in result.stdout
    saved = json.loads(Path("a.json").read_text())
    kinds = [run["name"] for run in saved["runs"] if run["kind"] == "control"]
    assert kinds == ["other_trace", "filler", "repeated", "bm25+trace"]
    assert [point["tokens"] for point in saved["curves"]["budget"]] == [0, 4]
    assert [point["samples"] for point in saved["curves"]["samples"]] == [1, 2]
    assert saved["uncertainty"]["samples"] == 2 and saved["examples"].keys() == {"helped", "hurt"}
    one = run("evaluate", "m", "--data", "pantry", "--controls", "filler", "--json")
    assert [each["name"] for each in json.loads(one.stdout)["runs"]][2:] == ["filler", "bm25"]


def test_evaluate_names_what_is_missing_before_the_model_is_loaded(
    pantry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(vars(searchr3), "SearchR3", lambda *_, **__: pytest.fail("the model was loaded"))
    assert_one_line(run("evaluate", "m", "--data", "nowhere.jsonl"), 1, "nowhere.jsonl")
    assert_one_line(run("evaluate", "m", "--data", "pantry", "--split", "tests"), 1, "'tests'", "'test'")
    assert_one_line(run("evaluate", "m", "--data", "pantry", "--output", "."), 1, "is a folder")
    assert_one_line(run("evaluate", "m", "--data", "pantry", "--baseline", "bm52"), 1, "baseline bm52")
    assert run("evaluate", "m", "--data", "pantry", "--reasoning", "perhaps").exit_code == 2
    controls = ("evaluate", "m", "--data", "pantry", "--controls")
    assert_one_line(run(*controls, "filer"), 1, "no control 'filer'", "'filler'")
    assert_one_line(run(*controls, "all", "--reasoning", "off"), 1, "run 'reasoned', which will not be there")
    for wrong in (("--budget", "4,-1"), ("--budget", "four"), ("--samples", "0,2"), ("--samples", "1.5")):
        assert run("evaluate", "m", "--data", "pantry", *wrong).exit_code == 2


def test_evaluate_several_measures_what_is_there_and_says_what_is_missing(pantry: Path) -> None:
    command = ("evaluate", "m", "--data", "pantry", "--data", "away.jsonl", "--output", "all")
    result = run(*command)
    assert result.exit_code == 1 and "pantry" in result.stdout
    for words in ("error: 1 of 2 data sets are missing: away (away.jsonl", "--resume"):
        assert words in result.stderr.splitlines()[-1]
    summary = json.loads(Path("all/suite.json").read_text())
    assert [task["file"] for task in summary["tasks"]] == ["pantry.json"]
    assert [one["task"] for one in summary["missing"]] == ["away"]
    assert Path("all/pantry.queries.parquet").is_file()

    assert_one_line(run(*command), 1, "pantry.json: exists already", "--resume", "--overwrite")
    write_jsonl(Path("away.jsonl"), [{"query": f"{word} please", "positive": word} for word in WORDS * 9])
    again = run(*command, "--split", "stage1", "--resume")
    assert again.exit_code == 1
    assert "pantry.json: is of the split test, not stage1" in again.stderr.splitlines()[-1]


def test_evaluate_wants_data_or_a_suite_and_a_folder_for_several(pantry: Path) -> None:
    for wrong in (["--data", "pantry", "--suite", "paper"], []):
        assert_one_line(run("evaluate", "m", *wrong), 1, "either --data, once or several times, or --suite")
    assert_one_line(run("evaluate", "m", "--suite", "paper"), 1, "need --output")
    assert_one_line(run("evaluate", "m", "--data", "pantry", "--resume"), 1, "--resume is for several")
    off = ("--reasoning", "off", "--baseline", "rewrite:http://localhost#m")
    assert_one_line(run("evaluate", "m", "--data", "pantry", *off), 1, "--reasoning on, both or all")


@pytest.mark.parametrize("command", [("evaluate", "m", "--data", "python"), ("traces", "python")])
def test_installed_code_is_split_as_wished(
    command: tuple[str, ...], pantry: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def python_dataset(max_documents: int | None, split_by: str) -> RetrievalDataset:
        asked.append(split_by)
        return load_dataset(pantry)

    monkeypatch.setattr("searchr3.dataset.python_code.python_dataset", python_dataset)
    assert run(*command, "--output", "a").exit_code == 0
    assert run(*command, "--output", "b", "--split-by", "package").exit_code == 0
    assert asked == ["hash", "package"]
    assert run(*command, "--output", "c", "--split-by", "colour").exit_code == 2


def test_compare_names_a_missing_file() -> None:
    assert_one_line(run("compare", "a.json", "b.json"), 1, "a.json: no such file")


def test_traces_are_written_for_the_named_splits_only(pantry: Path) -> None:
    result = run("traces", "pantry", "--output", "traced", "--words", "2")
    assert (result.exit_code, result.stdout) == (0, "traced: 2 of 8 queries have a trace\n")
    traced = {row["_id"] for _, row in read_jsonl("traced/queries.jsonl") if row.get("reasoning")}
    assert traced == {"q0", "q1"}
    assert_one_line(run("traces", "pantry", "--output", "traced"), 1, "traced: exists already")
    assert_one_line(run("traces", "pantry", "--output", "other", "--split", "stage1,test"), 1, "'test'")
    assert not Path("other").exists()


def test_mine_writes_negatives_and_tells_how_many(pantry: Path, tiny_model: Path) -> None:
    wide = ("--negatives", "2", "--from-rank", "1", "--max-share", "inf")
    result = run("mine", "pantry", "--output", "mined", *wide)
    assert result.exit_code == 0, result.stderr
    for words in (
        "mined: negatives for stage1, by bm25",
        "queries with 2 new negatives",
        "dropped by the margin",
    ):
        assert words in result.stdout
    assert_one_line(run("mine", "pantry", "--output", "mined", *wide), 1, "mined: exists already")

    by = ("--by", str(tiny_model), "--split", "train", "--instruction", "Find food.", "--sampling", "random")
    result = run("mine", "pantry", "--output", "mined", *wide, *by, "--seed", "3", "--overwrite", "--json")
    found = json.loads(result.stdout)
    assert (found["output"], found["queries"], found["by_count"]) == ("mined", 2, {"2": 2})
    rows = {row["_id"]: row.get("negatives", []) for _, row in read_jsonl("mined/queries.jsonl")}
    assert [len(rows[f"q{number}"]) for number in range(8)] == [2, 2, 0, 0, 0, 0, 0, 0]
    settings = json.loads(Path("mined/mining.json").read_text())["settings"]
    assert (settings["instruction"], settings["seed"], settings["max_share"]) == ("Find food.", 3, None)


@pytest.mark.parametrize(
    ("options", "share", "margin"),
    [
        ((), 0.95, None),
        (("--margin", "0.1"), None, 0.1),
        (("--max-share", "0.9", "--margin", "0.1"), 0.9, 0.1),
        (("--max-share", "inf"), None, None),
    ],
)
def test_the_margin_of_mine_is_a_share_unless_said_otherwise(
    options: tuple[str, ...], share: float | None, margin: float | None, pantry: Path
) -> None:
    assert run("mine", "pantry", "--output", "mined", *options).exit_code == 0
    settings = json.loads(Path("mined/mining.json").read_text())["settings"]
    assert (settings["max_share"], settings["margin"]) == (share, margin)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("nowhere.jsonl",), "nowhere.jsonl"),
        (("pantry", "--by", "nowhere"), "nowhere: no such folder"),
        (("pantry", "--by", "pantry"), "pantry: not a model folder"),
        (("pantry", "--split", "test"), "no negatives for the split 'test'"),
        (("pantry", "--to-rank", "12"), "8 negatives do not fit into the ranks 10 to 12"),
        (("pantry", "--max-share", "0"), "above 0"),
        (("pantry", "--max-share", "nan"), "above 0"),
        (("pantry", "--margin", "inf"), "margin must be a number"),
        (("pantry", "--instruction", "x"), "bm25 takes no instruction"),
    ],
)
def test_mine_refuses_in_one_line_and_leaves_nothing(
    options: tuple[str, ...], words: str, pantry: Path
) -> None:
    assert_one_line(run("mine", *options, "--output", "mined"), 1, words)
    assert {*Path().iterdir()} == {Path("pantry")}


def test_encode_writes_vectors_and_goes_on(pantry: Path, tiny_model: Path) -> None:
    again = ("encode", str(tiny_model), "pantry", "--output", "vectors", "--shard-size", "3", "--dim", "8")
    result = run(*again)
    words = "vectors: 8 vectors of 8 float32 numbers; shards: 3 encoded"
    assert (result.exit_code, result.stdout) == (0, f"{words}\n")
    ids, vectors = searchr3.load_vectors("vectors")
    assert (ids, vectors.shape) == ([f"d{i}" for i in range(8)], (8, 8))
    Path("vectors/shards/00001.safetensors").unlink()
    assert "shards: 1 encoded, 2 were there" in run(*again).stdout

    queries = run(*again[:2], "pantry", "--output", "q", "--queries", "--instruction", "Find food.")
    assert queries.exit_code == 0
    assert searchr3.load_vectors("q").ids == [f"q{i}" for i in range(8)]


def test_encode_refuses_in_one_line(pantry: Path, tiny_model: Path) -> None:
    command = ("encode", str(tiny_model))
    for arguments, words in {
        ("nowhere.jsonl",): "nowhere.jsonl: no such file",
        ("pantry", "--workers", "2"): "add --engine ray",
        ("pantry", "--engine", "ray", "--device", "cpu"): "--device is for the local engine",
        ("pantry", "--dim", "1000"): "--dim 1000: this model's vectors have 32",
        ("pantry", "--instruction", "x"): "an instruction is for queries",
    }.items():
        result = run(*command, *arguments, "--output", "vectors")
        assert result.exit_code == 1
        assert words in result.stderr.splitlines()[-1]
        assert not Path("vectors").exists()
    assert "the same command continues" in one_line(KeyboardInterrupt(), "encode")


def test_a_model_is_held_against_its_base(tiny_model: Path, tiny_base: Path, qwen2_base: Path) -> None:
    command = ("chat-check", str(tiny_model), "--max-new-tokens", "2")

    shown = run(*command, "--base", str(tiny_base))
    found = json.loads(run(*command, "--base", str(tiny_base), "--json").stdout)

    assert shown.exit_code == 0
    assert "0.0000" in shown.stdout and "100.0%" in shown.stdout
    assert shown.stdout.count("  base: ") == shown.stdout.count("  model: ") == 3
    assert found["base"] == str(tiny_base) and found["kl_base_trained"] == pytest.approx(0, abs=1e-6)
    assert_one_line(run(*command, "--base", str(qwen2_base)), 1, "have different tokens")
    assert_one_line(run(*command, "--base", "./nowhere"), 1, "no such folder")


# How it fails


def test_user_error_is_one_line(calls: dict) -> None:
    result = failing(calls, DataError("corpus.jsonl:3: empty text;\nremove the line"))
    assert_one_line(result, 1, "error: corpus.jsonl:3: empty text; remove the line")


def test_unexpected_error_is_one_line_that_suggests_debug(calls: dict) -> None:
    assert_one_line(failing(calls, KeyError("a\nb")), 1, "error: internal KeyError", "--debug")


@pytest.mark.parametrize("arguments", [["--debug", "train", "mine.yaml"], ["train", "mine.yaml", "--debug"]])
def test_debug_shows_the_traceback_wherever_it_stands(calls: dict, arguments: list[str]) -> None:
    result = failing(calls, DataError("corpus.jsonl:3: empty text"), *arguments)
    assert result.exit_code == 1
    assert "Traceback" in result.stderr
    assert "corpus.jsonl:3: empty text" in result.stderr


def test_debug_after_two_dashes_is_only_a_word(calls: dict) -> None:
    assert run("search", "--run", "mine", "--", "--debug").exit_code == 0
    assert calls["search"][0] == "--debug"


def test_interrupt_is_one_line_and_130(calls: dict) -> None:
    assert_one_line(failing(calls, KeyboardInterrupt()), 130, "interrupted", "--resume")
    assert "--resume" not in one_line(KeyboardInterrupt(), "search")


def test_full_disk_is_named_however_deep_it_hides(calls: dict) -> None:
    bare = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/mine/x.bin")
    says = "runs/mine/x.bin: no space left on the disk", "choose another place"
    assert_one_line(failing(calls, bare), 1, *says)
    wrapped = RuntimeError("writer failed")
    wrapped.__cause__ = bare
    assert_one_line(failing(calls, wrapped), 1, "no space left on the disk")
    words = RuntimeError("I/O error: No space left on device (os error 28)")
    assert_one_line(failing(calls, words), 1, "no space left on the disk")


@pytest.mark.parametrize(
    "arguments",
    [
        ["trian"],
        ["train"],
        ["train", "a.yaml", "--no-such"],
        ["search", "x"],
        ["search", "x", "--run", "r", "-k", "0"],
        ["search", "x", "--run", "r", "--store", "s"],
        ["index", "docs"],
        ["index", "--store", "s"],
        ["encode", "m", "c.jsonl", "--output", "v", "--engine", "ray", "--gpus-per-worker", "nan"],
    ],
)
def test_wrong_usage_is_2(calls: dict, arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert "Usage" in result.stderr
    assert set(calls) == {"stand_ins"}


@pytest.mark.parametrize(("debug", "lines"), [("", []), ("--debug", ["said", "warned", "retried"])])
def test_libraries_are_silent_unless_debugged(debug: str, lines: list[str]) -> None:
    code = f"""
import logging, os, sys, types, warnings
import searchr3.runs
from searchr3.cli import main

def train(*_):
    logging.getLogger("library").warning("said")
    warnings.warn("warned")
    from huggingface_hub.utils import logging as of_the_hub  # has a level of its own
    of_the_hub.get_logger("huggingface_hub.utils._http").warning("retried")
    assert os.environ["TRANSFORMERS_VERBOSITY"] == "info", "what the user has set stays"

os.environ["TRANSFORMERS_VERBOSITY"] = "info"
sys.modules["searchr3.runs.pipeline"] = searchr3.runs.pipeline = types.SimpleNamespace(train=train)
main(["train", "mine.yaml", *"{debug}".split()])
"""
    result = python(code)
    assert result.returncode == 0
    assert [word for word in ("said", "warned", "retried") if word in result.stderr] == lines
    assert lines or not result.stderr


# Help


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_has_an_example(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert f"Example: searchr3 {command} " in result.stdout


def test_help_lists_every_command() -> None:
    text = run("--help").stdout
    for command in COMMANDS:
        assert f"\n  {command} " in text


def test_version() -> None:
    assert run("--version").stdout == f"searchr3 {searchr3.__version__}\n"


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


HEAVY = {"torch", "transformers", "numpy", "datasets", "faiss", "matplotlib", "ray"}


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["--version"], ["train", "--help"], ["evaluate", "--help"], ["encode", "--help"]],
)
def test_help_loads_no_heavy_library(arguments: list[str]) -> None:
    code = f"""
import sys
from searchr3.cli import main
try:
    main({arguments!r})
except SystemExit as end:
    heavy = sorted({HEAVY!r} & set(sys.modules))
    sys.exit(end.code or ", ".join(heavy) or None)
"""
    result = python(code)
    assert (result.returncode, result.stderr) == (0, "")
    assert "Usage" in result.stdout or "searchr3 0" in result.stdout


def test_package_is_lazy_and_knows_its_names() -> None:
    code = """
import sys, searchr3
assert {"SearchR3", "RetrievalDataset", "load_dataset", "__version__"} <= set(dir(searchr3))
assert "torch" not in sys.modules
from searchr3 import RetrievalDataset
assert RetrievalDataset.__module__.startswith("searchr3.dataset")
"""
    result = python(code)
    assert (result.returncode, result.stderr) == (0, "")
    with pytest.raises(AttributeError, match="no attribute 'SearchR4'"):
        searchr3.SearchR4  # noqa: B018


def test_module_runs_like_the_command() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "searchr3", "--version"], capture_output=True, text=True, timeout=60
    )
    assert (result.returncode, result.stdout) == (0, f"searchr3 {searchr3.__version__}\n")


def test_errors_reach_the_shell() -> None:
    """The same through the real process: exit code, stderr, no traceback."""
    result = subprocess.run(
        [sys.executable, "-m", "searchr3", "train", "quickstart", "oops"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "error: 'oops': write overrides as key=value, for example stage1.steps=200\n"
