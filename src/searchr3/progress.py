"""What a run shows while it works: the phase, the step, the newest figures, the time left."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

SHOWN = {
    "loss": "loss",
    "info_nce": "contrast",
    "reward_ndcg": "reward",
    "thinking_tokens": "thinking",
    "eval_ndcg@10": "dev nDCG@10",
}
"""Figures of a log that are worth a place on the line, and what they are called there."""
_QUIET = 30.0  # seconds between lines where nobody watches a bar, and between beats


class Screen:
    """A live line on a terminal; in a file or a pipe a plain line every half minute; silent nothing.

    Attributes:
        beat: called with the news, every half minute at most; None calls nothing.
    """

    beat: Callable[[], None] | None = None

    def __init__(self, console: Console | None = None, silent: bool = False):
        self.console = console or Console(stderr=True, quiet=silent)
        self.live = self.console.is_terminal
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self.console,
            transient=True,
            disable=not self.live,
            speed_estimate_period=300,  # steps of many seconds
        )
        self._task: Any = None
        self._name = ""
        self._figures: dict[str, float] = {}
        self._told = self._beaten = 0.0
        self._started = time.perf_counter()

    def __enter__(self) -> Screen:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def phase(self, name: str, doing: str) -> None:
        """A new phase begins."""
        minutes = (time.perf_counter() - self._started) / 60
        self.console.print(f"[dim]{minutes:5.1f} min[/dim]  [bold]{name}[/bold]  {doing}", highlight=False)
        self._name, self._figures, self._told = name, {}, time.perf_counter()
        self._replace(name, None)

    def work(self, what: str, done: int, total: int) -> None:
        """Part of a phase that counts, such as encoding; the form of `evaluation.Progress`."""
        self._update(f"{self._name}: {what}", done, total)

    def training(self, news: dict[str, Any]) -> None:
        """A step, a log line or an alarm of a trainer; the form of `training.Tell`."""
        if "alarm" in news:
            line = f"           alarm: {news['alarm']}"
            self.console.print(line, style="red", highlight=False, markup=False)
        fresh = {SHOWN[key]: float(value) for key, value in news.items() if key in SHOWN and _number(value)}
        self._figures |= fresh
        self._update(str(news["stage"]), int(news["step"]), int(news["steps"]))

    def finish(self, tables: Sequence[Table], lines: Sequence[str]) -> None:
        """The last words, on standard output."""
        self._bar.stop()
        out = Console(width=None if sys.stdout.isatty() else 160)
        for table in tables:
            out.print(table)
        for line in lines:
            out.print(line, highlight=False, markup=False)

    def _update(self, what: str, done: int, total: int) -> None:
        figures = "  ".join(f"{name} {value:.3g}" for name, value in self._figures.items())
        if self._task is None or self._bar.tasks[-1].description != what:
            self._replace(what, total)
        self._bar.update(self._task, completed=done, total=total, figures=figures)
        if self.beat and time.perf_counter() - self._beaten > _QUIET:
            self._beaten = time.perf_counter()
            self.beat()
        if not self.live and time.perf_counter() - self._told > _QUIET:
            self._told = time.perf_counter()
            seconds = self._bar.tasks[-1].time_remaining
            left = "" if seconds is None else f"  {timedelta(seconds=int(seconds))} left"
            line = f"           {what} {done}/{total}{left}  {figures}"
            self.console.print(line.rstrip(), highlight=False, markup=False)

    def _replace(self, what: str, total: int | None) -> None:
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(what, total=total, figures="")


def hush_transformers() -> None:
    """Turn off the bars for loading and saving weights, which would tear ours; downloads keep theirs."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, enable_progress_bars
    from transformers.utils.logging import disable_progress_bar

    quiet = are_progress_bars_disabled()
    disable_progress_bar()
    if not quiet:
        enable_progress_bars()


def _number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True
