"""`searchr3 evaluate` with a real model: what is kept between two of them, where, and when nothing is."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from searchr3.cli import app
from searchr3.dataset import RetrievalDataset
from searchr3.evaluation.several import Plan
from searchr3.model import SearchR3

Evaluate = Callable[..., Result]


@pytest.fixture
def evaluated(
    tiny_model: Path, toy: RetrievalDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Evaluate:
    """Runs the command on the toy data, in a folder and with a cache of the test's own."""
    monkeypatch.setenv("SEARCHR3_CACHE", str(tmp_path / "cache"))
    toy.save(tmp_path / "toy")
    fixed = ("evaluate", str(tiny_model), "--data", "toy", "--max-new-tokens", "4", "--json")
    return lambda *more: CliRunner().invoke(app, [*fixed, *more])


def found(result: Result) -> dict[str, Any]:
    """What was printed, without the times."""
    assert result.exit_code == 0, result.stderr
    summary = json.loads(result.stdout)
    for run in summary["runs"]:
        assert run.pop("seconds") > 0
        assert run.pop("cost").keys() == {
            "seconds_per_query",
            "thinking_tokens_per_second",
            "documents_seconds",
        }
    on = summary.pop("machine")  # batch size and all
    assert on["processor"] and on["device"] and on["torch"]
    for point in (point for points in summary.get("curves", {}).values() for point in points):
        assert point.pop("seconds_per_query") > 0
    return summary


def test_a_second_evaluation_makes_no_forward(
    evaluated: Evaluate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = "--samples", "1,2"
    first = evaluated(*samples)
    assert "MB of these models in" in first.stderr and str(tmp_path / "cache") in first.stderr
    assert len([*(tmp_path / "cache").iterdir()]) == 1
    with monkeypatch.context() as patch:
        for name in ("encode_rendered", "generate"):
            patch.setattr(SearchR3, name, lambda *_, **__: pytest.fail("the model was asked"))
        again = evaluated("--batch-size", "7", *samples)
    assert found(again) == found(first)


def test_no_cache_keeps_nothing_and_a_chosen_place_is_taken(evaluated: Evaluate, tmp_path: Path) -> None:
    assert "cache" not in evaluated("--no-cache", "--reasoning", "off").stderr
    assert not (tmp_path / "cache").exists()
    assert evaluated("--cache", "here", "--reasoning", "off").exit_code == 0
    assert [file.suffix for file in (tmp_path / "here").iterdir()] == [".sqlite"]
    assert not (tmp_path / "cache").exists()


def test_what_is_wrong_with_the_cache_is_one_line(evaluated: Evaluate, tmp_path: Path) -> None:
    def assert_line(result: Result, words: str) -> None:
        assert (result.exit_code, result.stdout) == (1, "")
        assert words in result.stderr and result.stderr.startswith("error: ")

    assert_line(evaluated("--cache", "here", "--no-cache"), "leave one out")
    (tmp_path / "file").write_text("")
    for place in ("file", "file/below"):
        assert_line(evaluated("--cache", place), "file is no folder); choose another place with --cache, or")
    assert evaluated("--reasoning", "off").exit_code == 0
    (file,) = (tmp_path / "cache").iterdir()
    file.write_bytes(b"something else" * 100)
    result = evaluated("--reasoning", "off")
    assert result.exit_code == 1 and f"error: {file}: the cache is damaged" in result.stderr
    assert "remove the file" in result.stderr
    file.unlink()
    assert evaluated("--reasoning", "off").exit_code == 0


@pytest.mark.parametrize("several", [False, True])
def test_two_evaluations_do_not_write_to_one_place(
    evaluated: Evaluate, tmp_path: Path, several: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second is told at once; what it would have replaced is there when the first has ended."""
    asked = ["--reasoning", "off", "--baseline", "", "--output", "out" if several else "out/one.json"]
    if several:
        RetrievalDataset.load("toy").save(tmp_path / "other")
        asked += ["--data", "other"]
    measure, seconds = Plan.measure, list[Result]()

    def meanwhile(*arguments: Any) -> Any:
        if not seconds:
            seconds.append(evaluated(*asked, "--overwrite"))
        return measure(*arguments)

    monkeypatch.setattr(Plan, "measure", meanwhile)
    first = evaluated(*asked)
    assert first.exit_code == 0, first.stderr
    (second,) = seconds
    assert (second.exit_code, second.stdout) == (1, "")
    assert "another evaluation writes there; wait for its end, or choose another place" in second.stderr
    names = {"one"} if not several else {"toy", "other", "suite"}
    assert {path.name.partition(".")[0] for path in (tmp_path / "out").iterdir()} == names


def test_an_evaluation_leaves_no_lock_and_a_failed_one_no_folder(evaluated: Evaluate, tmp_path: Path) -> None:
    place = tmp_path / "new" / "one.json"
    assert evaluated("--split", "nowhere", "--output", str(place)).exit_code == 1
    assert not place.parent.exists()
    assert evaluated("--reasoning", "off", "--output", str(place)).exit_code == 0
    assert sorted(path.name for path in place.parent.iterdir()) == ["one.json", "one.queries.parquet"]


LONG = "cannot be written (File name too long)"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--data", "other", "--output", "file"), "file/suite.json: cannot be written (file is no folder)"),
        (("--data", "other", "--output", "n" * 300), LONG),
        (("--data", f"{'n' * 230}.jsonl", "--output", "all"), LONG),
        (("--output", f"{'n' * 235}.json"), LONG),
    ],
)
def test_a_place_that_results_cannot_have_is_told_before_the_work(
    evaluated: Evaluate, tmp_path: Path, options: tuple[str, ...], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr(Plan, "load", lambda *_: pytest.fail("the data were read"))
    result = evaluated(*options)
    assert result.exit_code == 1 and words in result.stderr
    assert (tmp_path / "file").read_text() == "mine" and not (tmp_path / "all").exists()


def test_numbers_with_more_digits_than_make_sense_are_refused(evaluated: Evaluate) -> None:
    assert evaluated("--budget", "9" * 5000).exit_code == 2
