"""A small map from stale to fresh vectors, fitted on what was encoded again and applied to everything else.

The idea is that of the corrector networks of Monath et al. (2024, arXiv 2409.01890). Ours is linear, so that
it is fitted exactly, and carries on: a policy in training moves on as it moved before.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from searchr3.environment.policies import RefreshPolicy, RolloutBatch
from searchr3.environment.state import State, nested, unnested
from searchr3.environment.store import VectorStore

RIDGES = 10.0 ** np.arange(-3, 4.5, 0.5)
CARRIES = (0.0, 0.5, 0.8, 0.9, 1.0)


class Corrector:
    """Predicts how far each vector has moved since it was last estimated, from those encoded again.

        v̂ = v + A [v, 1],   A = carry · A' + B,
        B = argmin Σ_j ‖x_j − v_j − (carry · A' + B) [v_j, 1]‖² + λ ‖B‖²

    over the rows j that were encoded, `v_j` before and `x_j` after; `A'` is the map of the step before. The
    ridge λ and the carry are those with the least squared error when each row is left out in turn, which
    for a ridge needs no second fit (Allen's PRESS). No correction at all is among the choices. Corrected
    vectors keep their length.

    Attributes:
        ridge, carry: as chosen last; an infinite ridge learns nothing.
        error: mean squared error of the last fit, each row left out in turn.
    """

    def __init__(self) -> None:
        self._map: np.ndarray | None = None  # A of the last fit, (d + 1, d)
        self._carried: np.ndarray | None = None  # A of the whole step
        self._step: int | None = None
        self.ridge, self.carry, self.error = np.inf, 0.0, np.nan

    def fit(self, old: np.ndarray, new: np.ndarray, step: int | None = None) -> None:
        """Learn from vectors before and after, (r, d) each.

        Nothing is carried over within a `step`: what moved since the step before has been corrected then.
        """
        again = step is not None and step == self._step
        before = None if again else self._carried
        with_one = _with_one(old.astype(np.float64))
        moves = new.astype(np.float64) - old
        left, sizes, right = np.linalg.svd(with_one, full_matrices=False)
        squares = sizes**2
        best = np.inf
        for carry in (0.0,) if before is None else CARRIES:
            rest = moves if before is None else moves - carry * (with_one @ before)
            turned = left.T @ rest
            for ridge in RIDGES:
                kept = squares / (squares + ridge)
                leverage = left**2 @ kept
                error = float(
                    (((rest - left @ (kept[:, None] * turned)) / (1 - leverage)[:, None]) ** 2).sum()
                )
                if error < best:
                    best, self.ridge, self.carry = error, float(ridge), carry
                    learnt = right.T @ ((sizes / (squares + ridge))[:, None] * turned)
            if (rest**2).sum() <= best:  # nothing is learnt better than anything
                best, self.ridge, self.carry = float((rest**2).sum()), np.inf, carry
                learnt = np.zeros((with_one.shape[1], old.shape[1]))
        self.error = best / len(old)
        self._map = learnt if before is None else self.carry * before + learnt
        self._carried = self._carried + learnt if again and self._carried is not None else self._map
        self._step = step

    def __call__(self, rows: np.ndarray, vectors: np.ndarray) -> np.ndarray:
        """Corrected vectors, (n, d) float32; `rows` is not looked at."""
        if self._map is None:
            return vectors
        moved = vectors + _with_one(vectors) @ self._map.astype(np.float32)
        lengths, wanted = (np.linalg.norm(side, axis=1, keepdims=True) for side in (moved, vectors))
        return moved * (wanted / np.maximum(lengths, 1e-12))

    def state_dict(self) -> State:
        return {} if self._carried is None else {"map": self._carried, "step": self._step}

    def load_state_dict(self, state: State) -> None:
        self._map = None
        self._carried, self._step = (state["map"].copy(), state["step"]) if "map" in state else (None, None)


class Corrected(RefreshPolicy):
    """Another policy's rows are encoded; all other vectors are corrected by what was learnt from these.

    Args:
        inner: names the rows; a uniform draw (`Random`) shows the corrector the whole corpus.
    """

    def __init__(self, inner: RefreshPolicy) -> None:
        self.inner, self.corrector = inner, Corrector()

    def rows(self, store: VectorStore, batch: RolloutBatch, step: int) -> Iterator[np.ndarray]:
        pairs = []
        for rows in self.inner.rows(store, batch, step):
            old = store.take(rows).copy()
            yield rows
            pairs.append((old, store.take(rows)))
        if sum(len(old) for old, _ in pairs) > 1:
            before, after = (np.concatenate(side) for side in zip(*pairs, strict=True))
            self.corrector.fit(before, after, step)
            store.transform(self.corrector, skip=np.flatnonzero(store.version == step))

    def metrics(self) -> dict[str, float]:
        return self.inner.metrics()

    def state_dict(self) -> State:
        return {
            **nested("inner", self.inner.state_dict()),
            **nested("corrector", self.corrector.state_dict()),
        }

    def load_state_dict(self, state: State) -> None:
        self.inner.load_state_dict(unnested("inner", state))
        self.corrector.load_state_dict(unnested("corrector", state))


def _with_one(vectors: np.ndarray) -> np.ndarray:
    return np.concatenate([vectors, np.ones((len(vectors), 1), dtype=vectors.dtype)], axis=1)
