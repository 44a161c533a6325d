"""Searching a run's own corpus with the model that the run made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from searchr3.dataset import RetrievalDataset, load_dataset
from searchr3.errors import SearchR3Error
from searchr3.training.recipe import load_recipe


@dataclass(frozen=True)
class Hit:
    """A found document."""

    rank: int
    score: float
    document_id: str
    title: str
    snippet: str
    metadata: dict[str, str]


@dataclass(frozen=True)
class SearchAnswer:
    """What a search found, and what the model thought before it."""

    reasoning: str
    thinking_tokens: int
    emitted: bool
    hits: list[Hit]


def search(query: str, run: Path, k: int = 10, reasoning: bool = True) -> SearchAnswer:
    """Search a run's own corpus with its final model.

    Raises:
        SearchR3Error: `run` is not a finished run.
    """
    from safetensors.numpy import load_file

    from searchr3.model import SearchR3
    from searchr3.ranking import top_k

    if not (run / "recipe.yaml").is_file():
        raise SearchR3Error(f"{run}: not a run folder; make one with `searchr3 quickstart --output {run}`")
    if not (run / "vectors.safetensors").is_file():
        raise SearchR3Error(f"{run}: the run is not finished; continue it with --resume")
    used = load_recipe(run / "recipe.yaml")
    dataset, model = load_dataset(run / "data"), SearchR3(run / "stage2")
    vectors = load_file(run / "vectors.safetensors")["documents"]
    if reasoning:
        thought = model.generate(batch=[query], max_new_tokens=used.model.max_new_tokens)[0]
        found = model.encode_query([query], reasoning=[thought])
        said = (thought.text, len(thought.token_ids), thought.emitted)
    else:
        found, said = model.encode_query([query]), ("", 0, True)
    scores, rows = top_k(found, vectors, min(k, len(vectors)))
    ids = list(dataset.corpus)
    return SearchAnswer(
        *said,
        hits=[_hit(rank, float(scores[0, rank]), ids[row], dataset) for rank, row in enumerate(rows[0])],
    )


def _hit(place: int, score: float, key: str, dataset: RetrievalDataset) -> Hit:
    document = dataset.corpus[key]
    snippet = " ".join(document.text.split())
    snippet = snippet if len(snippet) <= 200 else snippet[:199].rstrip() + "…"
    return Hit(place + 1, round(score, 4), key, document.title, snippet, dict(document.metadata))
