"""Searching a run's own corpus with the model that the run made."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from searchr3.answers import Hit, SearchAnswer, Thinks
from searchr3.dataset import RetrievalDataset
from searchr3.dataset.beir import read_beir
from searchr3.dataset.splits import digest
from searchr3.errors import SearchR3Error
from searchr3.files import occupied
from searchr3.training.recipe_file import load_recipe

if TYPE_CHECKING:
    import numpy as np

    from searchr3.generation import Reasoning

__all__ = ["IDS", "Hit", "SearchAnswer", "ids_digest", "search"]

IDS = "document_ids"  # in the metadata of the vectors: whose they are, see `ids_digest`


def search(
    query: str,
    run: Path,
    k: int = 10,
    reasoning: Thinks = True,
    max_new_tokens: int | None = None,
    device: str | None = None,
) -> SearchAnswer:
    """Search a run's own corpus with its final model.

    Args:
        reasoning: "auto" thinks where the direct ranking is unsure.
        max_new_tokens: most tokens of a thought; the run's by default.

    Raises:
        SearchR3Error: `run` is not a finished run, or was changed since; the query is no proper text; the
            model has no rule for "auto", or no room for such a thought.
    """
    _check_query(query)
    corpus = RunCorpus(run)

    from searchr3.model import SearchR3
    from searchr3.thinking import check_room

    model, task = SearchR3(corpus.model, device=device), corpus.dataset.task
    if max_new_tokens and reasoning:
        check_room(model, query, max_new_tokens, **task)
    tokens = max_new_tokens or corpus.max_new_tokens
    thoughts: list[Reasoning | None] = [None]
    if reasoning == "auto":
        if model.adaptive is None:
            raise SearchR3Error(
                f"{corpus.model}: the model has no rule of when to think; choose one first: "
                f"searchr3 adapt {corpus.model} --data {run / 'data'} --max-new-tokens {tokens}"
            )
        found, thoughts = model.encode_adaptive([query], corpus.vectors, max_new_tokens=tokens, **task)
    elif reasoning:
        said, found = model.think([query], tokens, **task)
        thoughts = [*said]
    else:
        found = model.encode_query([query], **task)
    thought = thoughts[0]
    return SearchAnswer(
        *((thought.text, len(thought.token_ids), thought.emitted) if thought else ("", 0, True)),
        hits=corpus.hits(found[0], k),
        thought=thought is not None,
    )


class RunCorpus:
    """A finished run's documents and their vectors, kept open for many questions.

    Raises:
        SearchR3Error: `run` is not a finished run, or was changed since.
    """

    def __init__(self, run: Path) -> None:
        _check(run)
        self.model = run / "stage2"
        self.max_new_tokens = load_recipe(run / "recipe.yaml").model.max_new_tokens
        self.dataset = read_beir(run / "data")
        self.ids = list(self.dataset.corpus)
        self.vectors = _vectors(run / "vectors.safetensors", self.ids)

    def nearest(self, vectors: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Cosines and rows of the `k` nearest documents (all if there are fewer) of (n, d), best first."""
        from searchr3.ranking import top_k

        return top_k(vectors, self.vectors, min(k, len(self.vectors)))

    def hits(self, vector: np.ndarray, k: int) -> list[Hit]:
        """The `k` documents nearest to a query's vector, (d,)."""
        scores, rows = self.nearest(vector[None], k)
        return [
            _hit(rank, float(scores[0, rank]), self.ids[row], self.dataset)
            for rank, row in enumerate(rows[0])
        ]


def _check_query(query: str) -> None:
    try:
        query.encode()
    except UnicodeEncodeError:
        raise SearchR3Error("the query holds half a character (a lone surrogate); type it again") from None


def _check(run: Path) -> None:
    if not (run / "recipe.yaml").is_file():
        around = (one for one in run.parents if (one / "recipe.yaml").is_file() and (one / "data").is_dir())
        if inside := next(around, None):
            raise SearchR3Error(f"{run}: only a part of a run; give the whole: --run {inside}")
        if occupied(run):
            raise SearchR3Error(f"{run}: not a run folder; give one that quickstart or train has made")
        raise SearchR3Error(f"{run}: not a run folder; make one with `searchr3 quickstart --output {run}`")
    if not (run / "vectors.safetensors").is_file():
        raise SearchR3Error(f"{run}: the run is not finished; continue it with --resume")


def ids_digest(ids: Iterable[str]) -> str:
    """A stable name of these ids in this order, by which vectors remember their documents."""
    return digest("\n".join(ids), 16)


def _vectors(place: Path, ids: list[str]) -> np.ndarray:
    """The vectors of the documents `ids`, in their order.

    Raises:
        SearchR3Error: the file is damaged, or belongs to other documents: each hit would be a wrong one.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(place, framework="numpy") as file:
            remembered = (file.metadata() or {}).get(IDS)
            vectors = file.get_tensor("documents")
    except (SafetensorError, OSError) as error:
        raise SearchR3Error(
            f"{place}: cannot be read ({error}); copy it again from the run, or run it anew"
        ) from None
    if len(vectors) != len(ids) or (remembered and remembered != ids_digest(ids)):
        raise SearchR3Error(
            f"{place.parent / 'data'}: not the {len(vectors):,} documents that the run embedded "
            f"(there are {len(ids):,}); put them back as they were, or train again"
        )
    return vectors


def _hit(place: int, score: float, key: str, dataset: RetrievalDataset) -> Hit:
    document = dataset.corpus[key]
    snippet = " ".join(document.text.split())
    snippet = snippet if len(snippet) <= 200 else snippet[:199].rstrip() + "…"
    return Hit(place + 1, round(score, 4), key, document.title, snippet, dict(document.metadata))
