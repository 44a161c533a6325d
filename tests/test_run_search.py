from searchr3 import run_search
from searchr3.dataset import Document, Query, RetrievalDataset


def test_a_long_document_is_shown_by_its_beginning() -> None:
    corpus = {"d": Document("title", "word\n " * 100, {"file": "a.py"})}
    data = RetrievalDataset("one", corpus, {"q": Query("q")}, {})

    hit = run_search._hit(0, 0.123456, "d", data)

    assert hit.snippet.startswith("word word") and hit.snippet.endswith("…")
    assert len(hit.snippet) <= 200
    assert (hit.rank, hit.score, hit.metadata) == (1, 0.1235, {"file": "a.py"})
