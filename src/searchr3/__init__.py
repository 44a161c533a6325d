"""searchr3 turns a chat language model into a retriever that thinks before it embeds.

`SearchR3`, `RetrievalDataset`, `load_dataset` and `load_vectors` are imported when they are first used,
so that `import searchr3` and `searchr3 --help` cost nothing.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from searchr3.version import __version__

if TYPE_CHECKING:
    from searchr3.dataset import RetrievalDataset, load_dataset
    from searchr3.encoding.reader import load_vectors
    from searchr3.model import SearchR3

__all__ = ["RetrievalDataset", "SearchR3", "__version__", "load_dataset", "load_vectors"]

# TRL's trainers report their use to Hugging Face otherwise. Its libraries read this when they are imported.
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

_HOMES = {
    "RetrievalDataset": "searchr3.dataset",
    "SearchR3": "searchr3.model",
    "load_dataset": "searchr3.dataset",
    "load_vectors": "searchr3.encoding.reader",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its home on first use (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module 'searchr3' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
