"""Asking a store: think, embed, look for the nearest chunks and the query's words, show where they stand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

import numpy as np

from searchr3.answers import Hit, SearchAnswer, Thinks
from searchr3.errors import SearchR3Error
from searchr3.ranking import exact_scores
from searchr3.search.kinds import NAMES, kind_of
from searchr3.search.roots import below
from searchr3.search.snippet import snippet
from searchr3.search.store import Filter, Found, Row, Store
from searchr3.search.words import fused, index_words

if TYPE_CHECKING:
    from searchr3.adaptive import Documents
    from searchr3.generation import Reasoning
    from searchr3.model import SearchR3

DEPTH = 50  # hits of each kind that a hybrid search fuses, at least
_SPARE = 16  # beyond k, so that ties at rank k are settled by us, the same in every store
_GLOB = set("*?[")

Key = tuple[str, int]
Ask = Callable[[int], list[Found]]  # the best rows of a search, so many at most


class StoreSearch:
    """A store with its model, kept open for many questions.

    Args:
        store: is read anew for each question, so what is indexed meanwhile is found.
        model: whose vectors the store holds, see `encoder.load_for`.
        max_new_tokens: most tokens of a thought.
    """

    def __init__(self, store: Store, model: SearchR3, max_new_tokens: int = 128) -> None:
        self.store, self.model, self.max_new_tokens = store, model, max_new_tokens

    def ask(
        self,
        query: str,
        k: int = 10,
        reasoning: Thinks = True,
        hybrid: bool = False,
        paths: Sequence[str] = (),
        kinds: Sequence[str] = (),
        instruction: str | None = None,
    ) -> SearchAnswer:
        """The chunks nearest to a query.

        Args:
            query: what is looked for.
            k: most hits.
            reasoning: think before embedding; "auto": where the direct ranking of chunks is unsure.
            hybrid: fuse with full text, see `words.fused`; the hits' scores are the fusion's then.
            paths: only files of which one of these patterns or folders holds, see `chosen_paths`.
            kinds: only files of these kinds, such as "md".
            instruction: task instruction of the query.

        Raises:
            SearchR3Error: the query is no proper text, a kind is not known, or the model has no rule for
                "auto".
        """
        check_query(query)

        def documents(vectors: np.ndarray, most: int) -> np.ndarray:
            return self.scores(vectors, most, paths, kinds)

        vector, thought = self._embed(query, reasoning, instruction, documents)
        rows = self.rows(query, vector, k, hybrid, paths, kinds)
        said = (thought.text, len(thought.token_ids), thought.emitted) if thought else ("", 0, True)
        hits = as_hits(rows, f"{query} {said[0]}")
        return SearchAnswer(*said, hits=hits, thought=thought is not None)

    def scores(
        self, vectors: np.ndarray, k: int, paths: Sequence[str] = (), kinds: Sequence[str] = ()
    ) -> np.ndarray:
        """The `k` best cosines of each query's vector, (n, k) from (n, d), falling."""
        nearest = [self.rows("", vector, k, False, paths, kinds) for vector in vectors]
        return np.array([[score for _, score in rows] for rows in nearest], dtype=np.float32)

    def rows(
        self,
        query: str,
        vector: np.ndarray,
        k: int,
        hybrid: bool = False,
        paths: Sequence[str] = (),
        kinds: Sequence[str] = (),
    ) -> list[tuple[Row, float]]:
        """Rows and scores of the `k` best chunks for a query's vector (d,), best first.

        For who has the vector already, such as a server that thinks and embeds in one pass; see `as_hits`.
        """
        among = Filter(
            chosen_paths(self.store.files(), paths) if paths else None,
            known_kinds(kinds) if kinds else None,
        )
        k = min(k, self.store.count())
        depth = max(DEPTH, 5 * k) if hybrid else k
        words = index_words(query) if hybrid else []
        asks: list[Ask] = [lambda most: self.store.nearest(vector, most, among)]
        if hybrid:
            asks.append(lambda most: self.store.matching(words, most, among))
        rows, *told = visible(self.store, depth, asks)
        near = _by_score(rows, exact_scores(vector, np.stack([row.vector for row in rows]))) if rows else []
        if not hybrid:
            return near[:k]
        matching = told[0][:depth]
        row_of: dict[Key, Row] = {_key(row): row for row in (*rows, *matching)}
        rankings = [[_key(row) for row, _ in near[:depth]], [_key(row) for row in matching]]
        return [(row_of[key], score) for key, score in fused(rankings)[:k]]

    def _embed(
        self, query: str, reasoning: Thinks, instruction: str | None, documents: Documents
    ) -> tuple[np.ndarray, Reasoning | None]:
        """The query's vector (d,), and what was thought, if anything."""
        task: dict[str, Any] = {"instruction": instruction}
        if reasoning == "auto":
            vectors, thoughts = self.model.encode_adaptive(
                [query], documents, max_new_tokens=self.max_new_tokens, **task
            )
            return vectors[0], thoughts[0]
        if not reasoning:
            return self.model.encode_query([query], **task)[0], None
        said, vectors = self.model.think([query], self.max_new_tokens, **task)
        return vectors[0], said[0]


