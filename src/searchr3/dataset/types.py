"""The one type of a retrieval data set: corpus, queries, judgements by split, negatives, reasoning traces."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple, TypedDict

from searchr3.dataset.lazy import View
from searchr3.dataset.splits import query_key
from searchr3.errors import DataError
from searchr3.files import nearest, new_folder, replacing, write_json, write_jsonl

BREAK = re.compile("[\t\r\n]")  # would break the lines of qrels
QRELS_HEADER = "query-id\tcorpus-id\tscore"

Qrels = Mapping[str, dict[str, int]]
"""query id → document id → grade; a grade above zero is relevant."""

SPLITS = ("stage1", "stage2", "dev", "test")
"""Our splits: two to train on, one to choose a checkpoint by, one to measure on."""

FEW = 20
"""Of so many documents, or judgements of `test`, one may be amiss: the data's own flaw, not a wrong file."""


class Document(NamedTuple):
    """One document of the corpus."""

    title: str
    text: str
    metadata: Mapping[str, str] = {}

    @property
    def content(self) -> str:
        """Title and text, one below the other: what is encoded and searched."""
        return f"{self.title}\n{self.text}" if self.title and self.text else self.title or self.text


@dataclass(frozen=True)
class Query:
    """A query. `reasoning` is a trace to train on, never read by evaluation; `negatives` are document ids."""

    text: str
    reasoning: str | None = None
    negatives: tuple[str, ...] = ()


class Eligible(NamedTuple):
    """Which documents may be found for a query: `documents` alone or, with `others`, all but them."""

    documents: frozenset[str]
    others: bool = False


class Task(TypedDict, total=False):
    """What `encode_query` and `generate` are told about queries."""

    instruction: str


