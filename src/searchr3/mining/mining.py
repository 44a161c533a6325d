"""Hard negatives for the queries of a data set, as a work that may be interrupted at any moment."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from searchr3.dataset import RetrievalDataset
from searchr3.dataset.disk import numbered, writable
from searchr3.dataset.lazy import Lazy
from searchr3.dataset.near_duplicates import jaccard, shingles
from searchr3.dataset.splits import query_key
from searchr3.errors import DataError
from searchr3.files import read_jsonl, sha256_of, write_jsonl
from searchr3.mining.figures import figures
from searchr3.mining.scorers import Progress, Scorer, Teacher, make_scorer
from searchr3.mining.selection import Rule, select
from searchr3.mining.work import Work, data_digest

PART = 256  # queries that are searched, and written, together
ALIKE = 0.8  # Jaccard similarity of their token shingles from which on two texts are copies
RowOf = Callable[[str], int | None]
_TRAINING = ("stage1", "stage2")
_EVALUATION = ("dev", "test")


@dataclass(frozen=True)
class Question:
    """A query to mine for, documents as rows of the training corpus.

    Attributes:
        key: its id.
        text: what is searched for.
        positives: (r,) int64, its relevant documents, r ≥ 1.
        known: no candidates: relevant to this query or to another of the same words, or negatives already.
    """

    key: str
    text: str
    positives: np.ndarray
    known: frozenset[int]


def mine(
    dataset: RetrievalDataset,
    work: Work,
    rule: Rule = Rule(),
    teacher: Teacher = Teacher(),
    splits: Sequence[str] = ("stage1",),
    anew: bool = False,
    progress: Progress = lambda what, done, total: None,
) -> dict[str, Any]:
    """Give the queries of `splits` negatives, and write the data set with them to the output of `work`.

    The corpus without its held-out documents is searched; no judgement of dev and test is looked at.

    Args:
        dataset: the data.
        work: output and what was done before.
        rule: which of the nearest documents are taken.
        teacher: who ranks them.
        splits: `train` stands for stage1 and stage2.
        anew: negatives that the queries of `splits` have already are left out; else mined ones are put behind
            them.
        progress: called as the work goes on.

    Returns:
        What `figures` says.

    Raises:
        DataError: no such split, one that is for evaluation, or no relevant document in them.
        ModelError: the model cannot be used.
        SearchR3Error: an interrupted mining was begun otherwise, or the disk is full.
    """
    splits = training_splits(dataset, splits)
    if teacher.by != "bm25" and teacher.instruction is None:
        teacher = replace(teacher, instruction=dataset.instruction)
    if anew:
        dataset = _with_negatives(dataset, ((key, ()) for split in splits for key in dataset.split(split)))
    questions, without_relevant = questions_of(dataset, splits)
    settings = {
        "anew": anew,
        "data": data_digest(dataset),
        "splits": splits,
        "by": teacher.by,
        "instruction": teacher.instruction,
        "model": sha256_of(files) if (files := teacher.files()) else None,
        **asdict(rule),
    }
    with work.held():
        if (finished := work.admit(settings)) is not None:
            return finished
        parts = [questions[start : start + PART] for start in range(0, len(questions), PART)]
        if not all(work.part(number).is_file() for number in range(len(parts))):
            model = teacher.load()
            work.begin(settings)  # nothing is written before everything is known to be good
            corpus = dataset.training_corpus()
            ids, _ = _rows_of_corpus(dataset)
            texts = Lazy(len(ids), lambda row: corpus[ids[row]].content)  # it may lie on disk
            scorer = make_scorer(teacher, model, texts, work.folder, progress)
            copies = Copies(texts)
            for number, part in enumerate(parts):
                progress("queries", number * PART, len(questions))
                if not work.part(number).is_file():
                    write_jsonl(work.part(number), _mined(part, scorer, rule, ids, copies))
            progress("queries", len(questions), len(questions))

        def rows() -> Iterator[dict[str, Any]]:
            return (row for number in range(len(parts)) for _, row in read_jsonl(work.part(number)))

        found = figures(rows(), without_relevant)
        known = dataset.queries
        negatives = ((row["_id"], (*known[row["_id"]].negatives, *row["negatives"])) for row in rows())
        work.finish(_with_negatives(dataset, negatives), {"settings": settings, "figures": found})
    return found


def training_splits(dataset: RetrievalDataset, splits: Sequence[str]) -> list[str]:
    """The splits of these names, `train` as stage1 and stage2.

    Raises:
        DataError: there is no such split, or one is for evaluation.
    """
    named: list[str] = []
    for split in splits:
        if split == "train" and split not in dataset.qrels:
            there = [one for one in _TRAINING if one in dataset.qrels]
            named += there or [_TRAINING[0]]  # which is then told to be missing
        else:
            named.append(split)
    for split in named:
        if split in _EVALUATION:
            raise DataError(
                f"{dataset.name}: no negatives for the split {split!r}: it is for evaluation; leave it out"
            )
        dataset.split(split)
    if not named:
        raise DataError(f"{dataset.name}: no split to mine for; name one, such as stage1")
    return list(dict.fromkeys(named))


def _with_negatives(
    dataset: RetrievalDataset, negatives: Iterable[tuple[str, tuple[str, ...]]]
) -> RetrievalDataset:
    queries = writable(dataset.queries)
    for key, own in negatives:
        queries[key] = replace(queries[key], negatives=own)
    return replace(dataset, queries=queries)


def questions_of(dataset: RetrievalDataset, splits: Sequence[str]) -> tuple[list[Question], int]:
    """The queries of `splits` that have a relevant document to train on, and how many have none.

    What is relevant to a query is no negative of another with the same words (`query_key`), whatever split
    but dev and test says so.

    Raises:
        DataError: none of the queries has one.
    """
    _, row_of = _rows_of_corpus(dataset)
    right: dict[str, set[int]] = defaultdict(set)
    for split, qrels in dataset.qrels.items():
        if split not in _EVALUATION:
            for key, judged in qrels.items():
                right[query_key(dataset.queries[key].text)].update(_rows(_relevant(judged), row_of))
    questions, without = [], 0
    for split in splits:
        for key, judged in dataset.split(split).items():
            query = dataset.queries[key]
            positives = _rows(_relevant(judged), row_of)
            if not positives:
                without += 1
                continue
            known = right[query_key(query.text)].union(_rows(query.negatives, row_of))
            questions.append(Question(key, query.text, np.array(positives, np.int64), frozenset(known)))
    if not questions:
        raise DataError(
            f"{dataset.name}: no query of {', '.join(splits)} has a relevant document to train on"
        )
    return questions, without


def _relevant(judged: Mapping[str, int]) -> Iterator[str]:
    return (document for document, grade in judged.items() if grade > 0)


def _rows(documents: Iterable[str], row_of: RowOf) -> list[int]:
    return [row for document in documents if (row := row_of(document)) is not None]


def _rows_of_corpus(dataset: RetrievalDataset) -> tuple[Sequence[str], RowOf]:
    """Ids of the training corpus by row, and the row of an id, None for one that is not there.

    Of data on disk they stay there, unless documents are held out: rows have no gaps.
    """
    if not dataset.held_out:
        return numbered(dataset.corpus)
    ids = list(dataset.training_corpus())
    return ids, {key: row for row, key in enumerate(ids)}.get


class Copies:
    """Tells copies and near-copies of a query or its relevant documents, which nobody has judged."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._document = lru_cache(maxsize=2**16)(lambda row: _shingles(texts[row]))

    def of(self, question: Question) -> Callable[[int], bool]:
        """Whether a row is a copy of this query or of a relevant document."""
        own = [_shingles(question.text), *map(self._document, question.positives.tolist())]
        return lambda row: any(jaccard(self._document(row), one) >= ALIKE for one in own)


def _shingles(text: str) -> np.ndarray:
    return shingles(text.casefold(), comments=True)


def _mined(
    part: Sequence[Question], scorer: Scorer, rule: Rule, ids: Sequence[str], copies: Copies
) -> Iterator[dict[str, Any]]:
    k = rule.to_rank + max(len(question.known) for question in part)
    found = scorer.search([one.text for one in part], [one.positives for one in part], k)
    for question, hits in zip(part, found, strict=True):
        choice = select(
            hits.rows,
            hits.scores,
            hits.positives,
            rule,
            question.known,
            copies.of(question),
            question.key,
        )
        negatives = [ids[row] for row in choice.rows]
        rest = {name: value for name, value in asdict(choice).items() if name != "rows"}
        yield {"_id": question.key, "negatives": negatives, **rest}
