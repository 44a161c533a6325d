"""`evaluate`: rank the corpus for every query of a split, directly, after thinking, and by the baselines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from searchr3.evaluation.baselines import (
    Rival,
    check_baselines,
    embedder_of,
    load_rival,
    rewrites,
    rewritten,
)
from searchr3.evaluation.bench import Bench, Embedder, Progress
from searchr3.evaluation.results import Results, Run

if TYPE_CHECKING:
    from searchr3.dataset import RetrievalDataset

REASONING = ("off", "on", "both")


def evaluate(
    model: Embedder,
    dataset: RetrievalDataset,
    split: str = "test",
    reasoning: str = "both",
    baselines: Sequence[str | Run] = ("bm25",),
    depth: int = 100,
    max_new_tokens: int = 128,
    document_vectors: np.ndarray | None = None,
    progress: Progress | None = None,
    name: str | None = None,
    key_variable: str | None = None,
) -> Results:
    """Measure a model and its baselines on the queries of one split. Reasoning traces are never seen.

    Args:
        model: gives the runs "direct" (no thinking) and "reasoned" (one greedy thought a query).
        split: whose queries; the whole corpus is ranked.
        reasoning: "off" (direct only), "on" (reasoned only) or "both".
        baselines: "bm25" (tuned on dev where there is one); the path or id of another model (direct), or
            `URL#MODEL` of a server that speaks OpenAI's embeddings; "rewrite:" and such a model, which then
            embeds the query with the thought of "reasoned" after it; or a `Run` that an earlier evaluation of
            the same queries made.
        depth: hits a query; at least 100.
        max_new_tokens: most tokens of a thought.
        document_vectors: (documents, d) float32 in the order of the corpus, when they are known already.
        progress: called as the work goes on.
        name: of the model, for the report.
        key_variable: the environment variable with the key of a baseline's server; by default
            OPENAI_API_KEY, by https or to this machine.

    Raises:
        DataError: no such split, or its qrels are empty.
        ModelError: a baseline cannot be loaded, or a vector is not finite.
        EndpointError: a baseline's server cannot be asked.
        ValueError: `reasoning`, `depth` or the shape of `document_vectors` is wrong.
    """
    if reasoning not in REASONING:
        raise ValueError(f"reasoning must be one of {', '.join(REASONING)}; got {reasoning!r}")
    if depth < 100:
        raise ValueError(f"depth must be at least 100, or recall@100 cannot be measured; got {depth}")
    check_baselines(baselines, reasoning, key_variable)
    bench = Bench(dataset.without_reasoning(), split, depth, progress)
    rivals = _Rivals(bench, baselines, key_variable)
    others = {one: rivals.run(one) for one in rivals.names if not _waits(one)}
    if document_vectors is None:
        document_vectors = bench.encode_documents(model)
    elif len(document_vectors) != len(dataset.corpus):
        raise ValueError(
            f"{len(document_vectors)} document vectors for a corpus of {len(dataset.corpus)} documents"
        )
    runs = []
    if reasoning != "on":
        runs.append(bench.dense("direct", model, document_vectors))
    if reasoning != "off":
        runs.append(bench.reasoned(model, document_vectors, max_new_tokens))
        others |= {one: rivals.rewritten(one, runs[-1]) for one in rivals.names if _waits(one)}
    return Results(
        model=name or type(model).__name__,
        data=dataset.name,
        split=split,
        documents=len(dataset.corpus),
        query_ids=tuple(bench.ids),
        runs=tuple(runs),
        baselines=tuple(others[one] for one in rivals.names),
        document_vectors=document_vectors,
    )


def _waits(baseline: str | Run) -> bool:
    """Whether a baseline needs what the model thought."""
    return isinstance(baseline, str) and rewrites(baseline)


class _Rivals:
    """The baselines of one evaluation. A model that serves two of them encodes the documents once.

    Attributes:
        names: the baselines in the order wished for, each once.
    """

    def __init__(self, bench: Bench, baselines: Sequence[str | Run], key_variable: str | None) -> None:
        self.bench, self.key_variable = bench, key_variable
        self.names = list(dict.fromkeys(baselines))
        self._again = {embedder_of(one) for one in self.names if isinstance(one, str) and rewrites(one)}
        self._known: dict[str, tuple[Rival, np.ndarray]] = {}

    def run(self, baseline: str | Run) -> Run:
        if isinstance(baseline, Run):
            if baseline.values["ndcg@10"].keys() != set(self.bench.ids):
                raise ValueError(f"the run {baseline.name!r} is not of the same queries")
            return baseline
        if baseline == "bm25":
            return self.bench.bm25()
        rival, document_vectors = self._loaded(baseline)
        return _noted(self.bench.dense(baseline, rival, document_vectors), rival)

    def rewritten(self, baseline: str | Run, reasoned: Run) -> Run:
        """The run of another model on the queries with what `reasoned` thought; not thought again."""
        name = str(baseline)
        rival, document_vectors = self._loaded(embedder_of(name))
        thoughts = [reasoned.thoughts[query] for query in self.bench.ids]
        texts = rewritten(self.bench.queries, thoughts)
        setting = "the thoughts of reasoned; its seconds are without thinking"
        run = self.bench.dense(
            name, rival, document_vectors, texts, setting=setting, thoughts=reasoned.thoughts
        )
        return _noted(run, rival)

    def _loaded(self, path: str) -> tuple[Rival, np.ndarray]:
        if path in self._known:
            return self._known[path]
        rival = load_rival(path, self.key_variable)
        found = rival, self.bench.encode_documents(rival, f"{path} documents")
        if path in self._again:
            self._known[path] = found
        return found


def _noted(run: Run, rival: Rival) -> Run:
    """The run with a word on the texts that were too long for its server."""
    if not (cut := getattr(rival, "cut", 0)):
        return run
    words = f"{cut} texts were too long for the server and cut"
    return replace(run, setting=f"{run.setting}; {words}" if run.setting else words)
