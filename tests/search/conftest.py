"""Stores of both kinds."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from qdrant_client import QdrantClient

from searchr3.search.lance_store import LanceStore
from searchr3.search.qdrant_store import QdrantStore
from searchr3.search.store import Store

sys.path.append(str(Path(__file__).parent))  # for the tests of this folder and the process that they kill

from desk import Desk, WordModel


@pytest.fixture(params=["lance", "qdrant"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """A new store: in a folder, or in qdrant-client's own memory, which speaks as a server does."""
    if request.param == "lance":
        made: Store = LanceStore(tmp_path / "store", create=True)
    else:
        made = QdrantStore(QdrantClient(":memory:"), "notes")
    yield made
    made.close()


@pytest.fixture
def desk(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Desk:
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return Desk(store, WordModel(), folder)
