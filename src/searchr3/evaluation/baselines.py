"""The models that an evaluation compares with: what a baseline's name means, and loading it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol

import numpy as np

from searchr3.errors import ModelError, first_line
from searchr3.evaluation.results import Run

_MODULES = "modules.json"  # what makes a folder one of sentence-transformers


class Rival(Protocol):
    """Another embedding model. Vectors are float32, (n, d), of unit length."""

    def encode_query(self, queries: Sequence[str], *, instruction: str | None = None) -> np.ndarray: ...
    def encode_document(self, documents: Sequence[str]) -> np.ndarray: ...


def check_baselines(baselines: Iterable[str | Run]) -> None:
    """Look at baselines before anything is trained or encoded. No weights are loaded.

    Raises:
        ModelError: one is nothing that `evaluate` can compare with.
    """
    for baseline in baselines:
        if isinstance(baseline, str) and baseline != "bm25":
            _is_ours(baseline)


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


def load_rival(path: str) -> Rival:
    """Another embedding model. sentence-transformers would load ours too, and pool it wrongly.

    Raises:
        ModelError: it cannot be loaded.
    """
    if _is_ours(path):
        from searchr3.model import SearchR3

        return SearchR3(path)
    try:
        return _SentenceTransformer(path)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(
            f"baseline {path}: cannot load it ({first_line(error)}); give bm25, a folder or a Hub id"
        ) from None


class _SentenceTransformer:
    """A sentence-transformers model; its own prompts for queries and documents are used, not the task's."""

    def __init__(self, path: str) -> None:
        from sentence_transformers import SentenceTransformer

        self.path = path
        self.model = SentenceTransformer(path, model_kwargs={"use_safetensors": True})  # never a pickle

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
