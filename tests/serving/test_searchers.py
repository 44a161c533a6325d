"""What a server searches: the same hits as the command finds."""

import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from searchr3.errors import SearchR3Error
from searchr3.model import SearchR3
from searchr3.search import index as room
from searchr3.search.encoder import load_for
from searchr3.search.search import StoreSearch
from searchr3.search.stores import open_store
from searchr3.search.work import opened_for_writing
from searchr3.serving.searchers import RunSearcher, StoreSearcher
from searchr3.serving.worker import Worker

from .conftest import Doubt, Patient, Shelf


@pytest.fixture
def notes(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A store of three files, by the tiny model."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "notes"
    folder.mkdir()
    texts = {"dates.md": "# Dates\n\nparse the date", "lists.txt": "sort a list", "f.py": "x = 1"}
    for name, text in texts.items():
        (folder / name).write_text(text)
    opened, facts, encoder = opened_for_writing("store", str(tiny_model), None, None, 500)
    room.index(opened, facts, [folder], encoder)
    opened.close()
    return "store"


def test_a_server_of_a_store_finds_what_the_command_finds(
    notes: str, reference: SearchR3, serving: Callable[..., Any]
) -> None:
    opened = open_store(notes)
    searched = StoreSearch(opened, load_for(opened.facts(), notes), max_new_tokens=5)
    more = {"hybrid": True, "types": ["md", "text"]}
    worker = Worker(SearchR3(searched.model.tokenizer.name_or_path))
    with serving(worker, searcher=StoreSearcher(searched)) as client:
        for reasoning, options in product(("on", "off"), ({}, more)):
            asked = {"query": "parse a date", "k": 2, "reasoning": reasoning, "max_thinking_tokens": 5}
            found = client.post("/search", json={**asked, **options}).json()["hits"]
            kinds = {"hybrid": True, "kinds": more["types"]} if options else {}
            expected = searched.ask("parse a date", 2, reasoning == "on", **kinds).hits
            assert [hit["document_id"] for hit in found] == [hit.document_id for hit in expected]
            assert [hit["snippet"] for hit in found] == [hit.snippet for hit in expected]
            marked = {hit["snippet"][start:end] for hit in found for start, end in hit["marks"]}
            assert {"parse", "date"} <= marked or not options
            np.testing.assert_allclose(
                [one["score"] for one in found], [one.score for one in expected], atol=2e-4
            )
        health = client.get("/health").json()
        assert (health["documents"], health["filters"], health["auto"]) == (3, True, False)
        refused = client.post("/search", json={"query": "x", "types": ["nonsense"]})
        assert refused.status_code == 422 and "not known; choose of" in refused.json()["error"]["message"]
        nothing = client.post("/search", json={"query": "x", "paths": ["/etc/passwd", "../*"]})
        assert nothing.json()["hits"] == []


def test_auto_judges_the_files_that_are_searched(
    notes: str, tiny_model: Path, reference: SearchR3, serving: Callable[..., Any]
) -> None:
    looked: list[int] = []

    class Never:
        def thinks_about(self, vectors: np.ndarray, documents: Any) -> np.ndarray:
            looked.append(documents(vectors, 10).shape[1])
            return np.zeros(len(vectors), dtype=bool)

    searcher = StoreSearcher(StoreSearch(open_store(notes), reference))
    with serving(Worker(SearchR3(tiny_model)), searcher=searcher, rule=Never()) as client:
        for more in ({}, {"types": ["md", "text"]}, {"paths": ["*/f.py"], "stream": True}):
            body = {"query": "parse a date", "reasoning": "auto", **more}
            assert client.post("/search", json=body).status_code == 200
        client.post("/v1/embeddings", json={"model": "tiny:auto", "input": "parse a date"})
    assert looked == [3, 2, 1, 3]


def test_a_store_that_cannot_be_read_is_unavailable_and_tells_nothing(
    notes: str, reference: SearchR3, patient: Patient, serving: Callable[..., Any]
) -> None:
    patient.go.set()
    patient.dimension = reference.dimension
    opened = open_store(notes)
    with serving(patient, searcher=StoreSearcher(StoreSearch(opened, reference)), rule=Doubt()) as client:
        shutil.rmtree(Path(notes) / "chunks.lance")
        for more in ({"reasoning": "off"}, {"reasoning": "auto"}, {"reasoning": "off", "hybrid": True}):
            response = client.post("/search", json={"query": "parse a date", **more})
            assert response.status_code == 503 and "retry-after" in response.headers
            assert "the documents cannot be searched now" in response.text and notes not in response.text
        health = client.get("/health")
        assert health.status_code == 503 and health.json()["documents"] is None
        assert health.json()["trouble"].startswith("the documents cannot be searched now")


def test_counting_documents_holds_nobody_up(patient: Patient, serving: Callable[..., Any]) -> None:
    """As where they are in a cluster that takes its time."""
    counting, go = threading.Event(), threading.Event()

    class Far(Shelf):
        @property
        def documents(self) -> int:
            counting.set()
            assert go.wait(30)
            return 3

    with serving(patient, searcher=Far()) as client, ThreadPoolExecutor(1) as pool:
        health = pool.submit(client.get, "/health")
        assert counting.wait(30)
        assert client.get("/health/live").status_code == 200
        go.set()
        assert health.result().json()["documents"] == 3


def test_scores_are_the_best_cosines(notes: str, reference: SearchR3) -> None:
    opened = open_store(notes)
    searcher = StoreSearcher(StoreSearch(opened, reference))
    vectors = reference.encode_query(["parse a date", "sort"])
    scores = searcher.scores(vectors, 10)
    assert scores.shape == (2, 3) and (np.diff(scores, axis=1) <= 0).all()


def test_a_run_is_searched_by_its_own_model_alone(tmp_path: Path) -> None:
    with pytest.raises(SearchR3Error, match="not a run folder"):
        RunSearcher(tmp_path)
