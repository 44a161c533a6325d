"""What is Qdrant's alone: requests of a bounded size, and a lease that says who writes."""

from collections.abc import Iterator
from contextlib import ExitStack
from types import SimpleNamespace

import numpy as np
import pytest
from qdrant_client import QdrantClient

from searchr3.errors import SearchR3Error
from searchr3.search import qdrant_store
from searchr3.search.index import index
from searchr3.search.qdrant_store import QdrantStore
from searchr3.search.store import FileRecord, Row

from desk import DIMENSION, WordModel, some_facts  # isort: skip

AT_WORK = "another `searchr3 index` is at work there"


@pytest.fixture
def client() -> Iterator[QdrantClient]:
    made = QdrantClient(":memory:")
    yield made
    made.close()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """The store's time, which the test moves on."""
    made = SimpleNamespace(now=1e9)
    monkeypatch.setattr(qdrant_store, "time", SimpleNamespace(time=lambda: made.now))
    return made


def at_work(client: QdrantClient) -> bool:
    """Whether another writer is kept out."""
    try:
        with QdrantStore(client, "notes").writing():
            return False
    except SearchR3Error as error:
        assert AT_WORK in str(error)
        return True


def test_no_request_holds_more_points_than_a_server_takes(client, monkeypatch) -> None:
    sizes: list[int] = []
    real = client.upsert
    monkeypatch.setattr(
        client, "upsert", lambda name, points, **more: sizes.append(len(points)) or real(name, points, **more)
    )
    store = QdrantStore(client, "notes")
    store.remember(some_facts())
    vector = np.ones(DIMENSION, dtype=np.float32)
    rows = [Row("a.md", "v", number, "md", "text", "", 1, 1, False, vector) for number in range(600)]
    store.add(rows)
    store.put([FileRecord(f"{number}.md", ".", "v", 1, True) for number in range(300)])
    assert max(sizes) <= 256
    assert [row.number for row in store.rows({"a.md": "v"})] == list(range(600))
    assert len(store.files()) == 300


def test_comparing_files_for_long_keeps_the_lease(client, clock, tmp_path) -> None:
    for number in range(9):
        (tmp_path / f"{number}.md").write_text(f"text {number}")
    seen: list[bool] = []

    def slowly(what: str, done: int, of: int) -> None:
        if what == "files compared":
            clock.now += 300
            seen.append(at_work(client))

    index(QdrantStore(client, "notes"), some_facts(), [tmp_path], WordModel, slowly)
    assert seen == [True] * 9 and not at_work(client)


def test_who_lost_the_lease_stops_and_leaves_it_to_the_other(client, clock) -> None:
    first, second = (QdrantStore(client, "notes") for _ in range(2))
    with ExitStack() as other:
        with pytest.raises(SearchR3Error, match="another `searchr3 index` has taken over"), first.writing():
            clock.now += 601
            other.enter_context(second.writing())
            first.put([FileRecord("a.md", ".", "v", 1, True)])
        assert first.files() == {} and at_work(client)
    assert not at_work(client)


def test_a_record_that_is_put_by_the_way_takes_no_lease(client) -> None:
    store = QdrantStore(client, "notes")
    store.remember(some_facts())
    store.put([FileRecord("a.md", ".", "v", 1, True)])
    assert not at_work(client)
