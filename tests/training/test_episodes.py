"""Episodes: lines that a person can read, and none of them twice after a resumed run."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from searchr3.dataset import Document, Query, RetrievalDataset
from searchr3.training.episodes import EpisodeLog

CORPUS = {"a": Document("", "die Tür öffnen"), "b": Document("", "close"), "c": Document("", "wait")}


@dataclass
class Ranked:
    """What the log reads of a `Scores`."""

    reward: np.ndarray
    rank: np.ndarray
    hits: np.ndarray


@dataclass
class Corpus:
    ids: list[str]


@pytest.fixture
def log(tmp_path: Path) -> EpisodeLog:
    queries = {"q1": Query("open the door"), "q2": Query("Tür schließen")}
    qrels = {"dev": {"q9": {"a": 1}}, "stage2": {"q1": {"a": 2, "c": 0}, "q2": {"b": 1}}}
    return EpisodeLog(tmp_path / "run" / "episodes.jsonl", RetrievalDataset("doors", CORPUS, queries, qrels))


def write(log: EpisodeLog, step: int) -> None:
    scores = Ranked(
        np.array([0.2, 0.9, 0.5, 0.5], np.float32), np.array([3, 1, 2, 2]), np.array([[1], [0], [0], [2]])
    )
    log.write(
        step,
        ["q1", "q1", "q2", "q2"],
        [" öffnen ", "door", "", "shut"],
        [True, False, True, True],
        [0.3, 0.9, 0.6, 0.6],
        scores,  # type: ignore[arg-type]
        Corpus(["a", "b", "c"]),  # type: ignore[arg-type]
    )


def lines(log: EpisodeLog) -> list[dict]:
    return [json.loads(line) for line in log.path.read_text(encoding="utf-8").split("\n") if line]


def test_a_line_a_query_with_its_rollouts_from_best_to_worst(log: EpisodeLog) -> None:
    log.start()
    write(log, 3)

    first, second = lines(log)

    assert (first["step"], first["query"], first["relevant"]) == (3, "open the door", ["a"])
    assert first["rollouts"] == [
        {"reasoning": "door", "emitted": False, "reward": 0.9, "ndcg": 0.9, "rank": 1, "first_hit": "a"},
        {"reasoning": "öffnen", "emitted": True, "reward": 0.3, "ndcg": 0.2, "rank": 3, "first_hit": "b"},
    ]
    assert (second["query"], second["relevant"]) == ("Tür schließen", ["b"])
    assert [one["first_hit"] for one in second["rollouts"]] == ["a", "c"]
    assert "Tür" in log.path.read_text(encoding="utf-8")


def test_a_new_run_starts_an_empty_file(log: EpisodeLog) -> None:
    log.start()
    write(log, 3)
    log.start()

    assert lines(log) == []


def test_a_resumed_run_keeps_what_was_before_its_checkpoint(log: EpisodeLog) -> None:
    log.start()
    for step in (0, 2, 4, 6):
        write(log, step)

    log.start(4)
    write(log, 4)

    assert [line["step"] for line in lines(log)] == [0, 0, 2, 2, 4, 4]


@pytest.mark.parametrize("mark", ["\u2028", "\u0085", "\r", "\x1c"])
def test_what_others_take_for_the_end_of_a_line_is_kept(log: EpisodeLog, mark: str) -> None:
    """A thought may hold any character; only a line feed ends an episode."""
    log.dataset.queries["q1"] = Query(f"open{mark}the door")
    log.start()
    write(log, 1)
    written = log.path.read_bytes()

    log.start(5)

    assert log.path.read_bytes() == written and lines(log)[0]["query"] == f"open{mark}the door"


def test_a_line_that_was_cut_off_is_dropped(log: EpisodeLog) -> None:
    log.start()
    write(log, 1)
    with log.path.open("ab") as file:
        file.write(b'{"step": 2, "query": "T' + b"\xc3")

    log.start(5)

    assert [line["step"] for line in lines(log)] == [1, 1]
