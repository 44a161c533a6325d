"""The Python code installed here as the data of a benchmark, read once and kept."""

from __future__ import annotations

import sysconfig
from pathlib import Path

from searchr3.dataset import RetrievalDataset, load_dataset
from searchr3.dataset.python_code import python_dataset

FEW = ("asyncio", "email", "unittest", "importlib")  # of the standard library: read in seconds


def code_corpus(place: Path, quick: bool, max_documents: int | None = None) -> RetrievalDataset:
    """The data set in `place`; if missing it is made, of all code or, `quick`, of a few packages."""
    if not place.is_dir():
        if quick:
            library = Path(sysconfig.get_paths()["stdlib"])
            python_dataset([library / name for name in FEW], max_documents).save(place)
        else:
            load_dataset("python", max_documents).save(place)
    return load_dataset(place)
