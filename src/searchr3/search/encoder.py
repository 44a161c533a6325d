"""The model of a store: who it is, by what decides its vectors, and how it encodes passages."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from searchr3.errors import SearchR3Error
from searchr3.files import json_text
from searchr3.search.store import Facts

if TYPE_CHECKING:
    from searchr3.conversation import Prompts
    from searchr3.model import SearchR3

T = TypeVar("T")


class Encoder(Protocol[T]):
    """What indexing needs of a model."""

    def render(self, passages: Sequence[str]) -> Sequence[T | None]:
        """What `encode` takes; None of a passage that it would cut."""

    def encode(self, rendered: Sequence[T]) -> np.ndarray:
        """Unit vectors, float32 of shape (n, d): those of `encode_document` on the passages."""


class ModelEncoder:
    """An `Encoder` by a model. A passage is tokenized once: to see whether it fits, and to encode it."""

    def __init__(self, model: SearchR3) -> None:
        self.model = model

    def render(self, passages: Sequence[str]) -> Sequence[Any]:
        most = self.model.conversation.max_length  # as long as this: perhaps cut
        rendered = self.model.conversation.documents(list(passages))
        return [one if len(one.ids) < most else None for one in rendered]

    def encode(self, rendered: Sequence[Any]) -> np.ndarray:
        return self.model.encode_rendered(rendered)


def identify(
    model: str | Path,
    prompts: Prompts | None = None,
    max_length: int | None = None,
    known: Facts | None = None,
    size: int = 0,
) -> Facts:
    """What a new store remembers of a model.

    Args:
        model: folder or Hub id; weights are hashed, but not loaded.
        prompts, max_length: those to be used; default: what was saved with the model.
        known: of a store: if the model's files have the sizes and times that it noted, they are not hashed.
        size: characters of the chunks.

    Raises:
        ModelError: nothing usable at `model`.
    """
    from searchr3.files import sha256_of
    from searchr3.loading import load_outline, model_files, wording

    outline = load_outline(model)
    chosen, length = wording(outline.settings, prompts, max_length, outline.folder)
    files = model_files(outline.folder)
    listed = [(str(file.absolute()), (status := file.stat()).st_size, status.st_mtime_ns) for file in files]
    stamp = sha256(json_text([listed, chosen.to_dict(), length]).encode()).hexdigest()
    if known and known.stamp == stamp:
        digest = known.digest
    else:
        digest = sha256(json_text([sha256_of(files), chosen.to_dict(), length]).encode()).hexdigest()
    return Facts(
        model=str(Path(model).absolute()) if Path(model).exists() else str(model),
        digest=digest,
        stamp=stamp,
        prompts=chosen.to_dict(),
        max_length=length,
        dimension=outline.dimension,
        size=size,
    )


def load_for(facts: Facts, name: str, model: str | None = None, **options: Any) -> SearchR3:
    """The model of a store, or another copy of it.

    Args:
        name: of the store, for errors.
        model: where it is now, if not where the store remembers it.
        options: batch_size, device, dtype.

    Raises:
        SearchR3Error: there is no such model, or its vectors are not those in the store.
    """
    from searchr3.model import SearchR3

    place, prompts = model_of(facts, name, model)
    return SearchR3(place, facts.max_length, prompts=prompts, **options)


def model_of(facts: Facts, name: str, model: str | None = None) -> tuple[str, Prompts]:
    """Where the model of a store is, and its prompts; for who loads it otherwise. As `load_for`."""
    from searchr3.conversation import Prompts
    from searchr3.errors import ModelError

    prompts = Prompts.from_dict(facts.prompts, name)
    try:
        here = identify(model or facts.model, prompts, facts.max_length, facts)
    except ModelError as error:
        if model:
            raise
        raise SearchR3Error(f"{error}; it is the model of {name}: if it was moved, give --model") from None
    refuse_other(facts, here, name)
    return model or facts.model, prompts


def refuse_other(facts: Facts, here: Facts, name: str) -> None:
    """Raise SearchR3Error where a store's vectors are of another model than `here`."""
    if here.digest == facts.digest:
        return
    if here.model == facts.model and here.prompts == facts.prompts and here.max_length == facts.max_length:
        fault = f"its vectors are of {facts.model} as it was before its files changed"
    elif here.model == facts.model:
        fault = f"its vectors are of {facts.model} with other prompts or another length"
    else:
        fault = f"its vectors are of another model, {facts.model}, not of {here.model}"
    raise SearchR3Error(
        f"{name}: {fault}; index anew into another --store, or use the model that it was made with"
    )
