"""A file of documents of mixed length, and what encoding it shall give."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from searchr3.encoding.job import Encoded, encode_file
from searchr3.model import SearchR3

WORDS = ["parse", "the", "date", "strictly", "return", "files", "é", "ß", "日本", "<|embed_token|>"]


def rows(count: int) -> list[dict[str, str]]:
    draw = random.Random(0)
    return [
        {
            "_id": f"d{number}é",
            "title": draw.choice(["", "parse", "sort it"]),
            "text": " ".join(draw.choices(WORDS, k=draw.randint(1, 60))),
        }
        for number in range(count)
    ]


def write(path: Path, documents: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in documents), "utf-8")
    return path


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """42 documents: five shards of ten, the last of them of two."""
    return write(tmp_path_factory.mktemp("source") / "corpus.jsonl", rows(42))


@pytest.fixture(scope="session")
def expected(tiny_model: Path) -> tuple[list[str], np.ndarray]:
    """Ids and vectors of `source`, by the model's own API."""
    documents = rows(42)
    texts = [f"{one['title']}\n{one['text']}" if one["title"] else one["text"] for one in documents]
    return [one["_id"] for one in documents], SearchR3(tiny_model).encode_document(texts)


@pytest.fixture
def encode(tiny_model: Path, source: Path, tmp_path: Path) -> Callable[..., Encoded]:
    """`encode_file` of `source` by the tiny model into `tmp_path/vectors`, ten to a shard, or otherwise."""

    def run(**changes: Any) -> Encoded:
        wanted = {"model": tiny_model, "source": source, "output": tmp_path / "vectors", "shard_size": 10}
        return encode_file(**(wanted | changes))

    return run
