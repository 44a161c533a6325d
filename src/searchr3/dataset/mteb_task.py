"""Retrieval tasks of MTEB as data sets: `mteb:SciFact`, or `mteb:MKQARetrieval/en` for a subset of one.

What MTEB measures on is the split `test`, whatever its name there. A document is its title and its text, one
below the other, as everywhere here (mteb joins them by a space); a query is followed by its own instruction
where the task has such. Which documents a query may find (excluded ones, candidates to order anew) is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from searchr3.dataset.disk import MANY, shelves_for
from searchr3.dataset.types import Document, Eligible, Query, RetrievalDataset
from searchr3.errors import DataError, first_line
from searchr3.files import nearest

MTEB = "mteb:"
"""Stands before the name of a task."""

SPLIT = "test"
"""What we call the split that MTEB measures on."""


def read_mteb(source: str, on_disk: bool | None = None) -> RetrievalDataset:
    """Download a task of MTEB, or take it from the Hub's cache.

    Args:
        source: `mteb:NAME` or `mteb:NAME/SUBSET`.
        on_disk: see `load_dataset`; by default where there are more than 300,000 documents.

    Raises:
        DataError: mteb is not installed, there is no such task, or its data cannot be had.
    """
    return dataset_of(find_task(source), on_disk)


def find_task(source: str) -> Any:
    """The task of `mteb:NAME` or `mteb:NAME/SUBSET`, of one subset and one split, nothing downloaded yet.

    Raises:
        DataError: mteb is not installed, there is no such task, it is not for searching texts, or it has
            several subsets and none is named.
    """
    try:
        import mteb
        from mteb.abstasks import AbsTaskRetrieval
    except ImportError:
        raise DataError(f"{source}: pip install 'searchr3[mteb]' for tasks of MTEB") from None
    name, _, subset = source.removeprefix(MTEB).partition("/")
    try:
        task = mteb.get_task(name)
    except KeyError:
        guess = nearest(name, [task.metadata.name for task in mteb.get_tasks()])
        mend = f"did you mean {MTEB}{guess}?" if guess else "see the list of tasks in MTEB's documentation"
        raise DataError(f"{source}: MTEB has no task {name!r}; {mend}") from None
    if task.is_aggregate:
        parts = ", ".join(MTEB + part.metadata.name for part in task.metadata.tasks)
        raise DataError(f"{source}: is made of several tasks; name one of {parts}")
    if not isinstance(task, AbsTaskRetrieval) or task.skip_first_result or task.modalities != ["text"]:
        kind = f"{task.metadata.type} of {', '.join(task.modalities)}"
        raise DataError(f"{source}: is {kind}, not a search among texts; choose another task")
    subsets = list(task.hf_subsets)
    if subset not in (subsets if subset or len(subsets) > 1 else [""]):
        raise DataError(f"{source}: name one of its subsets, {MTEB}{name}/… with {', '.join(subsets)}")
    if subset:
        task = mteb.get_task(name, hf_subsets=[subset])
    splits = list(task.eval_splits)
    return task.filter_eval_splits([SPLIT if SPLIT in splits else splits[0]])


def dataset_of(task: Any, on_disk: bool | None = None) -> RetrievalDataset:
    """A retrieval task (`mteb.abstasks.AbsTaskRetrieval`) of one subset and one split as a data set.

    Raises:
        DataError: its data cannot be had, or is no text.
    """
    name, place = task.metadata.name, task.metadata.dataset.get("path")
    try:
        task.load_data()
        task.convert_v1_dataset_format_to_v2(num_proc=None)
    except Exception as error:  # the Hub client and each task's own code raise many kinds
        raise DataError(
            f"{MTEB}{name}: its data, {place} of the Hugging Face Hub, cannot be had "
            f"({first_line(error)[:200]}); check the network, or copy the Hub's cache (HF_HOME) of a machine "
            "that has it"
        ) from None
    subset, split = subset_and_split(task)
    found = task.dataset[subset][split]
    if on_disk is None:
        on_disk = len(found["corpus"]) > MANY
    shelves = shelves_for([], on_disk)
    corpus, queries = shelves.documents(), shelves.queries()
    for row in found["corpus"]:
        corpus[str(row["id"])] = document_from(row)
    for row in found["queries"]:
        queries[str(row["id"])] = Query(query_from(row, f"{MTEB}{name}"))
    qrels = {
        str(query): {str(document): int(grade) for document, grade in judged.items()}
        for query, judged in found["relevant_docs"].items()
        if judged and str(query) in queries
    }
    return RetrievalDataset(
        name if subset == "default" else f"{name}/{subset}",
        corpus,
        queries,
        {SPLIT: qrels},
        instruction=task_instruction(task.metadata),
        eligible=dict(_eligible(found["top_ranked"], task.ignore_identical_ids, corpus, qrels)),
    )


def subset_and_split(task: Any) -> tuple[str, str]:
    """MTEB's names of what a task of one subset and one split measures on."""
    return task.hf_subsets[0], task.eval_splits[0]


def document_from(row: Mapping[str, Any]) -> Document:
    """A row of a corpus as MTEB has it; in a batch for an encoder `body` is the text without its title."""
    body = row.get("body")
    return Document((row.get("title") or "").strip(), (row["text"] if body is None else body) or "")


def query_from(row: Mapping[str, Any], where: str) -> str:
    """A row of the queries as MTEB has it, its own instruction after it.

    Raises:
        DataError: it is no text.
    """
    if not isinstance(row["text"], str):
        raise DataError(f"{where}: its queries are conversations, not texts; choose another task")
    return row["text"] if row.get("instruction") is None else f"{row['text']} {row['instruction']}"


def task_instruction(metadata: Any) -> str | None:
    """What MTEB says of a task's queries, as a sentence; None where it says nothing."""
    prompt = metadata.prompt
    text = (prompt.get("query") if isinstance(prompt, Mapping) else prompt) or ""
    return text.rstrip(" :\n") or None


def _eligible(
    candidates: Mapping[str, list[str]] | None,
    without_itself: bool,
    corpus: Mapping[str, Document],
    queries: Mapping[str, Any],
) -> Iterator[tuple[str, Eligible]]:
    """Which documents each query may find: candidates, and not the document of its own id if so wished."""
    everything = frozenset(corpus) if candidates is not None else frozenset()
    for query in queries:
        itself = frozenset({query} if without_itself and query in corpus else ())
        if candidates is None:
            if itself:
                yield query, Eligible(itself, others=True)
            continue
        only = frozenset(map(str, candidates.get(query, ()))) - itself
        left_out = len(everything) - len(only)
        if left_out < len(only):
            yield query, Eligible(everything - only, others=True)
        elif left_out:
            yield query, Eligible(only)
