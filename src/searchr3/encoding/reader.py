"""Reading what `searchr3 encode` wrote."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from searchr3.encoding.manifest import Manifest, load_manifest
from searchr3.encoding.shard_files import AGAIN, is_whole, read_shard
from searchr3.errors import DataError
from searchr3.files import new_file


class EncodedVectors(NamedTuple):
    """Ids, and their vectors in the same order, shape (n, d), float32 or float16, unit length."""

    ids: list[str]
    vectors: np.ndarray


def load_vectors(
    folder: str | Path, memory_map: str | Path | None = None, verify: bool = False
) -> EncodedVectors:
    """All ids and vectors of a folder that `searchr3 encode` has filled, in the order of the input.

    Args:
        folder: what `--output` was.
        memory_map: an .npy file for the vectors, written anew; they are then mapped from it, read-only, and
            need not fit into memory.
        verify: hold every shard against its hash first.

    Raises:
        DataError: not all shards are there, or one is damaged.
    """
    folder = Path(folder)
    manifest = _complete(folder)
    if memory_map is None:
        vectors = np.empty((manifest.rows, manifest.settings.dimension), manifest.settings.dtype)
        return EncodedVectors(_fill(vectors, folder, manifest, verify), vectors)
    with new_file(memory_map) as temporary:
        vectors = np.lib.format.open_memmap(
            temporary, "w+", manifest.settings.dtype, (manifest.rows, manifest.settings.dimension)
        )
        ids = _fill(vectors, folder, manifest, verify)
        vectors.flush()
    return EncodedVectors(ids, np.load(memory_map, mmap_mode="r"))


def read_vectors(folder: str | Path, verify: bool = False) -> Iterator[EncodedVectors]:
    """The same shard by shard: memory for one is enough.

    Raises:
        DataError: as `load_vectors`.
    """
    folder = Path(folder)
    yield from _shards(folder, _complete(folder), verify)


def _shards(folder: Path, manifest: Manifest, verify: bool) -> Iterator[EncodedVectors]:
    for shard in manifest.shards:
        if verify and not is_whole(folder, shard):
            raise DataError(f"{folder / shard.file}: is missing or damaged; {AGAIN}")
        yield EncodedVectors(*read_shard(folder, shard, manifest.settings))


def _fill(vectors: np.ndarray, folder: Path, manifest: Manifest, verify: bool) -> list[str]:
    ids: list[str] = []
    for part in _shards(folder, manifest, verify):
        vectors[len(ids) : len(ids) + len(part.ids)] = part.vectors
        ids += part.ids
    return ids


def _complete(folder: Path) -> Manifest:
    manifest = load_manifest(folder)
    if not manifest.complete:
        raise DataError(f"{folder}: not all shards are there yet; the same `searchr3 encode` command goes on")
    return manifest
