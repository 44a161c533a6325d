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
from typing import TYPE_CHECKING, Any

import numpy as np

from searchr3.dataset.mteb_task import MTEB, document_from, find_task, subset_and_split, task_instruction
from searchr3.dataset.types import Task
from searchr3.errors import DataError, first_line
from searchr3.evaluation.bench import Embedder
from searchr3.evaluation.p_mrr import p_mrr_of_queries
from searchr3.evaluation.statistics import bootstrap_ci
from searchr3.evaluation.thinking import think

if TYPE_CHECKING:
    from searchr3.dataset import RetrievalDataset
    from searchr3.evaluation.results import Results

_QUERIES = 256  # thought about at once, as in our own evaluation
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
        a, b = (np.asarray(each, dtype=np.float64) for each in (embeddings1, embeddings2))
        return (np.atleast_2d(a) @ np.atleast_2d(b).T).astype(np.float32)

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> np.ndarray:
        """Cosine of each pair, (n,) float32."""
        a, b = (np.asarray(each, dtype=np.float64) for each in (embeddings1, embeddings2))
        return (a * b).sum(axis=-1).astype(np.float32)


def judged_by_change(source: str) -> bool:
    """Whether a task of MTEB is judged by p-MRR, which looks at the ranks of all candidates."""
    return source.startswith(MTEB) and find_task(source).metadata.main_score == _P_MRR


def own_scores(source: str, dataset: RetrievalDataset, results: Results) -> dict[str, dict[str, Any]]:
    """p-MRR of every run, by MTEB's own code, for a task that is judged by it; nothing for others.

    Args:
        source: `mteb:NAME`, that `dataset` was read from.
        results: with all hits of each query's candidates.

    Returns:
        run → {"p-mrr": value, "ci95": {"p-mrr": [low, high]}}, a bootstrap interval over queries; none where
        the judgements do not show which documents MTEB looks at.

    Raises:
        DataError: what MTEB needs for it cannot be had.
    """
    if not judged_by_change(source):
        return {}
    task = find_task(source)
    subset, split = subset_and_split(task)
    qrels = {query: dict(judged) for query, judged in dataset.split(results.split).items()}
    scores: dict[str, dict[str, Any]] = {}
    for run in results.all_runs:
        hits = {query: {hit.document: hit.score for hit in found} for query, found in run.hits.items()}
        try:
            found = task.task_specific_scores({}, qrels, hits, hf_split=split, hf_subset=subset)
        except Exception as error:  # it downloads which judgements changed
            raise DataError(
                f"{source}: MTEB cannot reckon p-MRR ({first_line(error)[:200]}); check the network"
            ) from None
        value, each = float(found[_P_MRR]), p_mrr_of_queries(hits, qrels)
        scores[run.name] = {"p-mrr": value}
        if each and abs(np.mean(each) - value) < 1e-6:
            low, high = bootstrap_ci(np.array(each))
            scores[run.name]["ci95"] = {"p-mrr": [float(low), float(high)]}
    return scores


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
