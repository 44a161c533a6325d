"""What a tiny base reads: installed Python code, the documents of data sets, running text, conversations.

No query of dev or test is read, and no pair of one; see each source, and `kept_apart` for all together.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, field, replace
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
        held_out: `query_key`s of queries that no source may show with an answer.
    """

    name: str
    texts: Sequence[str]
    talks: Sequence[Talk] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    held_out: Set[str] = frozenset()


def kept_apart(sources: Sequence[Source]) -> list[Source]:
    """The sources without conversations in which the user says a query that one of them holds out."""
    held_out = {key for one in sources for key in one.held_out}

    def tells(talk: Talk) -> bool:
        return any(role == "user" and query_key(text) in held_out for role, text in talk)

    return [replace(one, talks=[talk for talk in one.talks if not tells(talk)]) for one in sources]


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

    All documents of the corpus are read, but for `held_out` ones: what is searched is no secret. Queries of
    dev and test are held out, see `kept_apart`.

    Raises:
        DataError: a data set cannot be read.
    """
    return [_data_source(load_dataset(folder), pairs) for folder in folders]


def hold_out_source(folder: str | Path) -> Source:
    """A data set of which nothing is read, and whose dev and test queries are held out, see `kept_apart`.

    Raises:
        DataError: it cannot be read.
    """
    dataset = load_dataset(folder)
    facts = {"kind": "hold-out", **_facts_of_queries(dataset)}
    return Source(f"hold-out-{dataset.name}", [], [], facts, _held_out(dataset))


def _held_out(dataset: RetrievalDataset) -> frozenset[str]:
    return frozenset(query_key(dataset.queries[query].text) for query in held_out_queries(dataset))


def _facts_of_queries(dataset: RetrievalDataset) -> dict[str, Any]:
    held_out = held_out_queries(dataset)
    return {
        "queries": ids_digest(dataset.queries),
        "held_out": ids_digest(held_out),
        "held_out_queries": len(held_out),
    }


def _data_source(dataset: RetrievalDataset, pairs: bool) -> Source:
    corpus = dataset.training_corpus()
    texts = [piece for document in corpus.values() for piece in pieces(document.content)]
    facts = {"kind": "data", "pairs": pairs, **_facts_of_queries(dataset)}
    talks = [
        pair_talk(dataset.queries[query].text, corpus[document].content)
        for split in TRAINING_SPLITS
        for query, judged in dataset.qrels.get(split, {}).items()
        for document in sorted(key for key, grade in judged.items() if grade > 0)
        if pairs and document in corpus
    ]
    return Source(dataset.name, texts, talks, facts, _held_out(dataset))


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