@dataclass(frozen=True)
class RetrievalDataset:
    """Corpus, queries and judgements: dicts, or for large data tables on disk (`searchr3.dataset.disk`).

    Attributes:
        name: for reports.
        corpus: document id → document.
        queries: query id → query.
        qrels: split → judgements. Our splits are `stage1`, `stage2`, `dev` and `test`; empty ones are absent.
        held_out: ids of documents that no training corpus may hold.
        instruction: the task of its queries in a sentence; put after the system prompt wherever one of our
            models embeds them or thinks about them.
        eligible: query id → which documents may be found for it; all for a query that is not there. Only
            evaluation reads it, and no file holds it.
    """

    name: str
    corpus: Mapping[str, Document]
    queries: Mapping[str, Query]
    qrels: Mapping[str, Qrels]
    held_out: frozenset[str] = frozenset()
    instruction: str | None = None
    eligible: Mapping[str, Eligible] = field(default_factory=dict)

    def split(self, name: str) -> Qrels:
        """The judgements of one split.

        Raises:
            DataError: there is no such split; the message lists those there are.
        """
        if name not in self.qrels:
            there = ", ".join(sorted(self.qrels)) or "none"
            if name in SPLITS:  # wanted, not mistyped
                mend = f"add qrels/{name}.tsv to its folder, or more lines to a file of triples"
            else:
                guess = nearest(name, self.qrels)
                mend = f"did you mean {guess!r}?" if guess else "choose one of them"
            raise DataError(
                f"{self.name}: no split {name!r} with judgements (splits there are: {there}); {mend}"
            )
        return self.qrels[name]

    def training_corpus(self) -> Mapping[str, Document]:
        """The corpus without the held-out documents."""
        return View(self.corpus, self.held_out) if self.held_out else self.corpus

    @property
    def task(self) -> Task:
        """The instruction as an argument of `encode_query` and `generate`; empty where there is none."""
        return {"instruction": self.instruction} if self.instruction else {}

    def without_reasoning(self) -> RetrievalDataset:
        """The same data without any trace: what evaluation sees."""
        return replace(self, queries=View(self.queries, change=lambda query: replace(query, reasoning=None)))

    def validate(self) -> RetrievalDataset:
        """Return self when all ids are known, no text is empty and no query is in two splits.

        Held-out documents may be empty, and a few judgements of `test` may name documents that are not there.

        Raises:
            DataError: names the first offending id.
        """
        for key, document in self.corpus.items():
            if not document.content.strip() and key not in self.held_out:
                raise DataError(
                    f"{self.name}: document {key!r} has neither title nor text; remove it or fill it"
                )
        for key, query in self.queries.items():
            if not query.text.strip():
                raise DataError(f"{self.name}: query {key!r} has an empty text; remove it or fill it")
            for negative in query.negatives:
                if negative not in self.corpus:
                    raise DataError(
                        f"{self.name}: query {key!r} names the unknown negative document {negative!r}"
                    )
        for split, qrels in self.qrels.items():
            if stranger := next((key for key in qrels if key not in self.queries), None):
                raise DataError(f"{self.name}: split {split!r} judges the unknown query {stranger!r}")
            few = sum(map(len, qrels.values())) // FEW if split == "test" else 0
            unknown = (one for judged in qrels.values() for one in judged if one not in self.corpus)
            if stranger := next(islice(unknown, few, None), None):
                raise DataError(f"{self.name}: split {split!r} judges the unknown document {stranger!r}")
        if stranger := next((document for document in self.held_out if document not in self.corpus), None):
            raise DataError(f"{self.name}: the held-out document {stranger!r} is not in the corpus")
        return self.check_splits()

    def check_splits(self) -> RetrievalDataset:
        """Return self when no query is in two splits.

        Raises:
            DataError: one is.
        """
        splits = list(self.qrels.items())
        for number, (split, qrels) in enumerate(splits):
            for before, others in splits[:number]:
                if key := next((key for key in qrels if key in others), None):
                    both = f"{before!r} and {split!r}"
                    raise DataError(
                        f"{self.name}: query {key!r} is in the splits {both}; leave it in one of them"
                    )
        return self

    def save(self, path: str | Path) -> None:
        """Write a BEIR folder, whole or not at all; `load` gives an equal data set back.

        Raises:
            DataError: the data set contradicts itself, or says which documents may be found, and not only
                that queries do not find themselves.
            SearchR3Error: the folder holds something already, or cannot be written.
        """
        self.validate()
        known = own_copies(self.corpus, self.queries, self.qrels)  # reading finds it again
        if any(known.get(query) != one for query, one in self.eligible.items() if query in self.queries):
            raise DataError(
                f"{self.name}: for some of its queries only some documents may be found, which no file in "
                "BEIR's layout can say; keep it as it is"
            )
        for key in chain(self.corpus, self.queries):
            if not key or BREAK.search(key):
                raise DataError(
                    f"{self.name}: the id {key!r} is empty or holds a tab or a line break; rename it"
                )
        documents = (
            {"_id": key, "title": one.title, "text": one.text}
            | ({"metadata": dict(one.metadata)} if one.metadata else {})
            | ({"held_out": True} if key in self.held_out else {})
            for key, one in self.corpus.items()
        )
        queries = (
            {"_id": key, "text": one.text}
            | ({"reasoning": one.reasoning} if one.reasoning else {})
            | ({"negatives": list(one.negatives)} if one.negatives else {})
            for key, one in self.queries.items()
        )
        with new_folder(path) as folder:
            write_json(folder / "dataset.json", {"name": self.name, **self.task})
            write_jsonl(folder / "corpus.jsonl", documents)
            write_jsonl(folder / "queries.jsonl", queries)
            for split, qrels in self.qrels.items():
                with replacing(folder / "qrels" / f"{split}.tsv") as file:
                    file.write(f"{QRELS_HEADER}\n")
                    for query, judged in qrels.items():
                        file.writelines(f"{query}\t{key}\t{grade}\n" for key, grade in judged.items())

    @classmethod
    def load(cls, source: str | Path) -> RetrievalDataset:
        """The same as `load_dataset(source)`."""
        from searchr3.dataset import load_dataset

        return load_dataset(source)


def own_copies(
    corpus: Mapping[str, Document], queries: Mapping[str, Query], qrels: Mapping[str, Qrels]
) -> dict[str, Eligible]:
    """Queries of dev and test that stand in the corpus, as in arguana and quora, may find all but themselves.

    BEIR leaves out every document of a query's own id (`ignore_identical_ids`). Here it must also have the
    query's words, for an id may be the same by chance, and it must not be judged to be an answer.
    """
    found = {}
    for split in ("dev", "test"):
        for query, judged in qrels.get(split, {}).items():
            own = corpus.get(query)
            if own is None or judged.get(query, 0) > 0:
                continue
            if query_key(queries[query].text) in (query_key(own.text), query_key(own.content)):
                found[query] = Eligible(frozenset({query}), others=True)
    return found
