"""Episodes as a person can read them: each query, what every rollout thought, what it found and what it earned."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from searchr3.dataset import RetrievalDataset
from searchr3.environment import CorpusEnvironment, Scores
from searchr3.files import disk_errors


class EpisodeLog:
    """Appends one line a query to a JSONL file.

    A line: `{"step", "query", "relevant", "rollouts": [{"reasoning", "emitted", "reward", "ndcg", "rank", "first_hit"}]}`,
    rollouts from the best reward to the worst; `rank` is that of the best relevant document in the whole corpus.
    """

    def __init__(self, path: Path, dataset: RetrievalDataset):
        self.path, self.dataset = path, dataset

    def start(self) -> None:
        """Begin an empty file: a run from its first step leaves no lines of an earlier one."""
        with disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text("", encoding="utf-8")

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
        groups: dict[str, list[int]] = {}
        for row, key in enumerate(query_ids):
            groups.setdefault(key, []).append(row)
        with disk_errors(self.path), self.path.open("a", encoding="utf-8") as file:
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
                file.write(json.dumps(episode, ensure_ascii=False) + "\n")
