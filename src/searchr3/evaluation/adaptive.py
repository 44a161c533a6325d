"""When does thinking pay? Choosing the rule of `reasoning="auto"` on dev, and measuring what it gives.

Queries think in falling order of the doubt of their direct ranking. What the first few of them bring, and
cost, is the frontier; the rule is a point on it. Choosing on a few hundred queries is a noisy affair: the
gain of a thought is mostly 0 and now and then large, either way, so the first point that happens to keep
enough of the gain keeps far less on other queries. Three things are done about it: the signals are few; the
signal is chosen by the mean over its whole frontier, not at a point; and the threshold is where *all* longer
thinking keeps enough too. What is left of the luck is told: `held_out` is measured on queries that did not
choose.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from searchr3.adaptive import DEPTH, SIGNALS, Adaptive, uncertainty
from searchr3.evaluation.eligibility import Eligibility
from searchr3.evaluation.results import Run
from searchr3.evaluation.statistics import Difference, paired_difference
from searchr3.evaluation.tables import table_of
from searchr3.ranking import METRICS

if TYPE_CHECKING:
    from rich.table import Table

    from searchr3.evaluation.bench import Bench, Embedder

FOLDS = 5
_SHOWN = 20  # steps of a saved frontier
_GAIN = 1e-9  # up to here a mean gain is rounding


class Point(NamedTuple):
    """What thinking gives when all queries at least as unsure as `threshold` think (None: none does)."""

    threshold: float | None
    share: float  # of the queries that think
    ndcg: float  # mean nDCG@10
    tokens: float  # mean thinking tokens a query, 0 where it does not think


@dataclass(frozen=True)
class Measured:
    """Queries measured both ways: n of them.

    Attributes:
        scores: (n, k) best cosines of the direct rankings, falling.
        direct, reasoned: (n,) nDCG@10.
        tokens: (n,) thinking tokens of the reasoned form.
    """

    scores: np.ndarray
    direct: np.ndarray
    reasoned: np.ndarray
    tokens: np.ndarray

    @classmethod
    def of(cls, direct: Run, reasoned: Run) -> Measured:
        """Two runs over the same queries."""
        ids = list(direct.values["ndcg@10"])
        return cls(
            top_scores(direct, ids),
            np.array([direct.values["ndcg@10"][key] for key in ids]),
            np.array([reasoned.values["ndcg@10"][key] for key in ids]),
            np.array([len(reasoned.thoughts[key].token_ids) for key in ids], dtype=float),
        )

    def at(self, rows: np.ndarray) -> Measured:
        """Some of the queries."""
        return Measured(*(part[rows] for part in (self.scores, self.direct, self.reasoned, self.tokens)))

    def shares(self, thinks: np.ndarray) -> tuple[float, float]:
        """Shares of thinking's gain that is kept, and of its tokens that are spent; (n,) bool thinks.

        The first is NaN where thinking gains nothing.
        """
        gain = self.reasoned - self.direct
        kept = gain[thinks].sum() / gain.sum() if gain.sum() > _GAIN else float("nan")
        return float(kept), float(self.tokens[thinks].sum() / max(1.0, self.tokens.sum()))


def top_scores(run: Run, ids: Sequence[str]) -> np.ndarray:
    """(n, k) scores of the best hits of each query, falling; k is `DEPTH`, or all documents of a few.

    A query that may find fewer documents than others repeats the score of its last.
    """
    found = [[hit.score for hit in run.hits.get(key, ())[:DEPTH]] or [0.0] for key in ids]
    most = max(map(len, found))
    return np.array([scores + scores[-1:] * (most - len(scores)) for scores in found])


def frontier(measured: Measured, signal: str) -> list[Point]:
    """From no thinking to all, in falling order of doubt; queries of equal doubt think together.

    Thresholds lie halfway between two queries' doubts; that of the last point is 0.
    """
    doubt = uncertainty(measured.scores, signal)
    order = np.argsort(-doubt, kind="stable")
    doubt, n = doubt[order], len(doubt)
    gains = np.cumsum((measured.reasoned - measured.direct)[order]) / n
    tokens = np.cumsum(measured.tokens[order]) / n
    direct = float(measured.direct.mean())
    ends = [*np.flatnonzero(doubt[:-1] > doubt[1:]).tolist(), n - 1]
    points = [Point(None, 0.0, direct, 0.0)]
    for end in ends:
        threshold = float(doubt[end] + doubt[end + 1]) / 2 if end < n - 1 else 0.0
        points.append(Point(threshold, (end + 1) / n, direct + float(gains[end]), float(tokens[end])))
    return points


def bulge(points: Sequence[Point]) -> float:
    """How far the frontier lies above that of thinking about queries drawn at random: mean nDCG@10 over it.

    The area between the curve nDCG@10 over tokens and the straight line from its start to its end, with the
    tokens of thinking always as 1.
    """
    if points[-1].tokens == 0:
        return 0.0
    spent = np.array([point.tokens for point in points]) / points[-1].tokens
    ndcg = np.array([point.ndcg for point in points])
    straight = ndcg[0] + spent * (ndcg[-1] - ndcg[0])
    return float(np.trapezoid(ndcg - straight, spent))


def least_that_keeps(points: Sequence[Point], keep: float) -> Point:
    """The point of least thinking from which on every point keeps `keep` of the gain of the last one.

    The first point, no thinking, where there is no gain.
    """
    start, gain = points[0].ndcg, points[-1].ndcg - points[0].ndcg
    if gain <= _GAIN:
        return points[0]
    short = [place for place, point in enumerate(points) if point.ndcg - start < keep * gain - _GAIN]
    return points[short[-1] + 1 if short else 0]


@dataclass(frozen=True)
class Choice:
    """A rule, and what it does on the queries that chose it.

    Attributes:
        frontiers: signal → its frontier.
        point: that of the rule.
        gain: of thinking always over never, with interval and p.
        gain_share: of that gain, kept; NaN where there is none.
        token_share: of the tokens of thinking always, spent.
        held_out: the same two shares on queries that did not choose: each fifth of the queries is decided
            by the rule that the others choose. Both NaN where there is no gain, or too few queries.
    """

    rule: Adaptive
    frontiers: dict[str, list[Point]]
    point: Point
    gain: Difference
    gain_share: float
    token_share: float
    held_out: tuple[float, float]

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        point = self.point._asdict()
        del point["threshold"]
        return {
            "signal": self.rule.signal,
            "threshold": self.rule.threshold,
            "chosen_on": self.rule.chosen_on,
            **point,
            "gain": self.gain.mean,
            "gain_ci95": [*self.gain.ci95],
            "gain_p": self.gain.p,
            "gain_share": self.gain_share,
            "token_share": self.token_share,
            "held_out": dict(zip(("gain_share", "token_share"), self.held_out, strict=True)),
            "frontiers": {
                name: [point._asdict() for point in points] for name, points in self.frontiers.items()
            },
        }


def choose(measured: Measured, keep: float = 0.95, chosen_on: str | None = None) -> Choice:
    """The signal whose frontier lies highest, and the least thinking that keeps `keep` of the gain, and
    from which on more thinking keeps it too. No thinking at all where it does not gain on these queries.

    Raises:
        ValueError: `keep` is not in (0, 1], or there is no query.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep must be above 0 and at most 1, got {keep}")
    rule, frontiers, point = _rule(measured, keep)
    gain_share, token_share = measured.shares(rule.thinks(measured.scores))
    return Choice(
        Adaptive(rule.signal, rule.threshold, chosen_on),
        frontiers,
        point,
        paired_difference(measured.reasoned, measured.direct),
        gain_share,
        token_share,
        _held_out(measured, keep),
    )


