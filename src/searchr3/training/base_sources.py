"""What a tiny base reads: installed Python code, the documents of data sets, running text, conversations.

No query of dev or test is read, and no pair of one; see each source.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from searchr3.dataset import RetrievalDataset, load_dataset
from searchr3.dataset.beir import text_field
from searchr3.dataset.python_code import read_python
from searchr3.dataset.splits import query_key
from searchr3.errors import DataError
from searchr3.files import read_jsonl
from searchr3.training.base_facts import held_out_queries, ids_digest
from searchr3.training.base_rows import LONGEST_TEXT, Talk
from searchr3.training.mixture import TRAINING_SPLITS

_PIECE = re.compile(rf"\S(?:.{{0,{LONGEST_TEXT - 1}}}(?!\S)|.{{{LONGEST_TEXT - 1}}})", re.DOTALL)
_ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Source:
    """Texts and conversations of one origin.

    Attributes:
        name: of its texts in shares and losses; its conversations are called `NAME-pairs`.
        facts: what `base.json` says of it.
    """

    name: str
    texts: Sequence[str]
    talks: Sequence[Talk] = ()
    facts: dict[str, Any] = field(default_factory=dict)


def python_source(split_by: str = "hash", pairs: bool = False) -> Source:
    """Code and docstrings apart from each other; with `pairs` also docstring and function as a conversation.

    Of functions whose query falls into dev or test, and of their near-duplicates, nothing is read.
    """
    read = read_python(split_by=split_by)
    talks = [pair_talk(query, source) for query, source in read.pairs] if pairs else []
    facts = {"kind": "python", "split_by": split_by, "pairs": pairs}
    return Source("python", [text[:LONGEST_TEXT] for text in read.texts], talks, facts)


def data_sources(folders: Sequence[str | Path], pairs: bool = False) -> list[Source]:
    """The documents of data sets; with `pairs` also training queries, each answered by a relevant document.

    All documents of the corpus are read, but for `held_out` ones: what is searched is no secret. Left out is
    a training query that is, in other words or signs, a dev or test query of any of the data sets.

    Raises:
        DataError: a data set cannot be read, or two have one name.
    """
    datasets = [load_dataset(folder) for folder in folders]
    held_out = {query_key(one.queries[query].text) for one in datasets for query in held_out_queries(one)}
    return [_data_source(one, held_out, pairs) for one in datasets]


def _data_source(dataset: RetrievalDataset, held_out: set[str], pairs: bool) -> Source:
    corpus = dataset.training_corpus()
    texts = [piece for document in corpus.values() for piece in pieces(document.content)]
    facts = {
        "kind": "data",
        "pairs": pairs,
        "queries": ids_digest(dataset.queries),
        "held_out": ids_digest(held_out_queries(dataset)),
        "held_out_queries": len(held_out_queries(dataset)),
    }
    talks = [
        pair_talk(dataset.queries[query].text, corpus[document].content)
        for split in TRAINING_SPLITS
        for query, judged in dataset.qrels.get(split, {}).items()
        for document in sorted(key for key, grade in judged.items() if grade > 0)
        if pairs and document in corpus and query_key(dataset.queries[query].text) not in held_out
    ]
    return Source(dataset.name, texts, talks, facts)


def text_source(path: str | Path) -> Source:
    """A file of JSON lines with `text`, or with `messages`: conversations of `{"role", "content"}`.

    Raises:
        DataError: a line has neither, or one that is wrong.
    """
    path = Path(path)
    texts: list[str] = []
    talks: list[Talk] = []
    for number, row in read_jsonl(path):
        where = f"{path}:{number}"
        if "messages" in row:
            talks.append(_talk(row["messages"], where))
        else:
            texts.extend(pieces(text_field(row, "text", where)))
    stem = path.name.removesuffix(".gz").removesuffix(".jsonl")
    return Source(f"{path.parent.name}-{stem}".strip("-."), texts, talks, {"kind": "text"})


def _talk(messages: Any, where: str) -> Talk:
    if not isinstance(messages, list) or not messages or not all(isinstance(one, dict) for one in messages):
        raise DataError(f"{where}: 'messages' must be a list of objects with 'role' and 'content'")
    turns = tuple((text_field(one, "role", where), text_field(one, "content", where)) for one in messages)
    if other := next((role for role, _ in turns if role not in _ROLES), None):
        raise DataError(f"{where}: unknown role {other!r}; use one of {', '.join(_ROLES)}")
    return turns


def pair_talk(query: str, document: str) -> Talk:
    """The user says the query, the assistant writes the document's beginning."""
    return ("user", query), ("assistant", document[:LONGEST_TEXT])


def pieces(text: str) -> Iterator[str]:
    """A text cut at white space into pieces of at most `LONGEST_TEXT` characters; nothing else is lost."""
    return (found.group().rstrip() for found in _PIECE.finditer(text))
