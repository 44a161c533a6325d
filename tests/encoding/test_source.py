"""Every line in exactly one shard, whatever the file looks like; and faults named before the work."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from searchr3.encoding import source as module
from searchr3.encoding.source import Source, input_file, scan
from searchr3.errors import DataError
from searchr3.files import read_jsonl

TEXT = st.text(st.characters(codec="utf-8"), min_size=1).filter(str.strip)


@st.composite
def files(draw: st.DrawFn) -> bytes:
    """JSON lines with all that may stand between, before and after them."""
    texts = draw(st.lists(TEXT, min_size=1, max_size=12))
    ascii_only = draw(st.booleans())
    parts = [draw(st.sampled_from([b"", b"\xef\xbb\xbf", b"\n", b" \r\n\n"]))]
    for number, text in enumerate(texts):
        row = {"_id": f"é{number}" if number % 2 else number, "text": text}
        parts.append(json.dumps(row, ensure_ascii=ascii_only).encode())
        parts.append(draw(st.sampled_from([b"\n", b"\r\n", b"\n\n", b" \n", b"\n \t\r\n\n"])))
    content = b"".join(parts)
    return content.rstrip() if draw(st.booleans()) else content


@given(content=files(), size=st.integers(1, 5), packed=st.booleans(), data=st.data())
def test_shards_hold_every_row_once_and_in_order(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, size: int, packed: bool, data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("source") / ("a.jsonl.gz" if packed else "a.jsonl")
    path.write_bytes(gzip.compress(content) if packed else content)
    expected = [(str(row["_id"]), row["text"]) for _, row in read_jsonl(path)]

    shards = scan(path, "documents", size, "safetensors")
    assert [shard.rows for shard in shards[:-1]] == [size] * (len(shards) - 1)
    assert [shard.first_row for shard in shards] == list(range(0, len(expected), size))
    between = [0, *(end for shard in shards for end in (shard.start, shard.end)), len(content)]
    assert between == sorted(between)
    gaps = zip(between[::2], between[1::2], strict=True)
    assert not b"".join(content[start:end] for start, end in gaps).strip(b"\xef\xbb\xbf \t\r\n")
    assert len({shard.file for shard in shards}) == len(shards)

    reader = Source(path, "documents")
    parts = {shard.first_row: reader.read(shard) for shard in data.draw(st.permutations(shards))}
    found = [pair for row in sorted(parts) for pair in zip(*parts[row], strict=True)]
    assert found == expected


def test_a_document_is_its_title_and_its_text_and_a_query_its_text(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"_id": 1, "title": "T", "text": "x"}\n{"_id": 2, "title": "only", "text": ""}')
    (shard,) = scan(path, "documents", 9, "parquet")
    assert Source(path, "documents").read(shard) == (["1", "2"], ["T\nx", "only"])
    with pytest.raises(DataError, match=r"corpus\.jsonl:2: 'text' is empty"):
        scan(path, "queries", 9, "parquet")


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ('{"_id": "b", "text": "x"', ":3: not valid JSON"),
        ('["b", "x"]', ":3: expected a JSON object"),
        ('{"text": "x"}', ":3: key '_id' is missing"),
        ('{"_id": "b"}', ":3: key 'text' is missing"),
        ('{"_id": "b", "text": " "}', ":3: 'text' is empty"),
        ('{"_id": "b\\n", "text": "x"}', ":3: '_id' holds a tab or a line break"),
        ('{"_id": "a", "text": "y"}', ":3: the id 'a' comes twice, first in line 1"),
    ],
)
def test_a_faulty_line_is_named(tmp_path: Path, line: str, fault: str) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text(f'{{"_id": "a", "text": "x"}}\n\n{line}\n{{"_id": "c", "text": "z"}}\n')
    with pytest.raises(DataError) as error:
        scan(path, "documents", 1, "parquet")
    assert f"{path}{fault}" in str(error.value)


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_an_empty_input_is_told(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(content)
    with pytest.raises(DataError, match="is empty"):
        scan(path, "documents", 1, "parquet")


def test_ids_that_only_look_alike_are_no_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"_id": "a", "text": "x"}\n{"_id": "b", "text": "x"}\n')
    monkeypatch.setattr(module, "_digest", lambda _: 7)
    assert scan(path, "documents", 9, "parquet")[0].rows == 2


def test_a_cut_gzip_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"_id": "a", "text": "x"}\n' * 9)[:-9])
    with pytest.raises(DataError, match="not a complete gzip file"):
        scan(path, "documents", 1, "parquet")


def test_another_file_than_was_cut_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"_id": "a", "text": "x"}\n')
    (shard,) = scan(path, "documents", 1, "parquet")
    path.write_text('{"_id": "b", "text": "x"}\n')
    with pytest.raises(DataError, match="changed while it was encoded"):
        Source(path, "documents").read(shard)


def test_a_beir_folder_stands_for_its_corpus_or_its_queries(tmp_path: Path) -> None:
    (tmp_path / "corpus.jsonl").touch()
    (tmp_path / "queries.jsonl.gz").touch()
    assert input_file(tmp_path, "documents") == (tmp_path / "corpus.jsonl").resolve()
    assert input_file(tmp_path, "queries") == (tmp_path / "queries.jsonl.gz").resolve()
    with pytest.raises(DataError, match="no such file or folder"):
        input_file(tmp_path / "nowhere", "documents")
    (tmp_path / "corpus.jsonl").unlink()
    with pytest.raises(DataError, match=r"no corpus\.jsonl"):
        input_file(tmp_path, "documents")
    with pytest.raises(DataError, match="no regular file"):
        input_file("/dev/null", "documents")
