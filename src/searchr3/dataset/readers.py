"""Where a data set comes from: installed Python code, a BEIR folder, a file of triples, or the Hub."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from searchr3.dataset.beir import (
    MEASURED,
    own_splits,
    read_beir,
    read_documents,
    read_judgements,
    read_queries,
    text_field,
)
from searchr3.dataset.disk import MANY, shelves_for
from searchr3.dataset.mteb_task import MTEB, read_mteb
from searchr3.dataset.splits import digest, query_key, split_of
from searchr3.dataset.types import Document, Query, RetrievalDataset, own_copies
from searchr3.errors import DataError, first_line
from searchr3.files import read_jsonl

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def load_dataset(
    source: str | Path,
    max_documents: int | None = None,
    split_by: str = "hash",
    on_disk: bool | None = None,
) -> RetrievalDataset:
    """Load a data set.

    Args:
        source: `"python"` (the code installed on this machine), a BEIR folder, a `.jsonl` or `.jsonl.gz` file
            of triples, the name of a Hub data set in BEIR's layout, or `mteb:NAME`, a retrieval task of MTEB,
            see `searchr3.dataset.mteb_task`.
        max_documents: for `"python"`: keep at most so many documents.
        split_by: for `"python"`: `"hash"`, or `"package"` to keep whole packages out of training.
        on_disk: what is read goes to temporary files and not into memory (`"python"` aside); by default where
            it is more than 256 MB.

    Raises:
        DataError: it does not exist or cannot be used; the message names the file and the line.
    """
    path = Path(source)
    if str(source) == "python":
        from searchr3.dataset.python_code import python_dataset

        return python_dataset(max_documents=max_documents, split_by=split_by)
    if max_documents is not None or split_by != "hash":
        raise DataError(
            f"{source}: max_documents and split_by are for the data set 'python' only; leave them out"
        )
    if str(source).startswith(MTEB):
        return read_mteb(str(source), on_disk)
    if path.is_dir():
        return read_beir(path, on_disk)
    if path.name.endswith((".jsonl", ".jsonl.gz")):
        return read_triples(path, on_disk)
    if path.exists():
        raise DataError(
            f"{source}: neither a folder in BEIR's layout nor a .jsonl or .jsonl.gz file of triples"
        )
    if path.is_absolute() or not _HUB_ID.fullmatch(str(source)):
        raise DataError(f"{source}: no such file or folder; check the path")
    return read_hub(str(source), on_disk=on_disk)


def read_triples(path: str | Path, on_disk: bool | None = None) -> RetrievalDataset:
    """Read lines of `query`, `positive` (a text or a list), optional `negatives` (texts) and `reasoning`.

    Documents with the same text are one document, lines with the same query one query. The splits follow from
    a stable hash of the query.

    Args:
        on_disk: see `load_dataset`.

    Raises:
        DataError: the file is missing or empty, or a line is wrong; the line is named.
    """
    path = Path(path)
    shelves = shelves_for([path], on_disk)
    corpus, queries = shelves.documents(), shelves.queries()
    qrels: dict[str, MutableMapping[str, dict[str, int]]] = {}

    def add(texts: list[str]) -> list[str]:
        keys = [f"d-{digest(text)}" for text in texts]
        for one, content in zip(keys, texts, strict=True):
            corpus[one] = Document("", content)
        return keys

    for number, row in read_jsonl(path):
        where = f"{path}:{number}"
        text = text_field(row, "query", where).strip()
        key = f"q-{digest(text)}"
        positives = add(_texts(row, "positive", where, required=True))
        negatives = add(_texts(row, "negatives", where, required=False))
        if both := next((one for one in positives if one in negatives), None):
            raise DataError(
                f"{where}: the same text is positive and negative: {corpus[both].text[:60]!r}; remove one"
            )
        known = queries.get(key, Query(text))
        if (split := split_of(query_key(text))) not in qrels:
            qrels[split] = {} if split in ("dev", "test") else shelves.judgements()
        judged = qrels[split][key] = qrels[split].get(key, {}) | dict.fromkeys(positives, 1)
        reasoning = known.reasoning or text_field(row, "reasoning", where, required=False) or None
        merged = dict.fromkeys([*known.negatives, *negatives])
        queries[key] = Query(text, reasoning, tuple(one for one in merged if one not in judged))
    if not queries:
        raise DataError(f"{path}: no triples; each line must be an object with 'query' and 'positive'")
    name = path.name.removesuffix(".gz").removesuffix(".jsonl")
    return RetrievalDataset(name, corpus, queries, qrels)


def _texts(row: Mapping[str, Any], key: str, where: str, required: bool) -> list[str]:
    value = row.get(key)
    if isinstance(value, str) or (value is None and required):
        return [text_field(row, key, where).strip()]
    if value is None:
        return []
    if not isinstance(value, list):
        raise DataError(f"{where}: {key!r} must be a text or a list of texts, found {type(value).__name__}")
    if required and not value:
        raise DataError(f"{where}: {key!r} is empty; give at least one text")
    return [text_field({key: one}, key, where).strip() for one in value]


def read_hub(
    name: str, load: Callable[..., Any] | None = None, on_disk: bool | None = None
) -> RetrievalDataset:
    """Download a data set in BEIR's layout from the Hugging Face Hub, or take it from the local cache.

    The configurations `corpus` and `queries` hold the texts; the judgements are in the repository
    `NAME-qrels` (BEIR's own way), or in the configuration `qrels` or `default` of the same repository (MTEB's
    way).

    Args:
        name: such as `BeIR/scifact` or `mteb/scifact`.
        load: called in the place of `datasets.load_dataset`.
        on_disk: see `load_dataset`; by default where there are more than 300,000 documents.

    Raises:
        DataError: it cannot be downloaded, is not in this layout, or contradicts itself.
    """
    if load is None:
        import datasets

        load = datasets.load_dataset
    try:
        corpus_tables, query_tables = load(name, "corpus"), load(name, "queries")
    except Exception as error:  # the Hub client raises many kinds
        why = first_line(error)[:200]
        raise DataError(
            f"{name}: no such folder, and the Hub does not give it ({why}); check the name and the network"
        ) from None
    judgements = _hub_judgement_tables(name, load)
    if on_disk is None:
        on_disk = sum(len(rows) for rows in corpus_tables.values()) > MANY
    shelves = shelves_for([], on_disk)
    corpus, held_out = read_documents(_hub_rows(f"{name} corpus", corpus_tables), shelves)
    queries = read_queries(_hub_rows(f"{name} queries", query_tables), corpus, shelves)
    foreign = {
        split: read_judgements(
            _hub_judgement_rows(f"{name} qrels", {split: rows}), queries, corpus, shelves, split == MEASURED
        )
        for split, rows in judgements.items()
    }
    qrels = own_splits(queries, foreign, lambda split: f"{name} qrels {split}", shelves)
    eligible = own_copies(corpus, queries, qrels)
    return RetrievalDataset(name, corpus, queries, qrels, held_out, eligible=eligible).check_splits()


def _hub_judgement_tables(name: str, load: Callable[..., Any]) -> Mapping[str, Any]:
    why = ""
    for arguments in ((f"{name}-qrels",), (name, "qrels"), (name, "default")):
        try:
            return load(*arguments)
        except Exception as error:
            why = first_line(error)[:200]
    raise DataError(
        f"{name}: no judgements in {name}-qrels, nor as configuration 'qrels' or 'default' ({why})"
    )


def _hub_rows(where: str, tables: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for split, rows in tables.items():
        for number, row in enumerate(rows, start=1):
            yield f"{where} {split} row {number}", row


def _hub_judgement_rows(where: str, tables: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any, Any]]:
    for place, row in _hub_rows(where, tables):
        if missing := next((key for key in ("query-id", "corpus-id", "score") if key not in row), None):
            raise DataError(
                f"{place}: key {missing!r} is missing; judgements have query-id, corpus-id and score"
            )
        yield place, row["query-id"], row["corpus-id"], row["score"]