def _rule(measured: Measured, keep: float) -> tuple[Adaptive, dict[str, list[Point]], Point]:
    frontiers = {signal: frontier(measured, signal) for signal in SIGNALS}
    signal = max(SIGNALS, key=lambda name: bulge(frontiers[name]))
    point = least_that_keeps(frontiers[signal], keep)
    return Adaptive(signal, point.threshold), frontiers, point


def _held_out(measured: Measured, keep: float) -> tuple[float, float]:
    count = len(measured.direct)
    if count < 2 * FOLDS:
        return float("nan"), float("nan")
    fold = np.random.default_rng(0).permutation(count) % FOLDS
    thinks = np.zeros(count, dtype=bool)
    for own in range(FOLDS):
        rule, _, _ = _rule(measured.at(fold != own), keep)
        thinks[fold == own] = rule.thinks(measured.scores[fold == own])
    kept, spent = measured.shares(thinks)
    return kept, float("nan") if np.isnan(kept) else spent


def auto_run(
    bench: Bench,
    model: Embedder,
    rule: Adaptive,
    direct: Run,
    document_vectors: np.ndarray,
    max_new_tokens: int,
    reasoned: Run | None = None,
) -> Run:
    """The run "auto": each query's reasoned ranking where its direct one is unsure, else that.

    Args:
        direct: of all queries of the bench.
        reasoned: of all of them, where it is measured anyway: nothing is thought or encoded again. The run's
            seconds are then direct's, and of reasoned's the share that its thinking tokens are.
    """
    thinks = rule.thinks(top_scores(direct, bench.ids))
    unsure = [key for key, think in zip(bench.ids, thinks, strict=True) if think]
    share = 1.0
    if reasoned is None:
        if unsure:
            reasoned = _only(bench, unsure).reasoned(model, document_vectors, max_new_tokens)
    else:
        tokens = {key: len(thought.token_ids) for key, thought in reasoned.thoughts.items()}
        share = sum(tokens[key] for key in unsure) / max(1, sum(tokens.values()))
    sources = dict.fromkeys(bench.ids, direct) | (dict.fromkeys(unsure, reasoned) if reasoned else {})
    when = "never" if rule.threshold is None else f"where {rule.signal} ≥ {rule.threshold:.4g}"
    return Run(
        "auto",
        {metric: {key: run.values[metric][key] for key, run in sources.items()} for metric in METRICS},
        {key: run.hits[key] for key, run in sources.items()},
        direct.seconds + share * (reasoned.seconds if reasoned else 0.0),
        thoughts={key: reasoned.thoughts[key] for key in unsure} if reasoned else {},
        thinking_seconds=share * (reasoned.thinking_seconds or 0.0) if reasoned else None,
        documents_seconds=direct.documents_seconds,
        setting=f"thinks {when}; chosen on {rule.chosen_on or 'what is not known'}",
    )


