"""What an evaluation computed, kept for the next one: vectors and thoughts, by model and text.

`Cached(model)` stands before a model, answers from a `Shelf` what it can, and asks the model for the rest.
A model's file is named by its `digest()`; within it an entry is known by what was asked: the kind, the text,
the thought and its ids, and every option (instruction, most tokens of a thought, dimensions). So whatever
changes an answer changes its name, and nothing is looked up that might be of another model or wording.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from searchr3.errors import DataError, SearchR3Error
from searchr3.evaluation.results import Thought
from searchr3.evaluation.shelf import Entry, Shelf
from searchr3.files import check_writable

_ALIKE = 0.999  # cosine of two vectors that one server gave of one text, whatever it rounds by
_SHORTENED = b"s"  # behind the four bytes of each number of a vector: the model cut the text


def default_folder() -> Path:
    """`SEARCHR3_CACHE`, else `searchr3` in the user's folder for caches (`XDG_CACHE_HOME`, `~/.cache`)."""
    if chosen := os.environ.get("SEARCHR3_CACHE"):
        return Path(chosen)
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (base if base.is_absolute() else Path.home() / ".cache") / "searchr3"


class Cache:
    """A folder with one file a model; a context manager that closes them.

    Raises:
        SearchR3Error: the folder cannot be written.

    Attributes:
        saved: seconds that its models' work took when it was done, less those of looking it up. Added to a
            clock they make it run as if nothing had been kept.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder).expanduser()
        try:
            check_writable(self.folder / "model.sqlite")
        except SearchR3Error as error:
            raise SearchR3Error(f"{error} with --cache, or use --no-cache") from None
        self.saved = 0.0
        self._shelves: dict[str, Shelf] = {}

    def over(self, model: Any) -> Any:
        """`model`, its answers kept: a `Cached`; as it is, if it does not say what its vectors depend on."""
        if isinstance(model, Cached) or not hasattr(model, "digest"):
            return model
        return Cached(model, self)

    def shelf(self, digest: str) -> Shelf:
        """The file of a model."""
        if digest not in self._shelves:
            self._shelves[digest] = Shelf(self.folder / f"{digest}.sqlite")
        return self._shelves[digest]

    @property
    def size(self) -> int:
        """Bytes of the files of its models."""
        return sum(shelf.path.stat().st_size for shelf in self._shelves.values())

    def __str__(self) -> str:
        return f"{self.size / 1e6:,.1f} MB of these models in {self.folder}"

    def __enter__(self) -> Cache:
        return self

    def __exit__(self, *_: object) -> None:
        for shelf in self._shelves.values():
            shelf.close()
        self._shelves.clear()


class Cached:
    """A model whose vectors and thoughts are kept; an `Embedder` or a `Rival` as the model is.

    What is returned is what was computed, bit for bit, whether it was kept or is new. Of each call the texts
    that are not known go to the model together, each once, and are on the disk before the call returns.
    With a vector is kept whether its text was `shortened`, where the model tells that.
    Thoughts that are sampled with a seed are kept by their batch. Those that are sampled without one, and
    vectors after `reasoning=True`, are no function of what was asked: such calls go through to the model, as
    does everything that is not named here.

    Args:
        model: must not change while it is wrapped; its `digest()` is asked for once. One whose digest tells
            nothing of its weights has a `probe()`, whose vector must be the one of before.
        cache: where its answers are kept.

    Raises:
        SearchR3Error: the probe's vector is another one.
    """

    def __init__(self, model: Any, cache: Cache):
        self.model, self.cache = model, cache
        self._digest = model.digest()
        self._shelf = cache.shelf(self._digest)
        if hasattr(model, "probe"):
            self._recognize(model.probe())

    def _recognize(self, now: np.ndarray | None) -> None:
        """Hold against what is kept the vector that a model known by its address alone gives of its probe."""
        if now is None:
            return
        key = _key("probe", "", {})
        if kept := self._shelf.get([key]):
            before = np.frombuffer(kept[key].value, "<f4")
            if before.shape != now.shape or float(before @ now) < _ALIKE:
                raise SearchR3Error(
                    f"{self._shelf.path}: the cache is of another model than the server has now behind its "
                    "name; remove the file, choose another place with --cache, or use --no-cache"
                )
        else:
            self._shelf.put({key: Entry(now.astype("<f4").tobytes(), 0.0)})

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def digest(self) -> str:
        """The model's, as it was when it was wrapped."""
        return self._digest

    def encode_document(self, documents: Sequence[str], **options: Any) -> np.ndarray:
        texts = _listed(documents)

        def encode(rows: list[int]) -> np.ndarray:
            return self.model.encode_document([texts[row] for row in rows], **options)

        return self._vectors([_key("document", text, options) for text in texts], texts, encode)

    def encode_query(self, queries: Sequence[str], reasoning: Any = False, **options: Any) -> np.ndarray:
        texts = _listed(queries)
        if reasoning is False:
            thoughts: Sequence[Any] = [None] * len(texts)
        elif isinstance(reasoning, Sequence) and not isinstance(reasoning, str):
            thoughts = reasoning
        else:
            return self.model.encode_query(queries, reasoning, **options)

        def encode(rows: list[int]) -> np.ndarray:
            asked = [texts[row] for row in rows]
            if reasoning is False:
                return self.model.encode_query(asked, **options)
            return self.model.encode_query(asked, reasoning=[thoughts[row] for row in rows], **options)

        pairs = zip(texts, thoughts, strict=True)
        keys = [_key("query", text, options, thought) for text, thought in pairs]
        return self._vectors(keys, texts, encode)

    def generate(
        self,
        batch: Sequence[str],
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        *,
        seed: int | None = None,
        **options: Any,
    ) -> list[Thought]:
        chance = {} if seed is None else {"seed": seed}
        drawn = {"temperature": temperature, **chance} if temperature else {}
        asked = options | drawn | {"max_new_tokens": max_new_tokens}
        if drawn and not chance:
            return self.model.generate(batch=batch, **asked)
        texts = _listed(batch)

        def think(rows: list[int]) -> Iterable[bytes]:
            some = range(len(texts)) if drawn else rows
            found = self.model.generate(batch=[texts[row] for row in some], **asked)
            said = dict(zip(some, found, strict=True))
            return (_said(said[row]) for row in rows)

        keys = [_key("thought", text, asked) for text in texts]
        if drawn:  # a batch shares its random numbers: what is said of a text depends on all of them
            together = blake2b(b"".join(keys)).hexdigest()
            keys = [_key("sample", str(row), {"batch": together}) for row in range(len(texts))]
        return [_thought(value) for value in self._values(keys, think)]

    def think(
        self, queries: Sequence[str], max_new_tokens: int = 128, **options: Any
    ) -> tuple[list[Thought], np.ndarray]:
        """As of `SearchR3`; what is kept of either is not computed again."""
        texts = _listed(queries)
        made: dict[bytes, np.ndarray] = {}

        def speak(rows: list[int]) -> Iterable[bytes]:
            asked = [texts[row] for row in rows]
            said, vectors = self.model.think(asked, max_new_tokens=max_new_tokens, **options)
            made.update(zip(behind(asked, said), vectors, strict=True))
            return map(_said, said)

        def behind(some: Sequence[str], thoughts: Sequence[Thought]) -> list[bytes]:
            pairs = zip(some, thoughts, strict=True)
            return [_key("query", text, options, thought) for text, thought in pairs]

        def encode(rows: list[int]) -> np.ndarray:
            rest = [row for row in rows if keys[row] not in made]
            if rest or not rows:
                asked, given = [texts[row] for row in rest], [thoughts[row] for row in rest]
                found = self.model.encode_query(asked, reasoning=given, **options)
                if not rows:
                    return found
                made.update(zip([keys[row] for row in rest], found, strict=True))
            return np.stack([made[keys[row]] for row in rows])

        spoken = [_key("thought", text, options | {"max_new_tokens": max_new_tokens}) for text in texts]
        thoughts = [_thought(value) for value in self._values(spoken, speak)]
        keys = behind(texts, thoughts)
        return thoughts, self._vectors(keys, texts, encode)

    def _vectors(
        self, keys: Sequence[bytes], texts: Sequence[str], encode: Callable[[list[int]], np.ndarray]
    ) -> np.ndarray:
        if not keys:
            return encode([])
        shortened: set[int] = getattr(self.model, "shortened", set())

        def compute(rows: list[int]) -> Iterable[bytes]:
            for row, vector in zip(rows, encode(rows), strict=True):
                yield vector.astype("<f4").tobytes() + _SHORTENED * (hash(texts[row]) in shortened)

        values = self._values(keys, compute)
        pairs = zip(texts, values, strict=True)
        shortened |= {hash(text) for text, value in pairs if len(value) % 4}
        vectors = [np.frombuffer(value, "<f4", len(value) // 4) for value in values]
        return np.stack(vectors, dtype=np.float32)

    def _values(self, keys: Sequence[bytes], compute: Callable[[list[int]], Iterable[bytes]]) -> list[bytes]:
        """The value of each key; `compute` gives those of rows, and is asked once, or not at all."""
        started = time.perf_counter()
        row_of: dict[bytes, int] = {}
        for row, key in enumerate(keys):
            row_of.setdefault(key, row)
        found = self._shelf.get([*row_of])
        known = sum(entry.seconds for entry in found.values())
        missing = {key: row for key, row in row_of.items() if key not in found}
        took = 0.0
        if missing:
            begun = time.perf_counter()
            values = [*compute([*missing.values()])]
            took = time.perf_counter() - begun
            new = zip(missing, values, strict=True)
            made = {key: Entry(value, took / len(missing)) for key, value in new}
            self._shelf.put(made)
            found |= made
        self.cache.saved += known - (time.perf_counter() - started - took)
        return [found[key].value for key in keys]


def _listed(texts: Sequence[str]) -> list[str]:
    if isinstance(texts, str):  # it would be taken for its letters
        raise TypeError("a list of texts is wanted, not one text")
    return list(texts)


def _key(kind: str, text: str, options: dict[str, Any], thought: Thought | None = None) -> bytes:
    """What was asked, as a name: other questions have other names.

    Raises:
        DataError: the text holds half a character, which no tokenizer takes.
    """
    said = None if thought is None else [thought.text, [int(token) for token in thought.token_ids]]
    asked = {name: value for name, value in options.items() if value is not None}  # as if it were not given
    try:
        # not ASCII alone: two halves of a character would be written as the whole one is
        words = json.dumps([kind, asked, said, text], ensure_ascii=False, sort_keys=True).encode()
    except UnicodeEncodeError:
        raise DataError(f"{text[:40]!a}: holds half a character; write the text again as UTF-8") from None
    return blake2b(words, digest_size=32).digest()


def _said(thought: Thought) -> bytes:
    ids = [int(token) for token in thought.token_ids]
    return json.dumps([thought.text, ids, bool(thought.emitted)]).encode()


def _thought(value: bytes) -> Thought:
    from searchr3.generation import Reasoning

    text, ids, emitted = json.loads(value)
    return Reasoning(text, tuple(ids), emitted)
