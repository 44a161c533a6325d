"""Searching a run: which folders are refused, and what a hit shows."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import save_file

from searchr3.dataset import Document, Query, RetrievalDataset
from searchr3.errors import SearchR3Error
from searchr3.runs import search as run_search
from searchr3.runs.search import IDS, ids_digest, search


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The parts of a run that are looked at before its model is loaded."""
    corpus = {key: Document("", f"text of {key}") for key in ("a", "b", "c")}
    RetrievalDataset("small", corpus, {"q": Query("q")}, {"test": {"q": {"a": 1}}}).save(
        tmp_path / "run/data"
    )
    (tmp_path / "run/recipe.yaml").write_text(yaml.safe_dump({"recipe": {}, "machine": {}}), encoding="utf-8")
    save_vectors(tmp_path / "run", 3)
    return tmp_path / "run"


def save_vectors(run: Path, count: int, metadata: dict[str, str] | None = None) -> None:
    save_file({"documents": np.eye(count, dtype=np.float32)}, run / "vectors.safetensors", metadata)


def refused(run: Path, query: str = "query") -> str:
    with pytest.raises(SearchR3Error) as caught:
        search(query, run)
    return str(caught.value)


def test_a_run_as_it_was_made_gets_as_far_as_its_model(run: Path) -> None:
    for metadata in (None, {IDS: ids_digest(["a", "b", "c"])}):
        save_vectors(run, 3, metadata)
        assert refused(run).startswith(f"{run}/stage2: ")  # there is none


def test_who_asks_may_bound_the_thought(run: Path, tiny_model: Path) -> None:
    (run / "stage2").symlink_to(tiny_model)
    save_file({"documents": np.eye(3, 32, dtype=np.float32)}, run / "vectors.safetensors")
    by_default = search("parse a date", run)
    short = search("parse a date", run, max_new_tokens=1, device="cpu")
    assert short.thinking_tokens == 1 < by_default.thinking_tokens
    with pytest.raises(SearchR3Error, match=r"5000 tokens of thought are more than .* ask for at most \d+$"):
        search("parse a date", run, max_new_tokens=5000)
    assert search("parse a date", run, reasoning=False, max_new_tokens=5000).hits


@pytest.mark.parametrize("change", ["a document more", "another order"])
def test_documents_that_were_changed_after_the_run(run: Path, change: str) -> None:
    """Each hit would be another document than the one that was found."""
    corpus = run / "data" / "corpus.jsonl"
    lines = corpus.read_text().splitlines(keepends=True)
    if change == "a document more":
        corpus.write_text("".join(['{"_id": "new", "text": "new"}\n', *lines]))
    else:
        save_vectors(run, 3, {IDS: ids_digest(["a", "b", "c"])})
        corpus.write_text("".join(reversed(lines)))
    assert refused(run).startswith(f"{run}/data: not the 3 documents that the run embedded (there are ")


@pytest.mark.parametrize("content", [b"", b"nonsense" * 9, None])
def test_damaged_vectors(run: Path, content: bytes | None) -> None:
    if content is None:
        save_file({"others": np.zeros(1)}, run / "vectors.safetensors")
    else:
        (run / "vectors.safetensors").write_bytes(content)
    message = refused(run)
    assert message.startswith(f"{run}/vectors.safetensors: cannot be read (")
    assert message.endswith("copy it again from the run, or run it anew")


@pytest.mark.parametrize("part", ["data", "stage2", "recipe.yaml/x", "checkpoints/stage1"])
def test_a_part_of_a_run_leads_to_the_run(run: Path, part: str) -> None:
    assert refused(run / part) == f"{run / part}: only a part of a run; give the whole: --run {run}"


def test_what_is_no_run(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    for place in (tmp_path, tmp_path / "notes.txt"):  # quickstart would not take them either
        assert refused(place) == f"{place}: not a run folder; give one that quickstart or train has made"
    assert "not a run folder; make one with `searchr3 quickstart" in refused(tmp_path / "new")


def test_a_query_that_is_no_text(run: Path) -> None:
    assert refused(run, "caf\udce9").startswith("the query holds half a character")


def test_a_long_document_is_shown_by_its_beginning() -> None:
    corpus = {"d": Document("title", "word\n " * 100, {"file": "a.py"})}
    data = RetrievalDataset("one", corpus, {"q": Query("q")}, {})

    hit = run_search._hit(0, 0.123456, "d", data)

    assert hit.snippet.startswith("word word") and hit.snippet.endswith("…")
    assert len(hit.snippet) <= 200
    assert (hit.rank, hit.score, hit.metadata) == (1, 0.1235, {"file": "a.py"})
