"""The models that an evaluation compares with: what a baseline's name means, and loading it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import numpy as np

from searchr3.errors import ModelError, first_line
from searchr3.evaluation.controls import CONTROLS
from searchr3.evaluation.embedding_endpoint import ServedModel, is_endpoint
from searchr3.evaluation.results import REASONING, Run, Thought

_TAKEN = {name for runs in REASONING.values() for name in runs} | {*CONTROLS}
_MODULES = "modules.json"  # what makes a folder one of sentence-transformers


class Rival(Protocol):
    """Another embedding model. Vectors are float32, (n, d), of unit length."""

    def encode_query(self, queries: Sequence[str], *, instruction: str | None = None) -> np.ndarray: ...
    def encode_document(self, documents: Sequence[str]) -> np.ndarray: ...


REWRITE = "rewrite:"
"""Stands before a model that embeds the query with what our model thought after it."""


def check_baselines(
    baselines: Iterable[str | Run], reasoning: str = "both", key_variable: str | None = None
) -> None:
    """Look at baselines before anything is trained or encoded. No weights are loaded, no server is asked.

    Args:
        reasoning: of the evaluation; "off" leaves nothing to rewrite with.
        key_variable: the environment variable with the key of a server.

    Raises:
        ModelError: one is nothing that `evaluate` can compare with.
        EndpointError: a server's address or key is none.
    """
    for baseline in baselines:
        if not isinstance(baseline, str) or baseline == "bm25":
            continue
        if baseline in _TAKEN:
            raise ModelError(f"baseline {baseline}: is what a run of the model is called; write ./{baseline}")
        if rewrites(baseline) and "reasoned" not in REASONING[reasoning]:
            raise ModelError(
                f"baseline {baseline}: embeds the query with what the model thought, and it does not think "
                "about every query; choose --reasoning on, both or all"
            )
        other = embedder_of(baseline)
        if not other:
            raise ModelError(f"baseline {baseline}: give a model after {REWRITE}")
        if other == "bm25":
            raise ModelError(f"baseline {baseline}: bm25 does not embed; give another model after {REWRITE}")
        if is_endpoint(other):
            ServedModel(other, key_variable)
        else:
            _is_ours(other)


def rewrites(baseline: str) -> bool:
    """Whether a baseline embeds the query with our model's thought after it."""
    return baseline.startswith(REWRITE)


def embedder_of(baseline: str) -> str:
    """The model behind a baseline.

    >>> embedder_of("rewrite:some/model")
    'some/model'
    """
    return baseline.removeprefix(REWRITE)


def rewritten(queries: Sequence[str], thoughts: Sequence[Thought]) -> list[str]:
    """Each query with what was thought about it on the next line."""
    return [
        f"{query}\n{said}" if (said := thought.text.strip()) else query
        for query, thought in zip(queries, thoughts, strict=True)
    ]


def _is_ours(path: str) -> bool:
    """Whether a baseline is a searchr3 model; if not, it is one of sentence-transformers.

    Raises:
        ModelError: it is neither, or sentence-transformers is not installed.
    """
    from searchr3.loading import SETTINGS, hub_folder

    folder = Path(path)
    if not folder.exists():
        if "/" not in path:
            raise ModelError(f"baseline {path}: neither bm25, nor a folder, nor a Hub id (owner/name)")
        try:
            folder = hub_folder(path, [SETTINGS, _MODULES])
        except ModelError as error:
            raise ModelError(f"baseline {error}") from None
    if (folder / SETTINGS).is_file():
        return True
    if not (folder / _MODULES).is_file():  # it would be given a pooling that nobody trained it for
        raise ModelError(f"baseline {path}: neither a searchr3 nor a sentence-transformers model")
    if find_spec("sentence_transformers") is None:
        raise ModelError(f"baseline {path}: pip install 'searchr3[st]' to compare with it")
    return False


def load_rival(path: str, key_variable: str | None = None, device: str | None = None) -> Rival:
    """Another embedding model. sentence-transformers would load ours too, and pool it wrongly.

    Args:
        path: a folder, a Hub id, or a server's `URL#MODEL`.
        key_variable: the environment variable with the key of a server.
        device: where it computes, such as "cuda:1"; by default on the GPU where there is one.

    Raises:
        ModelError: it cannot be loaded.
        EndpointError: a server's address or key is none.
    """
    if is_endpoint(path):
        return ServedModel(path, key_variable)
    if _is_ours(path):
        from searchr3.model import SearchR3

        return SearchR3(path, device=device)
    try:
        return _SentenceTransformer(path, device)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(
            f"baseline {path}: cannot load it ({first_line(error)}); give bm25, a folder or a Hub id"
        ) from None


class _SentenceTransformer:
    """A sentence-transformers model; its own prompts for queries and documents are used, not the task's."""

    def __init__(self, path: str, device: str | None = None) -> None:
        from sentence_transformers import SentenceTransformer

        self.path = path
        kwargs = {"use_safetensors": True}  # never a pickle
        self.model = SentenceTransformer(path, device=device, model_kwargs=kwargs)

    def digest(self) -> str:
        """A stable name of all that its vectors depend on; so is that of `SearchR3`."""
        from searchr3.digest import folder_digest
        from searchr3.loading import hub_folder

        folder = Path(self.path)
        folder = folder if folder.exists() else hub_folder(self.path, [_MODULES])  # that of all its files
        return folder_digest(folder, ["sentence-transformers"], device=self.model.device.type)

    def encode_query(self, queries: Sequence[str], *, instruction: str | None = None) -> np.ndarray:
        return self.model.encode_query(list(queries), normalize_embeddings=True, show_progress_bar=False)

    def encode_document(self, documents: Sequence[str]) -> np.ndarray:
        return self.model.encode_document(list(documents), normalize_embeddings=True, show_progress_bar=False)
