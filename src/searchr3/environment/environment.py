"""The corpus as an environment: vectors kept fresh enough, rollouts rewarded by how they rank the corpus."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from searchr3.environment.fidelity import cosine
from searchr3.environment.policies import Judged, RefreshPolicy, RolloutBatch, gathered
from searchr3.environment.scoring import Scores, score_rollouts
from searchr3.environment.state import State, load_state, nested, save_state, unnested
from searchr3.environment.store import VectorStore
from searchr3.errors import DataError, SearchR3Error
from searchr3.group import ALONE, Group

_CHUNK = 16_384  # documents encoded before their vectors are stored

Encode = Callable[[list[str]], np.ndarray]
Relevant = Sequence[Mapping[str, float]]


@dataclass(frozen=True)
class RefreshReport:
    """What one refresh did. What else is encoded, for an audit or a contrastive loss, is not in it.

    Attributes:
        rows: rows that were encoded, (r,) int64.
        documents: how many these are.
        seconds: wall time, choosing the rows included.
        share_reencoded: `documents` over the size of the corpus.
        share_tokens: their tokens over those of the corpus.
        mean_age: mean age of all vectors after the refresh, in policy steps.
        drift: mean of 1 − cosine between the old and the new vectors of `rows`, which the policy chose: no
            figure to compare policies by; None where there were no old ones.
        policy: what the policy itself has to say, see `RefreshPolicy.metrics`.
    """

    rows: np.ndarray
    documents: int
    seconds: float
    share_reencoded: float
    share_tokens: float
    mean_age: float
    drift: float | None
    policy: dict[str, float] = field(default_factory=dict)

    def metrics(self) -> dict[str, float]:
        """The figures for a log; `drift` is left out where there is none."""
        names = ("documents", "seconds", "share_reencoded", "share_tokens", "mean_age", "drift")
        found = {name: float(value) for name in names if (value := getattr(self, name)) is not None}
        return found | self.policy


class CorpusEnvironment:
    """A corpus whose documents are encoded by a policy that changes at every step.

    In a group each rank holds a part of the vectors and has rollouts of its own. All ranks call the methods
    at the same time; the refresh policy sees the rollouts of all, so that it decides the same on each, and
    `encode` is called on each with the same texts (see `searchr3.sharing`).

    Args:
        documents: document id → text, in the order of the rows; texts are looked up when they are encoded.
        encode: texts → (n, d) float32 vectors under the policy as it is at the time of the call.
        policy: which documents to encode again; it belongs to this environment alone.
        candidates: K, how many documents besides the relevant ones a rollout is ranked among.
        temperature: of the soft nDCG, relative to the spread of the K scores; 0 gives nDCG.
        vectors: (m, d) vectors of all documents, if they are known already; else they are encoded at the
            first use.
        step: the policy step that encoded `vectors`.
        dtype: of the stored vectors, "float32" or "float16".
        folder: where the file of vectors lies that are too many for the memory, see `VectorStore`.
        group: the processes that share the corpus.
        lengths: of the documents in tokens, in the order of the rows; default: all alike.

    Raises:
        DataError: there is no document.
        ValueError: `candidates` < 1 or `temperature` < 0, or the shape of `vectors` does not fit.
    """

    def __init__(
        self,
        documents: Mapping[str, str],
        encode: Encode,
        policy: RefreshPolicy,
        candidates: int = 100,
        temperature: float = 0.2,
        vectors: np.ndarray | None = None,
        step: int = 0,
        dtype: str = "float32",
        folder: str | Path | None = None,
        group: Group = ALONE,
        lengths: Sequence[int] | np.ndarray | None = None,
    ) -> None:
        if not documents:
            raise DataError("the corpus holds no document; nothing can be ranked")
        if candidates < 1 or temperature < 0:
            raise ValueError(
                f"candidates is {candidates}, at least 1; temperature is {temperature}, at least 0"
            )
        self.ids, self.documents = list(documents), documents
        self.encode, self.policy = encode, policy
        self.candidates, self.temperature = candidates, temperature
        self.group = group
        self._lengths = np.ones(len(documents)) if lengths is None else np.asarray(lengths, dtype=np.float64)
        self._settings: dict[str, Any] = {"dtype": dtype, "folder": folder, "group": group}
        self._store = None if vectors is None else VectorStore(self.ids, vectors, step, **self._settings)
        self._row_of = {document: row for row, document in enumerate(self.ids)}

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def store(self) -> VectorStore:
        """The vectors. Encodes the whole corpus, as of step 0, if nothing has yet."""
        return self._encode_all(0) if self._store is None else self._store

    def rows_of(self, ids: Sequence[str]) -> np.ndarray:
        """Rows of the documents `ids`, int64.

        Raises:
            DataError: an id is not in the corpus.
        """
        try:
            return np.array([self._row_of[document] for document in ids], dtype=np.int64)
        except KeyError as error:
            raise DataError(
                f"document {error.args[0]!r} is not in the corpus; add it or drop the judgements that name it"
            ) from None

    def share_of_tokens(self, rows: np.ndarray) -> float:
        """The tokens of the documents `rows` over those of the corpus."""
        return float(self._lengths[rows].sum() / self._lengths.sum())

    def refresh(self, vectors: np.ndarray, relevant: Relevant, step: int) -> RefreshReport:
        """Encode again what the policy asks for, before the rollouts are scored.

        Args:
            vectors: (n, d) of the rollouts, in a group of this rank's.
            relevant: for each of them, document id → grade; grades above 0 are relevant.
            step: the policy step that `encode` stands for now.

        Raises:
            DataError: a relevant document is not in the corpus, or a rollout has none.
            SearchR3Error: a vector holds NaN or infinity.
        """
        started = time.perf_counter()
        batch = gathered(self._batch(vectors, relevant), self.group)
        done: list[np.ndarray] = []
        cosines: list[np.ndarray] = []
        if self._store is None:
            self._encode_all(step)
            done.append(np.arange(len(self)))
        store = self.store
        for wanted in self.policy.rows(store, batch, step):
            wanted = self.group.gather(wanted)[0]  # ranks on unlike machines may round differently
            for rows in _chunks(wanted):
                old, new = store.take(rows), self.encoded(rows)
                cosines.append(cosine(old, new))
                store.update(rows, new, step)
                done.append(rows)
        rows = np.concatenate(done) if done else np.empty(0, dtype=np.int64)
        return RefreshReport(
            rows=rows,
            documents=len(rows),
            seconds=time.perf_counter() - started,
            share_reencoded=len(rows) / len(self),
            share_tokens=self.share_of_tokens(rows),
            mean_age=float(store.staleness(step).mean()),
            drift=float(1 - np.concatenate(cosines).mean()) if cosines else None,
            policy=self.policy.metrics(),
        )

    def score(self, vectors: np.ndarray, relevant: Relevant) -> Scores:
        """Reward and rank of each rollout by the stored vectors; arguments and errors as in `refresh`."""
        return score_rollouts(self.store, self._batch(vectors, relevant), self.candidates, self.temperature)

    def state_dict(self) -> State:
        """What a run needs to go on: arrays (not copied) and JSON values. Empty before the first encoding.

        In a group each rank gets all vectors.
        """
        return self._state(everywhere=True)

    def load_state_dict(self, state: State) -> None:
        """Take over what `state_dict` returned.

        Raises:
            DataError: the state is of another corpus, or of a policy with other settings.
        """
        stored = unnested("store", state)
        if stored and stored.get("ids", self.ids) != self.ids:
            raise DataError(
                "the checkpoint's environment holds other documents than this corpus; resume on the same data"
            )
        if (kind := state.get("kind", self._kind)) != self._kind:
            raise DataError(
                f"the checkpoint's environment was refreshed by {kind}, this one is by {self._kind}; "
                "resume with the same policy"
            )
        self.policy.load_state_dict(unnested("policy", state))
        self._store = VectorStore.from_state(stored, **self._settings) if stored else None

    def save(self, folder: str | Path) -> None:
        """Write the state to `folder`, whole or not at all; in a group the first rank does.

        It may be loaded in any number of processes.
        """
        save_state(folder, self._state(everywhere=False), self.group)

    def load(self, folder: str | Path) -> None:
        """Take over what `save` wrote.

        Raises:
            DataError: a file is missing or damaged, or of another corpus.
        """
        self.load_state_dict(load_state(folder, in_parts=["store.vectors"]))

    def _state(self, everywhere: bool) -> State:
        if self._store is None:
            return {}
        stored = self._store.state_dict(everywhere)
        return {
            "kind": self._kind,
            **nested("store", stored),
            **nested("policy", self.policy.state_dict()),
        }

    @property
    def _kind(self) -> str:
        return type(self.policy).__name__

    def _encode_all(self, step: int) -> VectorStore:
        store = None
        for rows in _chunks(np.arange(len(self))):
            vectors = self.encoded(rows)
            if store is None:
                nothing = np.broadcast_to(np.float32(0), (len(self), vectors.shape[1]))
                store = VectorStore(self.ids, nothing, step, **self._settings)
            store.update(rows, vectors, step)
        assert store is not None  # there is a document
        self._store = store
        return store

    def encoded(self, rows: np.ndarray) -> np.ndarray:
        """Fresh vectors of `rows`, (len(rows), d), some at a time; the store is left alone."""
        parts = []
        for chunk in _chunks(rows):
            vectors = self.encode([self.documents[self.ids[row]] for row in chunk])
            if vectors.ndim != 2 or len(vectors) != len(chunk):
                raise ValueError(
                    f"encode returned {vectors.shape} for {len(chunk)} texts, expected ({len(chunk)}, d)"
                )
            parts.append(vectors)
        return np.concatenate(parts)

    def _batch(self, vectors: np.ndarray, relevant: Relevant) -> RolloutBatch:
        vectors = np.asarray(vectors, dtype=np.float32)
        if not len(relevant) or vectors.ndim != 2 or len(vectors) != len(relevant):
            raise ValueError(
                f"{len(relevant)} rollouts need vectors ({len(relevant)}, d) and n ≥ 1, found {vectors.shape}"
            )
        if not np.isfinite(vectors).all():
            raise SearchR3Error(
                "a rollout's vector holds NaN or infinity: the model has diverged; lower the learning rate"
            )
        return RolloutBatch(vectors, [self._judged(grades, i) for i, grades in enumerate(relevant)])

    def _judged(self, grades: Mapping[str, float], place: int) -> Judged:
        positive = {document: grade for document, grade in grades.items() if grade > 0}
        if not positive:
            raise DataError(
                f"rollout {place} of the batch has no relevant document; leave its query out of the split"
            )
        return Judged(self.rows_of(list(positive)), np.array(list(positive.values()), dtype=np.float32))


def _chunks(rows: np.ndarray) -> Iterator[np.ndarray]:
    for start in range(0, len(rows), _CHUNK):
        yield rows[start : start + _CHUNK]