def _only(bench: Bench, ids: Sequence[str]) -> Bench:
    """The bench with some of its queries."""
    part = copy.copy(bench)
    texts = dict(zip(bench.ids, bench.queries, strict=True))
    part.ids, part.queries = list(ids), [texts[key] for key in ids]
    part.qrels = {key: bench.qrels[key] for key in ids}
    part.eligibility = Eligibility(bench.dataset.eligible, part.ids, bench.document_ids)
    return part


def summary(rule: Adaptive, auto: Run, direct: Run, reasoned: Run | None) -> dict[str, Any]:
    """What `results.json` holds under "adaptive".

    The shares are of always thinking, null where that was not measured or gains nothing. Where it was there
    is the signal's `frontier` on these queries: what other thresholds would have given.
    """
    ids = list(direct.values["ndcg@10"])
    thinks = np.array([key in auto.thoughts for key in ids])
    kept, spent, others = None, None, dict[str, Any]()
    if reasoned is not None:
        measured = Measured.of(direct, reasoned)
        kept, spent = measured.shares(thinks)
        points = thinned(frontier(measured, rule.signal), _SHOWN)
        others = {"frontier": [{"ndcg@10": p.ndcg, "thinking_tokens_mean": p.tokens} for p in points]}
    return {
        "signal": rule.signal,
        "threshold": rule.threshold,
        "chosen_on": rule.chosen_on,
        "ndcg@10": float(np.mean(list(auto.values["ndcg@10"].values()))),
        "thinking_share": float(thinks.mean()),
        "thinking_tokens_mean": auto.thinking_tokens_mean,
        "gain_share": None if kept is None or np.isnan(kept) else kept,
        "token_share": spent,
        **others,
    }


def thinned(points: Sequence[Point], steps: int) -> list[Point]:
    """About `steps` steps of a frontier, evenly by the share of the queries that think; both ends stay."""
    shares = np.array([point.share for point in points])
    rows = {int(np.abs(shares - share).argmin()) for share in np.linspace(0, 1, steps + 1)}
    return [points[row] for row in sorted(rows)]


def choice_table(choice: Choice, title: str, steps: int = 10) -> Table:
    """The chosen signal's frontier in about `steps` rows, and the rule's own; the terminal's width."""
    points = {*thinned(choice.frontiers[choice.rule.signal], steps), choice.point}
    table = table_of(title, (), ("think", "ndcg@10", "tokens", f"{choice.rule.signal} from", ""))
    for point in sorted(points, key=lambda point: point.share):
        table.add_row(
            f"{point.share:.0%}",
            f"{point.ndcg:.3f}",
            f"{point.tokens:.1f}",
            "–" if point.threshold is None else f"{point.threshold:.4f}",
            "chosen" if point == choice.point else "",
        )
    return table


def choice_lines(choice: Choice) -> list[str]:
    """What the table does not say: how sure the gain is, and what the rule keeps on other queries."""
    gain = choice.gain
    lines = [
        f"thinking always: {gain.mean:+.3f} ({gain.ci95[0]:+.3f} to {gain.ci95[1]:+.3f}) nDCG@10"
        + ("" if gain.significant else "; too few queries to be sure of it")
    ]
    if choice.rule.threshold is None:
        return [*lines, "the rule: never think, for thinking does not gain on these queries"]
    lines.append(
        f"the rule: keeps {choice.gain_share:.0%} of that gain at {choice.token_share:.0%} of the tokens"
    )
    kept, spent = choice.held_out
    if not np.isnan(kept):
        lines.append(f"on queries that did not choose: {kept:.0%} at {spent:.0%}")
    return lines
