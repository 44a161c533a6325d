"""Episodes as a person can read them: each query, and what every rollout thought, found and earned."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from searchr3.dataset import RetrievalDataset
from searchr3.environment import CorpusEnvironment, Scores
from searchr3.files import disk_errors, json_text, sync, write_jsonl
from searchr3.group import ALONE, Group, joined, on_first


class EpisodeLog:
    """Appends one line a query to a JSONL file.

    A line is `{"step", "query", "relevant", "rollouts"}`, each rollout `{"reasoning", "emitted", "reward",
    "ndcg", "rank", "first_hit"}`, from the best reward to the worst; `rank` is that of the best relevant
    document in the whole corpus. In a group the first rank writes what all have to tell; both methods are
    collective.
    """

    def __init__(self, path: Path, dataset: RetrievalDataset, group: Group = ALONE):
        self.path, self.dataset, self.group = path, dataset, group

    def start(self, step: int = 0) -> None:
        """Keep only what was written before `step`, from where the run goes on: nothing is there twice."""
        on_first(self.group, lambda: self._cut(step))

    def _cut(self, step: int) -> None:
        kept = [row for row in _whole_lines(self.path) if row["step"] < step] if step else []
        write_jsonl(self.path, kept)

    def write(
        self,
        step: int,
        query_ids: Sequence[str],
        thoughts: Sequence[str],
        emitted: Sequence[bool],
        rewards: Sequence[float],
        scores: Scores,
        environment: CorpusEnvironment,
    ) -> None:
        """Append this rank's rollouts, those of one query next to each other."""
        groups: dict[str, list[int]] = {}
        for row, key in enumerate(query_ids):
            groups.setdefault(key, []).append(row)
        lines = ""
        for key, rows in groups.items():
            rollouts = [
                {
                    "reasoning": thoughts[row].strip(),
                    "emitted": bool(emitted[row]),
                    "reward": round(float(rewards[row]), 4),
                    "ndcg": round(float(scores.reward[row]), 4),
                    "rank": int(scores.rank[row]),
                    "first_hit": environment.ids[int(scores.hits[row][0])],
                }
                for row in sorted(rows, key=lambda row: -rewards[row])
            ]
            relevant = next(grades for split in self.dataset.qrels.values() if (grades := split.get(key)))
            episode = {
                "step": step,
                "query": self.dataset.queries[key].text,
                "relevant": [document for document, grade in relevant.items() if grade > 0],
                "rollouts": rollouts,
            }
            lines += json_text(episode) + "\n"
        of_all = joined(self.group, np.frombuffer(lines.encode(), dtype=np.uint8))
        on_first(self.group, lambda: self._append(of_all.tobytes()))

    def _append(self, lines: bytes) -> None:
        with disk_errors(self.path), self.path.open("ab") as file:
            file.write(lines)
            file.flush()
            sync(self.path)  # a checkpoint counts on what was written before it


def _whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Lines of a file whose writer may have been stopped in the middle of the last one."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    for line in text.split("\n"):  # a thought may hold what else `splitlines` takes for an end
        with contextlib.suppress(json.JSONDecodeError):
            yield json.loads(line)
