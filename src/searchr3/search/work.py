"""Opening a store to write to it: a new one with a model, or one that has its model already."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from searchr3.errors import SearchR3Error
from searchr3.search.chunks import SIZE
from searchr3.search.encoder import Encoder, ModelEncoder, identify, load_for, refuse_other
from searchr3.search.store import Facts, Store
from searchr3.search.stores import open_store


def opened_for_writing(
    place: str,
    model: str | None = None,
    prompts: Path | None = None,
    max_length: int | None = None,
    size: int | None = None,
    **options: Any,
) -> tuple[Store, Facts, Callable[[], Encoder[Any]]]:
    """A store, what it remembers or will remember, and how to load its model.

    Args:
        place: folder or URL.
        model: needed for a new store; for one that is there it must be the same.
        prompts, max_length: as for `identify`.
        size: characters of a chunk; another one than before means that all is chunked and encoded anew.
        options: of `load_for`.

    Raises:
        SearchR3Error: there is no model for a new store, or another than the store's.
    """
    if model is not None:
        from searchr3.loading import load_outline

        load_outline(model)  # before a folder is made for what cannot be
    store = open_store(place, create=model is not None)
    facts = store.facts()
    if facts is None:
        if model is None:
            raise SearchR3Error(f"{place}: a new store needs a model; give it with --model")
        facts = identify(model, _wording(prompts), max_length, size=size or SIZE)
    elif model or prompts or max_length:
        from searchr3.conversation import Prompts

        wording = _wording(prompts) or (None if model else Prompts.from_dict(facts.prompts, place))
        length = max_length or (None if model else facts.max_length)
        here = identify(model or facts.model, wording, length, facts)
        refuse_other(facts, here, place)
        facts = facts.model_copy(update={"model": here.model, "stamp": here.stamp})  # if it was moved
    known = facts.model_copy(update={"size": size or facts.size})

    def load() -> Encoder[Any]:
        from searchr3.progress import hush_transformers

        hush_transformers()
        return ModelEncoder(load_for(known, place, **options))

    return store, known, load


def _wording(prompts: Path | None) -> Any:
    if prompts is None:
        return None
    from searchr3.conversation import Prompts

    return Prompts.load(prompts)
