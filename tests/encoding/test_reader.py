"""What `searchr3.load_vectors` gives, and refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from searchr3 import load_vectors
from searchr3.encoding.manifest import load_manifest
from searchr3.encoding.reader import read_vectors
from searchr3.errors import DataError


def test_loaded_mapped_and_read_in_parts_alike(
    encode: Callable, tmp_path: Path, expected: tuple[list[str], np.ndarray]
) -> None:
    encode(dtype="float16", format="parquet")
    ids, vectors = load_vectors(tmp_path / "vectors", verify=True)
    assert ids == expected[0]
    assert vectors.dtype == np.float16
    np.testing.assert_allclose(vectors, expected[1], atol=1e-3)

    mapped = load_vectors(tmp_path / "vectors", memory_map=tmp_path / "vectors.npy")
    assert isinstance(mapped.vectors, np.memmap)
    assert mapped.ids == ids
    np.testing.assert_array_equal(mapped.vectors, vectors)

    parts = list(read_vectors(tmp_path / "vectors"))
    assert [len(part.ids) for part in parts] == [10, 10, 10, 10, 2]
    np.testing.assert_array_equal(np.concatenate([part.vectors for part in parts]), vectors)


def test_what_is_not_whole_is_refused(encode: Callable, tmp_path: Path) -> None:
    folder = tmp_path / "vectors"
    with pytest.raises(DataError, match=r"manifest\.json: no such file"):
        load_vectors(folder)
    manifest = encode().manifest
    path = folder / manifest.shards[1].file
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    load_vectors(folder)
    with pytest.raises(DataError, match=r"00001\.safetensors: is missing or damaged"):
        load_vectors(folder, verify=True)
    path.unlink()
    with pytest.raises(DataError, match=r"00001\.safetensors: is missing"):
        load_vectors(folder, memory_map=tmp_path / "vectors.npy")
    assert not (tmp_path / "vectors.npy").exists()
    load_manifest(folder).model_copy(update={"complete": False}).save(folder)
    with pytest.raises(DataError, match="not all shards are there yet"):
        load_vectors(folder)
    for damage, fault in (("{", "damaged"), ('{"complete": true}', "rows is wrong")):
        (folder / "manifest.json").write_text(damage)
        with pytest.raises(DataError, match=rf"manifest\.json: {fault}"):
            load_vectors(folder)