def visible(store: Store, k: int, asks: Sequence[Ask]) -> list[list[Row]]:
    """At least the `k` best rows of what is indexed, of searches that also meet rows of other versions.

    There are such rows while a file is indexed, and after an indexing was killed, until the next. Or its
    record was turned to a new version after we met rows of the old one: then it is asked again, until no
    record names a version that it did not name before we asked. So a file is found as it was or as it is, in
    the same way by all searches.
    """
    most, known = k, dict[str, str]()
    while True:
        met = [[one.row for one in ask(most + _SPARE)] for ask in asks]
        records = store.files({row.path for rows in met for row in rows})
        found = [
            [row for row in rows if (one := records.get(row.path)) and one.version == row.version]
            for rows in met
        ]
        if found == met:
            return found
        others = {
            row.path: one.version
            for rows in met
            for row in rows
            if (one := records.get(row.path)) and one.version not in ("", row.version)
        }
        if not others.items() <= known.items():
            known |= others
        elif all(len(kept) >= k or len(rows) < most for kept, rows in zip(found, met, strict=True)):
            return found
        else:
            most *= 4


def chosen_paths(known: Sequence[str] | dict[str, Any], patterns: Sequence[str]) -> set[str]:
    """Of the known names, those of these globs (`*` stands for slashes too), files and folders.

    >>> sorted(chosen_paths(["docs/a.md", "docs/b/c.md", "src/a.py"], ["docs/b", "*.py"]))
    ['docs/b/c.md', 'src/a.py']
    """
    chosen: set[str] = set()
    for pattern in patterns:
        plain = pattern.removeprefix("./").rstrip("/")
        if _GLOB & set(plain):
            chosen.update(name for name in known if fnmatchcase(name, plain))
        else:
            chosen.update(name for name in known if name == plain or below(name, plain))
    return chosen


def known_kinds(names: Sequence[str]) -> set[str]:
    """Kinds by their names or endings.

    Raises:
        SearchR3Error: one is not known.
    """
    kinds = set()
    for name in names:
        plain = name.lower().lstrip(".")
        by_ending = kind_of(f"x.{plain}")
        if plain not in NAMES and by_ending is None:
            raise SearchR3Error(f"--type {name}: not known; choose of {', '.join(sorted(NAMES))}")
        kinds.add(plain if plain in NAMES or by_ending is None else by_ending.name)
    return kinds


def as_hits(rows: Sequence[tuple[Row, float]], spoken: str) -> list[Hit]:
    """Hits as they are shown; snippets look for the words of `spoken`, the query and the thought."""
    words = index_words(spoken)
    return [_hit(rank, row, score, words) for rank, (row, score) in enumerate(rows, start=1)]


def check_query(query: str) -> None:
    """Raise SearchR3Error where a query is nothing that a tokenizer takes."""
    if not query.strip():
        raise SearchR3Error("the query is empty; write what you look for")
    try:
        query.encode()
    except UnicodeEncodeError:
        raise SearchR3Error("the query holds half a character (a lone surrogate); type it again") from None


def _by_score(rows: Sequence[Row], scores: np.ndarray) -> list[tuple[Row, float]]:
    pairs = [(row, float(score)) for row, score in zip(rows, scores, strict=True)]
    return sorted(pairs, key=lambda pair: (-pair[1], pair[0].path, pair[0].number))


def _key(row: Row) -> Key:
    return row.path, row.number


def _hit(rank: int, row: Row, score: float, words: Sequence[str]) -> Hit:
    where = f"{row.path}, page {row.first}" if row.page else f"{row.path}:{row.first}"
    metadata = {
        "path": row.path,
        "type": row.kind,
        "heading": row.heading,
        **({"page": str(row.first)} if row.page else {"line": str(row.first), "last_line": str(row.last)}),
        "text": row.text,
    }
    name = f"{row.path}#{row.number}"
    return Hit(rank, round(score, 4), name, where, snippet(row.text, words), metadata)
