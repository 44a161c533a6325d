"""The baselines of one evaluation, each as a run of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from searchr3.evaluation.baselines import Rival, embedder_of, load_rival, rewrites, rewritten
from searchr3.evaluation.bench import Bench
from searchr3.evaluation.results import Run


class Rivals:
    """Ranks by each baseline. A model that serves two of them encodes the documents once.

    Args:
        baselines: see `evaluate`.
        key_variable: the environment variable with the key of a baseline's server.
        device: where models compute, so that their seconds can be compared with ours; see `load_rival`.
    """

    def __init__(
        self,
        bench: Bench,
        baselines: Sequence[str | Run],
        key_variable: str | None = None,
        device: str | None = None,
    ) -> None:
        self.bench, self.key_variable, self.device = bench, key_variable, device
        self.names = list(dict.fromkeys(baselines))
        self._found: dict[str | Run, Run] = {}
        self._again = {embedder_of(one) for one in self.names if isinstance(one, str) and _waits(one)}
        self._known: dict[str, tuple[Rival, np.ndarray, float]] = {}

    @property
    def runs(self) -> tuple[Run, ...]:
        """One for each baseline, in the order wished for; after `rank` and, where one waits, `rewrite`."""
        return tuple(self._found[name] for name in self.names)

    def rank(self) -> None:
        """Rank by those that do not wait for a thought."""
        for one in self.names:
            if not _waits(one):
                self._found[one] = self._run(one)

    def rewrite(self, reasoned: Run) -> None:
        """Rank by the others: another model, on the queries with what `reasoned` thought."""
        thoughts = [reasoned.thoughts[query] for query in self.bench.ids]
        for name in self.names:
            if isinstance(name, str) and _waits(name):
                rival, vectors, seconds = self._loaded(embedder_of(name))
                texts = rewritten(self.bench.queries, thoughts)
                run = self.bench.dense(
                    name,
                    rival,
                    vectors,
                    texts,
                    thoughts=reasoned.thoughts,
                    kind="baseline",
                    documents_seconds=seconds,
                    setting="the thoughts of reasoned, whose seconds count here too",
                )
                self._found[name] = _noted(run.with_thinking_of(reasoned), rival)

    def _run(self, baseline: str | Run) -> Run:
        if isinstance(baseline, Run):
            if baseline.values["ndcg@10"].keys() != set(self.bench.ids):
                raise ValueError(f"the run {baseline.name!r} is not of the same queries")
            return baseline if baseline.kind == "baseline" else replace(baseline, kind="baseline")
        if baseline == "bm25":
            return self.bench.bm25()
        rival, vectors, seconds = self._loaded(baseline)
        run = self.bench.dense(baseline, rival, vectors, kind="baseline", documents_seconds=seconds)
        return _noted(run, rival)

    def _loaded(self, path: str) -> tuple[Rival, np.ndarray, float]:
        """The model, the documents' vectors, and the seconds they took."""
        if path in self._known:
            return self._known[path]
        rival = load_rival(path, self.key_variable, self.device)
        rival = self.bench.cache.over(rival) if self.bench.cache else rival
        begun = self.bench.clock()
        vectors = self.bench.encode_documents(rival, f"{path} documents")
        found = rival, vectors, self.bench.clock() - begun
        if path in self._again:
            self._known[path] = found
        return found


def reusable(runs: Iterable[Run]) -> tuple[str | Run, ...]:
    """For the next model on the same queries: what was found, but the names of those that read thoughts."""
    return tuple(run.name if rewrites(run.name) else run for run in runs)


def _waits(baseline: str | Run) -> bool:
    """Whether a baseline needs what the model thought."""
    return isinstance(baseline, str) and rewrites(baseline)


def _noted(run: Run, rival: Rival) -> Run:
    """The run with a word on the texts that were too long for its server."""
    if not (cut := getattr(rival, "shortened", ())):
        return run
    words = f"{len(cut)} texts were too long for the server and cut"
    return replace(run, setting=f"{run.setting}; {words}" if run.setting else words)
