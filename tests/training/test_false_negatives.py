"""Copies of what is right for a query are no negatives of it."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from searchr3.dataset import Document, Query, RetrievalDataset
from searchr3.losses import allowed_negatives
from searchr3.training.false_negatives import may_be_negatives

CORPUS = {
    "a": Document("Open", "a file"),
    "a2": Document("", "Open\na file"),  # another id, the same text
    "b": Document("", "close a file"),
    "c": Document("", "read a line"),
}
QUERIES = {"p": Query("open it"), "p2": Query("Open it!"), "q": Query("close it")}
DATA = RetrievalDataset("copies", CORPUS, QUERIES, {})


def test_a_copy_of_a_relevant_document_is_no_negative() -> None:
    assert may_be_negatives(DATA, ["p", "q"], ["a", "a2", "b"], [{"a"}, {"b"}]).tolist() == [
        [False, False, True],
        [True, True, False],
    ]


def test_what_is_relevant_to_a_query_of_the_same_words_is_no_negative() -> None:
    assert may_be_negatives(DATA, ["p", "p2"], ["a", "b", "c"], [{"a"}, {"b"}]).tolist() == [
        [False, False, True],
        [False, False, True],
    ]


@given(
    st.lists(st.sampled_from("abc"), max_size=6),
    st.lists(st.sets(st.sampled_from("abcz")), min_size=1, max_size=3),
)
def test_without_copies_it_is_what_the_judgements_say(documents: list[str], relevant: list[set[str]]) -> None:
    queries = {f"q{row}": Query(f"number {row}") for row in range(len(relevant))}
    found = may_be_negatives(replace(DATA, queries=queries), list(queries), documents, relevant)

    assert found.tolist() == allowed_negatives(documents, relevant).tolist()
