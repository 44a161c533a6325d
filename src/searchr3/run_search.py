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


def search(query: str, run: Path, k: int = 10, reasoning: Thinks = True) -> SearchAnswer:
    """Search a run's own corpus with its final model.

    Args:
        reasoning: "auto" thinks where the direct ranking is unsure.

    Raises:
        SearchR3Error: `run` is not a finished run, or was changed since; the query is no proper text; the
            model has no rule for "auto".
    """
    _check(query, run)
    used = load_recipe(run / "recipe.yaml")
    dataset = read_beir(run / "data")
    vectors = _vectors(run / "vectors.safetensors", list(dataset.corpus))

    from searchr3.model import SearchR3
    from searchr3.ranking import top_k

    model, tokens = SearchR3(run / "stage2"), used.model.max_new_tokens
    thoughts: list[Reasoning | None] = [None]
    if reasoning == "auto":
        if model.adaptive is None:
            raise SearchR3Error(
                f"{run / 'stage2'}: the model has no rule of when to think; choose one first: "
                f"searchr3 adapt {run / 'stage2'} --data {run / 'data'} --max-new-tokens {tokens}"
            )
        found, thoughts = model.encode_adaptive([query], vectors, max_new_tokens=tokens, **dataset.task)
    elif reasoning:
        said = model.generate(batch=[query], max_new_tokens=tokens, **dataset.task)
        found, thoughts = model.encode_query([query], reasoning=said, **dataset.task), [*said]
    else:
        found = model.encode_query([query], **dataset.task)
    thought = thoughts[0]
    scores, rows = top_k(found, vectors, min(k, len(vectors)))
    ids = list(dataset.corpus)
    return SearchAnswer(
        *((thought.text, len(thought.token_ids), thought.emitted) if thought else ("", 0, True)),
        hits=[_hit(rank, float(scores[0, rank]), ids[row], dataset) for rank, row in enumerate(rows[0])],
        thought=thought is not None,
    )


def _check(query: str, run: Path) -> None:
    try:
        query.encode()
    except UnicodeEncodeError:
        raise SearchR3Error("the query holds half a character (a lone surrogate); type it again") from None
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
