"""Our models inside `mteb`, and MTEB's own metrics on our runs.

import mteb
from searchr3.model import SearchR3
from searchr3.evaluation.mteb_adapter import SearchR3Encoder

encoder = SearchR3Encoder(SearchR3("RUN/stage2"), reasoning=True)
mteb.evaluate(encoder, mteb.get_tasks(tasks=["SciFact", "Core17InstructionRetrieval"]))
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from searchr3.dataset.mteb_task import MTEB, document_from, find_task, subset_and_split, task_instruction
from searchr3.dataset.types import Task
from searchr3.errors import DataError, first_line
from searchr3.evaluation.bench import Embedder
from searchr3.evaluation.p_mrr import p_mrr_of_queries
from searchr3.evaluation.statistics import bootstrap_ci, paired_difference
from searchr3.evaluation.thinking import think

if TYPE_CHECKING:
    from searchr3.dataset import RetrievalDataset
    from searchr3.evaluation.results import Results

_QUERIES = 256  # thought about, or compared, at once, as in our own evaluation
_P_MRR = "p-MRR"


class SearchR3Encoder:
    """A model of ours as `mteb` wants an encoder (`mteb.models.EncoderProtocol`).

    Queries think, documents do not; texts of other kinds of tasks are embedded as documents. What MTEB says
    of a task's queries is told to the model as their instruction.

    Args:
        model: a `SearchR3`.
        reasoning: whether queries think, greedily, before they are embedded.
        max_new_tokens: most tokens of a thought.
        instructions: tell the model the task's instruction.
        name: of the model, `owner/name`; by default after its folder.
        revision: what tells it from others of the name; by default `SearchR3.digest()`. mteb
            keeps scores by name and revision.
    """

    def __init__(
        self,
        model: Any,
        reasoning: bool = True,
        max_new_tokens: int = 128,
        instructions: bool = True,
        name: str | None = None,
        revision: str | None = None,
    ) -> None:
        self.model: Embedder = model
        self.reasoning, self.max_new_tokens, self.instructions = reasoning, max_new_tokens, instructions
        self.mteb_model_meta = _meta(
            name or _name(model),
            revision or model.digest(),
            {"reasoning": reasoning, "max_new_tokens": max_new_tokens, "instructions": instructions},
        )

    def encode(
        self,
        inputs: Iterable[Mapping[str, Any]],
        *,
        task_metadata: Any,
        hf_split: str,
        hf_subset: str,
        prompt_type: Any = None,
        **_: Any,
    ) -> np.ndarray:
        """Vectors of batches of texts, float32 (n, d), of unit length."""
        rows = [dict(zip(batch, row, strict=True)) for batch in inputs for row in _rows(batch)]
        if prompt_type is None or prompt_type.value != "query":
            return self.model.encode_document([document_from(row).content for row in rows])
        texts = [row["text"] for row in rows]
        instruction = task_instruction(task_metadata) if self.instructions else None
        task: Task = {"instruction": instruction} if instruction else {}
        vectors = []
        for start in range(0, len(texts), _QUERIES):
            part = texts[start : start + _QUERIES]
            if self.reasoning:
                vectors.append(think(self.model, part, self.max_new_tokens, time.perf_counter, **task)[1])
            else:
                vectors.append(self.model.encode_query(part, **task))
        return np.concatenate(vectors)

    def similarity(self, embeddings1: Any, embeddings2: Any) -> np.ndarray:
        """Cosine of every pair, (n, m) float32; summed in float64, so that copies tie."""
        a, b = (np.atleast_2d(np.asarray(each)) for each in (embeddings1, embeddings2))
        columns = b.astype(np.float64).T
        found = np.empty((len(a), len(b)), dtype=np.float32)
        for start in range(0, len(a), _QUERIES):
            rows = slice(start, start + _QUERIES)
            found[rows] = a[rows].astype(np.float64) @ columns
        return found

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> np.ndarray:
        """Cosine of each pair, (n,) float32."""
        a, b = (np.asarray(each, dtype=np.float64) for each in (embeddings1, embeddings2))
        return (a * b).sum(axis=-1).astype(np.float32)


def judged_by_change(source: str) -> bool:
    """Whether a task of MTEB is judged by p-MRR, which looks at the ranks of all candidates."""
    return source.startswith(MTEB) and find_task(source).metadata.main_score == _P_MRR


def with_own_metric(source: str, dataset: RetrievalDataset, results: Results) -> Results:
    """The results with p-MRR of every run, by MTEB's own code, for a task that is judged by it.

    Args:
        source: `mteb:NAME`, that `dataset` was read from.
        results: with all hits of each query's candidates.

    Returns:
        in `scores` run → {"p-mrr": value, "ci95": {"p-mrr": [low, high]}}, a bootstrap interval over queries,
        and in `own_differences` what differences there are in it; no interval and no difference where the
        judgements do not show which documents MTEB looks at.

    Raises:
        DataError: what MTEB needs for it cannot be had.
    """
    if not judged_by_change(source):
        return results
    task = find_task(source)
    subset, split = subset_and_split(task)
    qrels = {query: dict(judged) for query, judged in dataset.split(results.split).items()}
    scores: dict[str, dict[str, Any]] = {}
    values: dict[str, np.ndarray] = {}  # one a query, the same queries in all
    for run in results.all_runs:
        hits = {query: {hit.document: hit.score for hit in found} for query, found in run.hits.items()}
        try:
            found = task.task_specific_scores({}, qrels, hits, hf_split=split, hf_subset=subset)
        except Exception as error:  # it downloads which judgements changed
            raise DataError(
                f"{source}: MTEB cannot reckon p-MRR ({first_line(error)[:200]}); check the network"
            ) from None
        value, each = float(found[_P_MRR]), np.array(p_mrr_of_queries(hits, qrels))
        scores[run.name] = {"p-mrr": value}
        if len(each) and abs(each.mean() - value) < 1e-6:
            low, high = bootstrap_ci(each)
            scores[run.name]["ci95"] = {"p-mrr": [float(low), float(high)]}
            values[run.name] = each
    pairs = [(a.name, b.name) for a, b in results.pairs if a.name in values and b.name in values]
    apart = [(a, b, paired_difference(values[a], values[b])) for a, b in pairs]
    rows = [
        {"a": a, "b": b, "metric": "p-mrr", "mean": one.mean, "ci95": [*one.ci95], "p": one.p}
        for a, b, one in apart
    ]
    return replace(results, scores=scores, own_differences=rows)


def _rows(batch: Mapping[str, Sequence[Any]]) -> Iterable[tuple[Any, ...]]:
    return zip(*batch.values(), strict=True)


def _name(model: Any) -> str:
    """`searchr3/` and the last parts of the folder that the model came from."""
    path = str(getattr(getattr(model, "tokenizer", None), "name_or_path", "") or type(model).__name__)
    return "searchr3/" + "-".join([part for part in path.replace("\\", "/").split("/") if part][-2:])


def _meta(name: str, revision: str, settings: Mapping[str, Any]) -> Any:
    """What mteb wants to know of a model; what is unknown is None."""
    from mteb.models import ModelMeta

    unknown = dict.fromkeys(
        ("release_date", "languages", "n_parameters", "memory_usage_mb", "max_tokens", "embed_dim", "license")
    )
    unknown |= dict.fromkeys(("open_weights", "public_training_code", "public_training_data"))
    return ModelMeta(
        **unknown,
        loader=None,
        name=name,
        revision=revision,
        framework=["PyTorch"],
        similarity_fn_name="cosine",
        use_instructions=settings["instructions"],
        training_datasets=None,
        experiment_kwargs=settings,
    )
