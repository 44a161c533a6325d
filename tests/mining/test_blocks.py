"""Vectors on the disk: read back as they were, encoded once, damage told."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from searchr3.errors import DataError
from searchr3.mining import blocks
from searchr3.mining.blocks import encode_blocks


def encode(texts):
    return np.array([[float(text), -1.0] for text in texts], dtype=np.float32)


def quiet(done, total):
    pass


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK", 4)


@given(st.integers(1, 13), st.integers(0, 14), st.integers(0, 14))
def test_any_slice_is_that_of_all_vectors(tmp_path_factory, count, start, stop):
    texts = [str(number) for number in range(count)]
    found = encode_blocks(encode, texts, tmp_path_factory.mktemp("blocks"), quiet)
    assert found.shape == (count, 2)
    np.testing.assert_array_equal(found[start:stop], encode(texts)[start:stop])
    np.testing.assert_array_equal(found[:], encode(texts))


def test_what_is_there_is_not_encoded_again(tmp_path):
    texts = [str(number) for number in range(10)]
    calls = []

    def counted(some):
        calls.append(list(some))
        return encode(some)

    told = []
    encode_blocks(counted, texts, tmp_path, lambda *news: told.append(news))
    assert calls == [texts[:4], texts[4:8], texts[8:]] and told == [(0, 10), (4, 10), (8, 10), (10, 10)]
    (tmp_path / "documents-000001.safetensors").unlink()
    again = encode_blocks(counted, texts, tmp_path, quiet)
    assert calls[3:] == [texts[4:8]]
    np.testing.assert_array_equal(again[:], encode(texts))
    assert sorted(file.suffix for file in tmp_path.iterdir()) == [".safetensors"] * 3


def test_a_damaged_file_is_named(tmp_path):
    found = encode_blocks(encode, ["1", "2", "3", "4", "5"], tmp_path, quiet)
    file = tmp_path / "documents-000000.safetensors"
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(DataError, match=re.escape(f"{file}: damaged") + ".*--resume"):
        found[:2]
