"""The data set type."""

import pytest

from searchr3.dataset import Document, Query, RetrievalDataset
from searchr3.errors import DataError


def small(**changes) -> RetrievalDataset:
    fields = {
        "name": "small",
        "corpus": {
            "d1": Document("Title", "text"),
            "d2": Document("", "second"),
            "d3": Document("Third", ""),
        },
        "queries": {"q1": Query("first?", reasoning="thought", negatives=("d3",)), "q2": Query("second?")},
        "qrels": {"stage1": {"q1": {"d1": 1}}, "test": {"q2": {"d2": 2, "d1": 0}}},
        "held_out": frozenset({"d2"}),
    }
    return RetrievalDataset(**{**fields, **changes})


def test_content():
    assert [document.content for document in small().corpus.values()] == ["Title\ntext", "second", "Third"]


def test_training_corpus_leaves_out_what_is_held_out():
    assert list(small().training_corpus()) == ["d1", "d3"]


def test_without_reasoning():
    dataset = small()
    seen = dataset.without_reasoning()
    assert [query.reasoning for query in seen.queries.values()] == [None, None]
    assert seen.queries["q1"].negatives == ("d3",) and seen.qrels == dataset.qrels
    assert dataset.queries["q1"].reasoning == "thought"


def test_the_instruction_is_kept_with_the_data(tmp_path):
    dataset = small(instruction="Find what answers.")
    dataset.save(tmp_path / "data")
    assert RetrievalDataset.load(tmp_path / "data") == dataset
    assert dataset.without_reasoning().task == {"instruction": "Find what answers."} and small().task == {}


def test_split():
    assert small().split("test") == {"q2": {"d2": 2, "d1": 0}}
    with pytest.raises(DataError, match=r"small: no split 'tset' .*stage1, test.*did you mean 'test'\?"):
        small().split("tset")
    with pytest.raises(DataError, match=r"there are: none\); add qrels/dev.tsv to its folder"):
        small(qrels={}).split("dev")
    with pytest.raises(DataError, match=r"add qrels/stage2\.tsv to"):  # no slip for 'stage1'
        small().split("stage2")
    with pytest.raises(DataError, match=r"stage1, test\); choose one of them"):
        small().split("everything")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"qrels": {"test": {"q9": {"d1": 1}}}}, "split 'test' judges the unknown query 'q9'"),
        ({"qrels": {"test": {"q1": {"d9": 1}}}}, "split 'test' judges the unknown document 'd9'"),
        (
            {"qrels": {"test": {"q1": {"d1": 1}}, "dev": {"q1": {"d1": 1}}}},
            "query 'q1' is in the splits 'test' and 'dev'",
        ),
        ({"queries": {"q1": Query(" "), "q2": Query("x")}}, "query 'q1' has an empty text"),
        ({"queries": {"q1": Query("x", None, ("d9",)), "q2": Query("x")}}, "unknown negative document 'd9'"),
        (
            {"corpus": {"d1": Document("", "\n"), "d2": Document("", "x"), "d3": Document("", "x")}},
            "document 'd1'",
        ),
        ({"held_out": frozenset({"d9"})}, "held-out document 'd9'"),
    ],
)
def test_validate_names_the_culprit(changes, message):
    assert small().validate() == small()
    with pytest.raises(DataError, match=f"small: .*{message}"):
        small(**changes).validate()
