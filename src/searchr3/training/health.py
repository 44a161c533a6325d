"""The health monitor of stage 2: tells when a policy stops thinking, and what may help.

A policy that is rewarded for ranking may find that the best thought is none, or one and the same phrase for
every query. The reward does not fall then, so it must be looked for: in the share of rollouts that say the
embed token, in what thinking does to the reward, in the length and the variety of thoughts. Pure Python: it
is fed figures and keeps their moving means.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from pydantic import Field

from searchr3.training.section import Count, Section, Share, Weight

_ROUNDING = 1e-9


class HealthRecipe(Section):
    window: Count = Field(
        10, description="steps in the moving means that are judged; the first so many are what is normal"
    )
    emission: Share | None = Field(
        0.8, description="alarm when fewer of the rollouts say the embed token; `null` never, here and below"
    )
    length: Share | None = Field(
        0.5, description="alarm when thoughts shrink below this share of their length in the first window"
    )
    moved: Weight | None = Field(
        0.01,
        description="alarm when thinking moves the reward, up or down, by less than this from that of the "
        "direct vector",
    )
    gain: float | None = Field(
        None,
        description="alarm when the reward with thinking minus that without is below this; off, for a small "
        "model's thoughts may cost a little from the start and still get better",
    )
    gain_fall: Weight | None = Field(
        0.1, description="alarm when that gain falls by more than this below its mean in the first window"
    )
    distinct: Share | None = Field(
        0.5, description="alarm when less than this share of a step's rollouts differ from each other"
    )
    useful: Share | None = Field(
        0.2,
        description="alarm when the rewards of fewer queries tell their rollouts apart (by 0.01 or more)",
    )
    stop: bool = Field(False, description="end the stage at the first alarm; the best checkpoint remains")


@dataclass(frozen=True)
class Alarm:
    """What was found.

    Attributes:
        step: optimizer step, from 1, as in the curve.
        name: the key of `HealthRecipe` that it belongs to.
        value: moving mean of the figure.
        threshold: what it is below.
        message: one line that says what is wrong and what may help.
    """

    step: int
    name: str
    value: float
    threshold: float
    message: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class _Check:
    """One cause of alarm: the figure's moving mean is below `limit(setting, mean of the first window)`."""

    name: str
    figure: str
    limit: Callable[[float, float], float]
    says: Callable[[float], str]
    helps: str


def _setting(setting: float, first: float) -> float:
    return setting


_CHECKS = (
    _Check(
        "emission",
        "emission_rate",
        _setting,
        lambda value: f"only {_percent(value)} of the rollouts say the embed token",
        "raise stage2.reward.format, or lower stage2.learning_rate",
    ),
    _Check(
        "length",
        "thinking_tokens",
        lambda setting, first: setting * first,
        lambda value: f"thoughts have shrunk to {value:.1f} tokens",
        "set stage2.beta, raise stage2.reward.least_tokens, or lower stage2.learning_rate",
    ),
    _Check(
        "moved",
        "reward_moved",
        _setting,
        lambda value: f"thinking moves the reward by {value:.4f} only",
        "read episodes.jsonl: do thoughts say anything? Better traces in stage 1, or harder queries",
    ),
    _Check(
        "gain",
        "reward_gain",
        _setting,
        lambda value: f"the reward with thinking minus that without is {value:+.3f}",
        "read episodes.jsonl; more steps of stage 1 on own thoughts (stage1.own_samples), or better traces",
    ),
    _Check(
        "gain_fall",
        "reward_gain",
        lambda setting, first: first - setting,
        lambda value: f"the reward with thinking minus that without has fallen to {value:+.3f}",
        "lower stage2.learning_rate (or stage2.reward.length, if set), or set stage2.beta",
    ),
    _Check(
        "distinct",
        "distinct_rollouts",
        _setting,
        lambda value: f"only {_percent(value)} of the rollouts differ from each other",
        "set stage2.beta, raise stage2.sampling_temperature, or lower stage2.learning_rate",
    ),
    _Check(
        "useful",
        "groups_useful",
        _setting,
        lambda value: f"the rewards of only {_percent(value)} of the queries tell their rollouts apart",
        "the curve's zero_variance_… say why: same thoughts, saturated, or hopeless queries",
    ),
)


_QUIET = {"length", "moved", "distinct", "useful"}
"""What a policy that thinks less may rightly bring about. That it goes too far shows in `gain_fall`."""


class HealthMonitor:
    """Raises each alarm once, until the figure has been within its limit for a whole window again.

    A figure that a step lacks, or that is not finite, is as if the step had not been.

    Args:
        quiet: thinking costs something, so that the policy is to fall silent where it does not pay: the
            alarms that silence itself would raise are off.
    """

    def __init__(self, settings: HealthRecipe, quiet: bool = False):
        off = dict.fromkeys(_QUIET) if quiet else {}
        self.settings = settings.model_copy(update=off)
        self.alarms: list[Alarm] = []
        self._recent: dict[str, deque[float]] = {}
        self._first: dict[str, float] = {}
        self._calm: dict[str, int] = {}  # alarm that is on → steps within the limit since

    @property
    def active(self) -> list[str]:
        """Names of the alarms that are on."""
        return list(self._calm)

    def observe(self, step: int, figures: Mapping[str, float]) -> list[Alarm]:
        """Take in the figures of a step; returns the alarms that it raises.

        Args:
            step: from 1.
            figures: of `searchr3.training.groups`; others are passed over.
        """
        window = self.settings.window
        raised = []
        for figure in dict.fromkeys(check.figure for check in _CHECKS):
            value = figures.get(figure)
            if value is None or not math.isfinite(value):
                continue
            recent = self._recent.setdefault(figure, deque(maxlen=window))
            recent.append(float(value))
            if len(recent) < window:
                continue
            mean = fmean(recent)
            first = self._first.setdefault(figure, mean)
            for check in _CHECKS:
                setting = getattr(self.settings, check.name)
                if check.figure == figure and setting is not None:
                    raised += self._judge(check, step, mean, check.limit(setting, first))
        self.alarms += raised
        return raised

    def _judge(self, check: _Check, step: int, mean: float, limit: float) -> list[Alarm]:
        if mean >= limit - _ROUNDING:
            if check.name in self._calm:
                self._calm[check.name] += 1
                if self._calm[check.name] >= self.settings.window:
                    del self._calm[check.name]
            return []
        known = check.name in self._calm
        self._calm[check.name] = 0
        message = f"{check.says(mean)} (limit {limit:.3g}); {check.helps}"
        return [] if known else [Alarm(step, check.name, mean, limit, message)]

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to go on, as JSON values."""
        return {
            "recent": {figure: list(values) for figure, values in self._recent.items()},
            "first": dict(self._first),
            "calm": dict(self._calm),
            "alarms": [alarm.as_dict() for alarm in self.alarms],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        window = self.settings.window
        self._recent = {figure: deque(values, window) for figure, values in state["recent"].items()}
        self._first, self._calm = dict(state["first"]), dict(state["calm"])
        self.alarms = [Alarm(**alarm) for alarm in state["alarms"]]


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
