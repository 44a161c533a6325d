"""What a run shows while it works: lines where nobody watches, a bar on a terminal."""

import io
import re

import pytest
from rich.console import Console
from rich.table import Table

from searchr3 import progress
from searchr3.progress import Screen


def screen(terminal: bool) -> tuple[Screen, io.StringIO]:
    out = io.StringIO()
    return Screen(Console(file=out, force_terminal=terminal, width=140)), out


def test_a_file_gets_a_line_a_phase_and_now_and_then_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    shown, out = screen(terminal=False)
    with shown:
        shown.phase("stage1", "preparing")
        shown.training({"stage": "stage1", "step": 1, "steps": 9, "loss": 2.5})
        monkeypatch.setattr(progress, "_QUIET", 0.0)
        shown.training({"stage": "stage1", "step": 2, "steps": 9, "eval_ndcg@10": 0.25, "epoch": 1.0})
        shown.work("documents", 512, 1024)

    first, second, third = out.getvalue().splitlines()
    assert first.endswith("stage1  preparing")
    assert "stage1 2/9" in second
    assert "loss 2.5  dev nDCG@10 0.25" in second
    assert "epoch" not in second
    assert "stage1: documents 512/1024" in third


def test_a_file_is_told_the_time_left_too(monkeypatch: pytest.MonkeyPatch) -> None:
    shown, out = screen(terminal=False)
    clock = iter(range(0, 10_000, 60))
    monkeypatch.setattr(shown._bar, "get_time", lambda: float(next(clock)))
    monkeypatch.setattr(progress, "_QUIET", 0.0)
    with shown:
        shown.phase("stage1", "preparing")
        for step in (41, 42, 43):  # as after --resume: steps that are done already tell nothing of the pace
            shown.training({"stage": "stage1", "step": step, "steps": 100})

    assert "left" not in out.getvalue().splitlines()[1]
    left = re.search(r"43/100  (\d+):(\d\d):00 left", out.getvalue())
    assert left and 55 <= int(left[1]) * 60 + int(left[2]) <= 120, out.getvalue()


def test_figures_of_one_phase_are_not_shown_in_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "_QUIET", 0.0)
    shown, out = screen(terminal=False)
    with shown:
        shown.phase("stage1", "preparing")
        shown.training({"stage": "stage1", "step": 1, "steps": 9, "loss": 2.5})
        shown.phase("stage2", "preparing")
        shown.training({"stage": "stage2", "step": 1, "steps": 9, "reward_ndcg": 0.5, "loss": "none"})

    assert out.getvalue().splitlines()[-1].split() == ["stage2", "1/9", "reward", "0.5"]


def test_a_terminal_gets_a_bar_with_step_figures_and_time_left() -> None:
    shown, out = screen(terminal=True)
    with shown:
        shown.phase("stage1", "preparing")
        for step in (1, 2):
            shown.training({"stage": "stage1", "step": step, "steps": 9, "info_nce": 1.25})
        shown._bar.refresh()
        assert [task.description for task in shown._bar.tasks] == ["stage1"]

    text = out.getvalue()
    assert "2/9" in text
    assert "contrast 1.25" in text
    assert "left" in text


def test_the_last_words_go_to_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    shown, out = screen(terminal=False)
    table = Table("run", "ndcg@10")
    table.add_row("direct", "0.5")
    with shown:
        shown.finish([table], ["Try [this] next: searchr3 search"])

    printed = capsys.readouterr().out
    assert "direct" in printed
    assert "Try [this] next: searchr3 search" in printed
    assert out.getvalue() == ""


@pytest.mark.parametrize("terminal", [True, False])
def test_an_alarm_is_shown_at_once(terminal: bool) -> None:
    shown, out = screen(terminal)
    with shown:
        shown.phase("stage2", "preparing")
        shown.training({"stage": "stage2", "step": 3, "steps": 9, "alarm": "only 4 % [of] them; do this"})

    assert "alarm: only 4 % [of] them; do this" in out.getvalue()
