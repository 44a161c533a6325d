"""One shard on disk: ids and vectors in one file, safetensors or parquet, whole or not there.

A safetensors shard holds `vectors`, shape (rows, dimension), and `ids`, the bytes of the ids in UTF-8 with a
line feed between them (no id holds one). A parquet shard has the columns `id` and `vector`.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from searchr3.encoding.manifest import Settings, Shard
from searchr3.errors import DataError
from searchr3.files import new_file, sha256, write_json


def write_shard(folder: Path, shard: Shard, settings: Settings, ids: list[str], vectors: np.ndarray) -> None:
    """Write a shard, and beside it, hidden, its size and hash, which are there before the shard is.

    Args:
        vectors: of shape (rows, dimension); they are rounded to the type of the settings.
    """
    vectors = np.ascontiguousarray(vectors, dtype=settings.dtype)
    path = folder / shard.file
    with new_file(path) as temporary:
        if settings.format == "safetensors":
            letters = np.frombuffer("\n".join(ids).encode(), np.uint8)
            save_file({"vectors": vectors, "ids": letters}, temporary)
        else:
            column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
            pq.write_table(pa.table({"id": ids, "vector": column}), temporary, compression="none")
        write_json(record_path(path), {"bytes": temporary.stat().st_size, "sha256": sha256(temporary)})


def record_path(path: Path) -> Path:
    """Where size and hash of a shard stand until all shards are there."""
    return path.with_name(f".{path.name}.json")


def attempted(folder: Path, shard: Shard) -> int:
    """Note that a shard is begun, and tell how often it was begun before, in this run of the command."""
    path = _attempts_path(folder, shard)
    before = path.stat().st_size if path.exists() else 0
    with path.open("ab") as file:
        file.write(b".")
    return before


def _attempts_path(folder: Path, shard: Shard) -> Path:
    path = folder / shard.file
    return path.with_name(f".{path.name}.attempts")


def recorded(folder: Path, shard: Shard) -> Shard:
    """The shard with the size and the hash that its file should have, where that is known."""
    if shard.sha256:
        return shard
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        record = json.loads(record_path(folder / shard.file).read_text(encoding="utf-8"))
        return shard.model_copy(update={"bytes": int(record["bytes"]), "sha256": str(record["sha256"])})
    return shard


def is_whole(folder: Path, shard: Shard) -> bool:
    """Whether the shard's file is there, with the size and the hash that it should have."""
    path = folder / shard.file
    try:
        return path.stat().st_size == shard.bytes and sha256(path) == shard.sha256
    except OSError:
        return False


def read_shard(folder: Path, shard: Shard, settings: Settings) -> tuple[list[str], np.ndarray]:
    """Ids and vectors of a shard, of shape (rows, dimension), in the type that is stored.

    Raises:
        DataError: the file is missing, damaged, or does not hold what the manifest says.
    """
    path = folder / shard.file
    try:
        if settings.format == "safetensors":
            part = load_file(path)
            ids, vectors = part["ids"].tobytes().decode().split("\n"), part["vectors"]
        else:
            table = pq.read_table(path).combine_chunks()
            ids = table["id"].to_pylist()
            vectors = table["vector"].combine_chunks().flatten().to_numpy().reshape(len(ids), -1)
    except (OSError, ValueError, KeyError, SafetensorError, pa.ArrowException) as error:
        fault = "is missing" if isinstance(error, FileNotFoundError) else "is damaged"
        raise DataError(f"{path}: {fault}; {AGAIN}") from None
    shape = (shard.rows, settings.dimension)
    if vectors.shape != shape or vectors.dtype != settings.dtype or len(ids) != shard.rows:
        raise DataError(f"{path}: does not hold what {folder.name}'s manifest says; {AGAIN}")
    if (ids[0], ids[-1]) != (shard.first_id, shard.last_id):
        raise DataError(f"{path}: holds other documents than {folder.name}'s manifest says; {AGAIN}")
    return ids, vectors


AGAIN = "the same `searchr3 encode` command makes it anew"
