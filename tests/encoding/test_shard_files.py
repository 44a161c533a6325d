"""What is written to a shard is what is read from it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from searchr3.encoding.manifest import Settings, Shard
from searchr3.encoding.shard_files import is_whole, read_shard, record_path, recorded, write_shard
from searchr3.errors import DataError

IDS = st.lists(
    st.text(st.characters(codec="utf-8", exclude_characters="\t\r\n"), min_size=1), min_size=1, max_size=5
)


def settings(**changes: object) -> Settings:
    return Settings(**({"prompts": {}, "max_length": 9, "dimension": 3} | changes))


def shard(ids: list[str], **changes: object) -> Shard:
    place = {"file": "shards/00000.x", "first_row": 0, "start": 0, "end": 9, "line": 1, "rows": len(ids)}
    return Shard(**(place | {"first_id": ids[0], "last_id": ids[-1]} | changes))


@pytest.mark.parametrize("format", ["safetensors", "parquet"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
@given(ids=IDS, seed=st.integers(0, 9))
@hypothesis_settings(max_examples=20)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, format: str, dtype: str, ids: list[str], seed: int
) -> None:
    folder = tmp_path_factory.mktemp("vectors")
    vectors = np.random.default_rng(seed).normal(size=(len(ids), 3)).astype(np.float32)
    chosen, place = settings(format=format, dtype=dtype), shard(ids)
    write_shard(folder, place, chosen, ids, vectors)
    found_ids, found = read_shard(folder, place, chosen)
    assert found_ids == ids
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, vectors.astype(dtype))
    known = recorded(folder, place)
    assert is_whole(folder, known)
    assert {path.name for path in (folder / "shards").iterdir()} == {"00000.x", ".00000.x.json"}
    assert (folder / place.file).stat().st_mode & 0o777 == 0o644


def test_two_lines_read_a_shard_without_searchr3(tmp_path: Path) -> None:
    """As docs/encode.md shows."""
    ids, vectors = ["a b", "é"], np.eye(2, 3, dtype=np.float32)
    for format in ("safetensors", "parquet"):
        write_shard(tmp_path, shard(ids, file=f"{format}/0.{format}"), settings(format=format), ids, vectors)

    part = load_file(tmp_path / "safetensors/0.safetensors")
    found, rows = bytes(part["ids"]).decode().split("\n"), part["vectors"]
    assert found == ids
    np.testing.assert_array_equal(rows, vectors)

    table = pq.read_table(tmp_path / "parquet")  # hidden files are no part of it
    found, rows = table["id"].to_pylist(), np.stack(table["vector"].to_numpy())
    assert found == ids
    np.testing.assert_array_equal(rows, vectors)


def test_any_change_of_the_file_is_noticed(tmp_path: Path) -> None:
    place = shard(["a"])
    write_shard(tmp_path, place, settings(), ["a"], np.ones((1, 3)))
    known, path = recorded(tmp_path, place), tmp_path / place.file
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert not is_whole(tmp_path, known)
    path.write_bytes(content[:-1])
    assert not is_whole(tmp_path, known)
    path.unlink()
    assert not is_whole(tmp_path, known)
    assert not is_whole(tmp_path, place), "of which nothing is known"


@pytest.mark.parametrize("content", ["", "[]", '{"bytes": 3}', '{"bytes": null, "sha256": ""}'])
def test_a_damaged_record_is_none(tmp_path: Path, content: str) -> None:
    place = shard(["a"])
    path = record_path(tmp_path / place.file)
    path.parent.mkdir()
    path.write_text(content)
    assert recorded(tmp_path, place) == place
    path.write_text(json.dumps({"bytes": 3, "sha256": "x"}))
    assert recorded(tmp_path, place).bytes == 3


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"rows": 3}, "does not hold"),
        ({"first_id": "x"}, "other documents"),
        ({"file": "shards/other"}, "missing"),
    ],
)
def test_a_shard_that_is_not_as_the_manifest_says_is_refused(
    tmp_path: Path, change: dict[str, object], fault: str
) -> None:
    ids = ["a", "b"]
    write_shard(tmp_path, shard(ids), settings(), ids, np.ones((2, 3)))
    with pytest.raises(DataError, match=fault):
        read_shard(tmp_path, shard(ids, **change), settings())
    with pytest.raises(DataError, match="does not hold"):
        read_shard(tmp_path, shard(ids), settings(dimension=4))
    (tmp_path / "shards/00000.x").write_bytes(b"PK")
    for format in ("safetensors", "parquet"):
        with pytest.raises(DataError, match="is damaged"):
            read_shard(tmp_path, shard(ids), settings(format=format))
