"""`base.json` in a base's folder: how it was made, and whether it may be measured on a data set. No torch."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from searchr3.dataset import RetrievalDataset
from searchr3.dataset.splits import digest
from searchr3.errors import ModelError

FACTS = "base.json"
HELD_OUT = ("dev", "test")
MAKE = "python -m searchr3.training.base OUTPUT"


def held_out_queries(dataset: RetrievalDataset) -> list[str]:
    """Ids of the queries of dev and test."""
    return [query for split in HELD_OUT for query in dataset.qrels.get(split, {})]


def ids_digest(ids: Iterable[str]) -> str:
    """A stable name of a set of ids."""
    return digest("\n".join(sorted(ids)), 16)


def read_facts(folder: Path) -> dict[str, Any]:
    """What `base.json` says; empty for a folder without one, such as a published model's.

    Raises:
        ModelError: it cannot be read.
    """
    place = folder / FACTS
    if not place.is_file():
        return {}
    try:
        found = json.loads(place.read_text(encoding="utf-8"))
        if isinstance(found["sources"], list) and all(isinstance(one, dict) for one in found["sources"]):
            return dict(found)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise ModelError(f"{place}: does not say how the base was made; make the base again, or remove the file")


def python_splits(facts: dict[str, Any]) -> set[str]:
    """How the installed Python code was split that the base, or one it goes on from, has read."""
    return {one["split_by"] for one in facts.get("sources", ()) if one.get("kind") == "python"}


def was_shown_pairs(facts: dict[str, Any]) -> bool:
    """Whether the base has read training queries with their answers."""
    return any(one.get("pairs") for one in facts.get("sources", ()))


def was_taught(facts: dict[str, Any], dataset: RetrievalDataset) -> bool:
    """Whether the base may have been taught pairs of queries that are dev or test of `dataset`.

    A data set is known by its name or its queries; what the base held out of it must be what is held out now.
    """
    if dataset.name == "python" and (splits := python_splits(facts)):
        return splits != {"package" if dataset.held_out else "hash"}
    queries, held_out = ids_digest(dataset.queries), ids_digest(held_out_queries(dataset))
    return any(
        one.get("kind") == "data"
        and one.get("pairs")
        and (one.get("name") == dataset.name or one.get("queries") == queries)
        and one.get("held_out") != held_out
        for one in facts.get("sources", ())
    )
