"""The BEIR layout on disk: `corpus.jsonl[.gz]`, `queries.jsonl[.gz]`, `qrels/SPLIT.tsv`.

Beyond BEIR, queries may carry `reasoning` and `negatives` (document ids), documents `metadata` and
`held_out`, and `dataset.json` the name and the queries' instruction.

BEIR's own folders have flaws and are read as they are: grades below 0 (trec-covid) are 0; a few judgements of
`test` may name documents that are not there (arguana); a few documents may be empty (trec-covid) and are then
held out of training; a query that stands in the corpus (arguana, quora) does not find itself.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from pathlib import Path
from typing import Any

from searchr3.dataset.disk import MEMORY, Shelves, shelves_for
from searchr3.dataset.flaws import Flaws
from searchr3.dataset.splits import TRAIN_DEV_SHARES, TRAIN_SHARES, query_key, split_of
from searchr3.dataset.types import BREAK, QRELS_HEADER, Document, Qrels, Query, RetrievalDataset, own_copies
from searchr3.errors import DataError
from searchr3.files import read_errors, read_jsonl

MAX_GRADE = 100  # far above any scale in use, far below where sums of gains lose the small ones
MEASURED = "test"  # the split that nobody learns from

_HALF_CHARACTER = re.compile("[\ud800-\udfff]")
_EVALUATED = {"dev", "test"}
_OTHER_NAMES = {"val": "dev", "valid": "dev", "validation": "dev"}


def text_field(row: Mapping[str, Any], key: str, where: str, required: bool = True) -> str:
    """A text of a row; "" for one that is not required and is missing or blank.

    Raises:
        DataError: the key is missing, its value is no proper text, or a required text is empty.
    """
    value = row.get(key)
    if value is None:
        if not required:
            return ""
        there = ", ".join(map(repr, row)) or "nothing"
        raise DataError(f"{where}: key {key!r} is missing (there is {there}); add it")
    if not isinstance(value, str):
        raise DataError(f"{where}: {key!r} must be a text, found {type(value).__name__}; put it in quotes")
    if required and not value.strip():
        raise DataError(f"{where}: {key!r} is empty; fill it or remove the line")
    if _HALF_CHARACTER.search(value):
        raise DataError(f"{where}: {key!r} holds half a character (a lone surrogate); remove it")
    return value if value.strip() else ""


def id_field(row: Mapping[str, Any], where: str) -> str:
    """The id of a row, a text or a whole number.

    Raises:
        DataError: it is missing, empty, or holds a tab or a line break.
    """
    value = row.get("_id")
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)  # some data sets number their documents
    key = text_field(row, "_id", where)
    if BREAK.search(key):
        raise DataError(f"{where}: '_id' holds a tab or a line break ({key!r}); rename it")
    return key


def document_of(row: Mapping[str, Any], where: str, empty: bool = False) -> Document:
    """Title and text of a row, without its metadata.

    Args:
        empty: it may be without a word, but not without the keys.

    Raises:
        DataError: it has neither, or one of them is no proper text.
    """
    title = text_field(row, "title", where, required=False)
    wanted = not title.strip() and not (empty and isinstance(row.get("text"), str))
    return Document(title, text_field(row, "text", where, required=wanted))


def read_documents(
    rows: Iterable[tuple[str, Mapping[str, Any]]], shelves: Shelves = MEMORY
) -> tuple[Mapping[str, Document], frozenset[str]]:
    """Corpus and held-out ids from `(where, row)`.

    Raises:
        DataError: a key is missing, an id comes twice, or more than a few documents have neither title nor
            text.
    """
    corpus = shelves.documents()
    held_out: set[str] = set()
    empty = Flaws("nobody learns from it")
    for where, row in rows:
        key = id_field(row, where)
        if key in corpus:
            raise DataError(f"{where}: the document id {key!r} comes twice; ids must be unique")
        document = document_of(row, where, empty=True)
        metadata = row.get("metadata") or {}
        if not isinstance(metadata, dict):
            raise DataError(f"{where}: 'metadata' must be an object, found {type(metadata).__name__}")
        values = {
            str(name): value if isinstance(value, str) else json.dumps(value)
            for name, value in metadata.items()
        }
        if any(_HALF_CHARACTER.search(one) for pair in values.items() for one in pair):
            raise DataError(f"{where}: 'metadata' holds half a character (a lone surrogate); remove it")
        corpus[key] = document._replace(metadata=values)
        if not document.content:
            empty.add(where, "'text' is empty")
        if row.get("held_out") or not document.content:
            held_out.add(key)
    empty.end(len(corpus), "fill it or remove the line")
    return corpus, frozenset(held_out)


def read_queries(
    rows: Iterable[tuple[str, Mapping[str, Any]]],
    corpus: Mapping[str, Document],
    shelves: Shelves = MEMORY,
) -> Mapping[str, Query]:
    """Queries from `(where, row)`.

    Raises:
        DataError: a key is missing, an id comes twice, a text is empty, or a negative is not in the corpus.
    """
    queries = shelves.queries()
    for where, row in rows:
        key = id_field(row, where)
        if key in queries:
            raise DataError(f"{where}: the query id {key!r} comes twice; ids must be unique")
        negatives = row.get("negatives") or []
        if not isinstance(negatives, list):
            raise DataError(
                f"{where}: 'negatives' must be a list of document ids, found {type(negatives).__name__}"
            )
        negatives = tuple(map(str, negatives))
        if unknown := next((one for one in negatives if one not in corpus), None):
            raise DataError(
                f"{where}: the negative {unknown!r} is no document of the corpus; remove it or add it"
            )
        reasoning = text_field(row, "reasoning", where, required=False) or None
        queries[key] = Query(text_field(row, "text", where), reasoning, negatives)
    return queries


def read_judgements(
    rows: Iterable[tuple[str, Any, Any, Any]],
    queries: Mapping[str, Query],
    corpus: Mapping[str, Document],
    shelves: Shelves = MEMORY,
    measured: bool = False,
) -> Qrels:
    """Judgements of one split from `(where, query id, document id, score)`; a score below 0 is read as 0.

    Args:
        measured: the split is `MEASURED`, so that a few of them may name documents that are not there.

    Raises:
        DataError: an id is unknown, a score is not a whole number from 0 to 100, or a pair comes twice with
            different scores.
    """
    qrels = shelves.judgements()
    lost = Flaws("it counts as not found")
    for where, query, document, score in rows:
        query, document = str(query), str(document)
        if query not in queries:
            raise DataError(
                f"{where}: judges the unknown query id {query!r}; remove the line or add the query"
            )
        if document not in corpus:
            lost.add(where, f"judges the unknown document id {document!r}")
            if not measured:
                break
        try:
            grade = int(float(score))
            if "_" in str(score) or grade != float(score) or abs(grade) > MAX_GRADE:
                raise ValueError
            grade = max(0, grade)  # TREC's -1 and -2: not judged, rubbish
        except (TypeError, ValueError, OverflowError):  # the last: inf
            raise DataError(
                f"{where}: the score {score!r} is not a whole number from 0 to {MAX_GRADE}; "
                "write 0 where the document is no answer, else 1, 2 …"
            ) from None
        judged = qrels.get(query, {})
        if judged.setdefault(document, grade) != grade:
            raise DataError(
                f"{where}: judges query {query!r} and document {document!r} again, with another score"
            )
        qrels[query] = judged
    there = sum(map(len, qrels.values())) if lost.count and measured else 0
    lost.end(there, "remove the line or add the document")
    return qrels


def own_splits(
    queries: Mapping[str, Query],
    foreign: Mapping[str, Qrels],
    place: Callable[[str], str],
    shelves: Shelves = MEMORY,
) -> dict[str, Qrels]:
    """Our splits from foreign ones: a stable hash divides `train` into stage1, stage2 and a missing dev.

    Splits of our own names and others stay as they are; empty ones are left out. Where the data set has
    `stage1` or `stage2` already, a `train` beside them is left out.

    Args:
        queries: to divide `train` by.
        foreign: the splits as the data set names them.
        place: where a foreign split stands, for errors.

    Raises:
        DataError: two foreign splits have different names for one of ours.
    """
    foreign = {split: qrels for split, qrels in foreign.items() if qrels}
    origin: dict[str, str] = {}
    for split in foreign:
        ours = _OTHER_NAMES.get(split, split)
        if origin.setdefault(ours, split) != split:
            raise DataError(
                f"{place(origin[ours])} and {place(split)}: both are the split {ours!r}; "
                "put their lines into one of them, or leave one out"
            )
    named = {_OTHER_NAMES.get(split, split): qrels for split, qrels in foreign.items()}
    if "stage1" in named or "stage2" in named:
        named.pop("train", None)
    for split in _EVALUATED & named.keys():
        named[split] = dict(named[split])  # small beside the rest, and what measures wants dicts
    if "train" not in named:
        return named
    shares = TRAIN_SHARES if "dev" in named else TRAIN_DEV_SHARES
    divided: dict[str, MutableMapping[str, dict[str, int]]] = {}
    for query, judged in named.pop("train").items():
        split = split_of(query_key(queries[query].text), shares)
        if split not in divided:  # to make a shelf on disk takes longer than to fill it
            divided[split] = {} if split in _EVALUATED else shelves.judgements()
        divided[split][query] = judged
    return {**named, **divided}


def read_beir(folder: str | Path, on_disk: bool | None = None) -> RetrievalDataset:
    """Read a BEIR folder. A foreign `train` split serves both stages.

    Args:
        on_disk: see `load_dataset`.

    Raises:
        DataError: a file is missing, or a line of it is wrong; file, line and mend are named.
    """
    folder = Path(folder)
    shelves = shelves_for([jsonl_file(folder, "corpus"), jsonl_file(folder, "queries")], on_disk)
    corpus, held_out = read_documents(_jsonl_rows(folder, "corpus"), shelves)
    queries = read_queries(_jsonl_rows(folder, "queries"), corpus, shelves)
    files = sorted((folder / "qrels").glob("*.tsv"))
    if not files:
        raise DataError(
            f"{folder / 'qrels'}: no judgements; put at least one SPLIT.tsv there, such as test.tsv"
        )
    foreign = {
        file.stem: read_judgements(_tsv_rows(file), queries, corpus, shelves, file.stem == MEASURED)
        for file in files
    }
    qrels = own_splits(queries, foreign, lambda split: str(folder / "qrels" / f"{split}.tsv"), shelves)
    name, instruction = _facts(folder)
    eligible = own_copies(corpus, queries, qrels)
    return RetrievalDataset(name, corpus, queries, qrels, held_out, instruction, eligible).check_splits()


def _facts(folder: Path) -> tuple[str, str | None]:
    """Name and instruction."""
    file = folder / "dataset.json"
    if not file.exists():
        return folder.resolve().name, None
    try:
        facts = json.loads(file.read_text(encoding="utf-8-sig"))
        if not isinstance(facts, dict) or "name" not in facts:
            raise ValueError
    except (OSError, ValueError, RecursionError):
        raise DataError(f"{file}: must be an object with a 'name'; mend it or remove the file") from None
    name = text_field(facts, "name", str(file))
    return name, text_field(facts, "instruction", str(file), required=False).strip() or None


def jsonl_file(folder: Path, stem: str) -> Path:
    """`stem.jsonl` or `stem.jsonl.gz`, whichever the BEIR folder has.

    Raises:
        DataError: neither, or both.
    """
    found = [path for ending in ("", ".gz") if (path := folder / f"{stem}.jsonl{ending}").exists()]
    if not found:
        raise DataError(
            f"{folder}: no {stem}.jsonl or {stem}.jsonl.gz; a BEIR folder has corpus, queries and qrels/"
        )
    if len(found) > 1:
        raise DataError(f"{found[0]} and {found[1]}: only one of them can be read; remove the other")
    return found[0]


def _jsonl_rows(folder: Path, stem: str) -> Iterable[tuple[str, dict[str, Any]]]:
    path = jsonl_file(folder, stem)
    number = 0
    for number, row in read_jsonl(path):
        yield f"{path}:{number}", row
    if not number:
        raise DataError(f"{path}: is empty; write one object a line, with '_id' and 'text'")


def _tsv_rows(path: Path) -> Iterable[tuple[str, str, str, str]]:
    lines = _tsv_lines(path)
    header = next(lines, (1, ""))[1].strip()
    if header.split("\t") != QRELS_HEADER.split("\t"):
        found = f"there is {header[:80]!r}" if header else "the line is empty"
        raise DataError(
            f"{path}:1: the header is missing ({found}); "
            f"the first line must be {' TAB '.join(QRELS_HEADER.split())}"
        )
    for number, line in lines:
        if line.strip():
            columns = line.rstrip("\r\n").split("\t")
            if len(columns) != 3:
                raise DataError(
                    f"{path}:{number}: {len(columns)} columns; write query-id TAB corpus-id TAB score"
                )
            query, document, score = columns
            yield f"{path}:{number}", query, document, score


def _tsv_lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        with read_errors(path), path.open(encoding="utf-8-sig") as lines:
            yield from enumerate(lines, start=1)
    except UnicodeDecodeError:
        number = next(number for number, line in enumerate(path.open("rb"), start=1) if not _is_utf8(line))
        raise DataError(f"{path}:{number}: not UTF-8 text; convert the file to UTF-8") from None


def _is_utf8(line: bytes) -> bool:
    try:
        return bool(line.decode())
    except UnicodeDecodeError:
        return False
