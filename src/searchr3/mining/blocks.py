"""Document vectors in files of a fixed number of rows: what is there is not encoded again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from searchr3.errors import DataError
from searchr3.files import new_file

BLOCK = 1024  # documents a file: what a killed run loses at most

_VECTORS = "vectors"


class Blocks:
    """Vectors in files of `size` rows each, of which only the rows that are asked for are read.

    Args:
        files: one or more, in the order of the rows; all but the last hold `size`.
        size: rows a file.

    Raises:
        DataError: a file is damaged; so may slicing.
    """

    def __init__(self, files: Sequence[Path], size: int) -> None:
        self.files, self.size = list(files), size
        last = self._read(len(self.files) - 1)
        self.shape = ((len(self.files) - 1) * size + len(last), last.shape[1])

    def __getitem__(self, rows: slice, /) -> np.ndarray:
        start, stop, _ = rows.indices(self.shape[0])
        if stop <= start:
            return np.zeros((0, self.shape[1]), dtype=np.float32)
        first = start // self.size
        read = [self._read(number) for number in range(first, (stop - 1) // self.size + 1)]
        return np.concatenate(read)[start - first * self.size : stop - first * self.size]

    def _read(self, number: int) -> np.ndarray:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            return load_file(self.files[number])[_VECTORS]
        except (SafetensorError, OSError, KeyError) as error:
            raise DataError(
                f"{self.files[number]}: damaged ({error}); remove it and continue with --resume"
            ) from None


def encode_blocks(
    encode: Callable[[Sequence[str]], np.ndarray],
    texts: Sequence[str],
    folder: Path,
    progress: Callable[[int, int], None],
) -> Blocks:
    """Encode `texts`, one or more, into files of `folder`, each whole or not there; those there stay.

    The blocks are the same however often the work was interrupted, and so is the padding of each forward.
    """
    files = []
    for start in range(0, len(texts), BLOCK):
        progress(start, len(texts))
        file = folder / f"documents-{start // BLOCK:06}.safetensors"
        if not file.is_file():
            _write(file, encode(texts[start : start + BLOCK]))
        files.append(file)
    progress(len(texts), len(texts))
    return Blocks(files, BLOCK)


def _write(file: Path, vectors: np.ndarray) -> None:
    from safetensors.numpy import save_file

    with new_file(file) as temporary:
        save_file({_VECTORS: np.ascontiguousarray(vectors)}, temporary)
