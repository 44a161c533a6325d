"""Checkpoints: whole or not there, and a run that goes on from one is the run that was never interrupted."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor
from transformers import Trainer

from searchr3.dataset import RetrievalDataset
from searchr3.errors import DataError, SearchR3Error
from searchr3.model import SearchR3
from searchr3.training import checkpoints, stage1, stage2
from searchr3.training.checkpoints import (
    HIDDEN,
    WholeCheckpoints,
    is_whole,
    last_checkpoint,
    resume_point,
    rotate,
)
from searchr3.training.dev import DevSet
from searchr3.training.pairs import Pairs
from searchr3.training.recipe import Recipe
from searchr3.training.stage1 import Stage1Trainer, train_stage1
from searchr3.training.stage2 import train_stage2

MakeRecipe = Callable[..., Recipe]
Curve = list[dict[str, float]]
Train = Callable[..., tuple[dict[str, Tensor], Curve, str]]

# The checkpoint before the end lies in the second round through the data, and between two log lines.
DEV = ("data.dev_queries=4", "data.dev_documents=20")
STAGE1 = (
    *("stage1.steps=7", "stage1.evaluate_every=5", "stage1.log_every=3"),
    *("stage1.batch_size=16", "stage1.micro_tokens=300", *DEV),
)
STAGE2 = (
    *("stage2.steps=10", "stage2.evaluate_every=6", "stage2.log_every=4"),
    *("stage2.accumulation=2", "stage2.updates=2", "stage2.contrastive=0.3", *DEV),
)
PLAIN2 = ("stage2.steps=5", "stage2.evaluate_every=3", "stage2.log_every=2", "stage2.beta=0.1", *DEV)
ALLOWED = {"optimizer.pt", "scheduler.pt", "rng_state.pth"}  # the only pickles, the trainer's own


@pytest.fixture
def few(toy: RetrievalDataset) -> RetrievalDataset:
    """`toy` with 5 queries for stage 2."""
    return replace(toy, qrels={**toy.qrels, "stage2": dict(list(toy.split("stage2").items())[:5])})


@pytest.fixture
def train(tiny_model: Path, few: RetrievalDataset, toy_recipe: MakeRecipe, tmp_path: Path) -> Train:
    """Trains a stage in `tmp_path / folder`, or goes on there; returns weights, curve and episodes."""

    def run(stage: str, *overrides: str, folder: str, **more: Any) -> tuple[dict[str, Tensor], Curve, str]:
        torch.manual_seed(99)  # of the process that resumes
        search, recipe = SearchR3(tiny_model, dtype="float32"), toy_recipe(*overrides)
        place, episodes = tmp_path / folder, tmp_path / f"{folder}.jsonl"
        if stage == "stage1":
            curve = train_stage1(search, few, recipe, place, **more)
        else:
            curve = train_stage2(search, few, recipe, place, episodes, **more)
        return search.model.state_dict(), curve, episodes.read_text() if stage == "stage2" else ""

    return run


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def figures(curve: Curve) -> str:
    """All of a curve but what tells the time, as text: what is not a number equals itself."""
    timing = ("step_time", "environment_seconds")
    return json.dumps([{name: row[name] for name in sorted(row) if name not in timing} for row in curve])


def interrupting(step: int) -> Callable[[dict[str, Any]], None]:
    def tell(news: dict[str, Any]) -> None:
        if news["step"] == step:
            raise KeyboardInterrupt

    return tell


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# Which checkpoint counts


def make(checkpoint: Path) -> Path:
    """A whole checkpoint as to its files."""
    (checkpoint / "environment").mkdir(parents=True)
    contents = {"trainer_state.json": "{}", "model.safetensors": "weights", "environment/state.json": "[]"}
    for name, content in contents.items():
        (checkpoint / name).write_text(content)
    sizes = {name: len(content) for name, content in contents.items()}
    (checkpoint / checkpoints.FILES).write_text(json.dumps(sizes))
    return checkpoint


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "model.safetensors").write_text("weigh"),
        lambda folder: (folder / "environment" / "state.json").unlink(),
        lambda folder: (folder / checkpoints.FILES).unlink(),
        lambda folder: (folder / checkpoints.FILES).write_text('{"model.saf'),
        lambda folder: (folder / checkpoints.FILES).write_text('{"model.safetensors": 7}'),
        lambda folder: (folder / checkpoints.FILES).write_text("null"),
        lambda folder: (folder / checkpoints.FILES).write_text('["trainer_state.json"]'),
        shutil.rmtree,
    ],
    ids=["cut off", "a file less", "no list", "half a list", "no trainer's state", "null", "names", "gone"],
)
def test_only_a_whole_checkpoint_is_gone_on_from(damage: Callable[[Path], Any], tmp_path: Path) -> None:
    older, newer = (make(tmp_path / f"checkpoint-{step}") for step in (8, 16))
    assert last_checkpoint(tmp_path) == newer

    damage(newer)

    assert not is_whole(newer)
    assert last_checkpoint(tmp_path) == older


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    assert resume_point(tmp_path / "nowhere") is None
    for step in (8, 16, 120):
        make(tmp_path / f"checkpoint-{step}")
    (tmp_path / "checkpoint-120" / "model.safetensors").unlink()
    (tmp_path / "checkpoint-0").mkdir()
    (tmp_path / "runs").mkdir()
    make(tmp_path / HIDDEN / "checkpoint-24")
    make(tmp_path / ".checkpoint-0.x1y2" / "checkpoint-0")  # moved aside to be replaced

    assert resume_point(tmp_path) == tmp_path / "checkpoint-16"
    assert names(tmp_path) == {"checkpoint-0", "checkpoint-8", "checkpoint-16", "runs"}


def test_all_processes_go_on_from_what_the_first_sees(tmp_path: Path, on_ranks: Callable[..., Any]) -> None:
    """On a disk over the network one may not see yet what another has written."""
    for step in (8, 16):
        make(tmp_path / "0" / f"checkpoint-{step}")
    make(tmp_path / "1" / "checkpoint-8")
    found = on_ranks(2, lambda group: resume_point(tmp_path / str(group.rank), group))
    assert [found[rank].name for rank in (0, 1)] == ["checkpoint-16", "checkpoint-16"]
    assert on_ranks(2, lambda group: resume_point(tmp_path / "nowhere", group)) == [None, None]


def test_what_a_user_puts_beside_the_checkpoints_is_left_alone(tmp_path: Path) -> None:
    for name in ("checkpoint-8", "checkpoint-16", "checkpoint-8-copy", "checkpoint-24.old"):
        make(tmp_path / name)
    (tmp_path / "checkpoint-16.tar.gz").write_text("packed")

    assert resume_point(tmp_path) == tmp_path / "checkpoint-16"
    rotate(tmp_path, 1, None)

    beside = {"checkpoint-8-copy", "checkpoint-24.old", "checkpoint-16.tar.gz"}
    assert names(tmp_path) == {"checkpoint-16", *beside}


@settings(max_examples=30)
@given(st.sets(st.integers(0, 99), min_size=1), st.integers(1, 4), st.data())
def test_rotation_keeps_the_newest_and_the_best(
    tmp_path_factory: pytest.TempPathFactory, steps: set[int], limit: int, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("rotated")
    for step in steps:
        (folder / f"checkpoint-{step}" / "inner").mkdir(parents=True)
    best = data.draw(st.none() | st.sampled_from(sorted(steps)))

    rotate(folder, limit, None if best is None else folder / f"checkpoint-{best}")

    left = {checkpoints.step_of(path) for path in folder.iterdir()}
    kept = {max(steps)} | ({best} if best is not None else set())
    assert kept <= left <= steps
    assert len(left) == min(len(steps), max(limit, len(kept)))
    assert min(left - kept, default=100) > max(steps - left, default=-1)  # the oldest went
    shutil.rmtree(folder)


# Going on


@pytest.mark.parametrize(
    ("stage", "overrides", "step"),
    [
        ("stage1", STAGE1, 6),
        ("stage1", (*STAGE1, "model.lora={r: 4, dropout: 0.1}"), 6),
        ("stage2", (*STAGE2, "stage2.contrastive_pairs=3"), 9),
        ("stage2", (*PLAIN2, "model.lora={r: 4}"), 4),
    ],
    ids=["stage1", "stage1-lora", "stage2-updates", "stage2-lora"],
)
def test_a_resumed_run_is_the_run_without_interruption(
    stage: str, overrides: tuple[str, ...], step: int, train: Train, few: RetrievalDataset, tmp_path: Path
) -> None:
    """Weights, figures and episodes to the last bit, also after the first round through the data."""
    weights, curve, episodes = train(stage, *overrides, folder="whole")
    with pytest.raises(KeyboardInterrupt):
        train(stage, *overrides, folder="halves", tell=interrupting(step))
    assert last_checkpoint(tmp_path / "halves")

    resumed, again, same_episodes = train(stage, *overrides, folder="halves")

    assert same(weights, resumed)
    assert figures(again) == figures(curve)
    assert same_episodes == episodes
    assert len(Pairs(few, "stage1")) < 5 * 16
    assert {"loss", "eval_ndcg@10"} < {name for row in curve for name in row}


def test_each_query_comes_once_a_round(train: Train) -> None:
    _, _, episodes = train("stage2", *STAGE2, folder="run")

    rows = [json.loads(line) for line in episodes.splitlines()]
    assert [row["step"] for row in rows] == [step for step in range(0, 10, 2) for _ in range(2)]
    assert [len({row["query"] for row in rows[start : start + 4]}) for start in (0, 4)] == [4, 4]
    assert len({row["query"] for row in rows}) == 5


def test_several_updates_share_a_generation(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    """The policy loss of the first is on policy; the second is clipped against the same rollouts."""
    seen: list[tuple[int, int, bool]] = []
    real = stage2.GRPOTrainer._compute_loss

    def watched(self: Any, model: Any, inputs: dict[str, Tensor]) -> Tensor:
        with torch.no_grad():
            ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
            mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
            keep = inputs["completion_ids"].shape[1]
            now, _, _ = self._get_per_token_logps_and_entropies(model, ids, mask, keep)
        old = inputs["old_per_token_logps"]
        told = inputs["completion_mask"].bool()
        seen.append((self.state.global_step, len(ids), torch.allclose(now[told], old[told], atol=1e-6)))
        return real(self, model, inputs)

    monkeypatch.setattr(stage2.GRPOTrainer, "_compute_loss", watched)

    train(
        "stage2", *STAGE2, "stage2.steps=4", "stage2.evaluate_every=4", "stage2.warmup_share=0", folder="run"
    )

    assert [(step, rows) for step, rows, _ in seen] == [(step, 2) for step in range(4) for _ in range(2)]
    assert [on_policy for _, _, on_policy in seen] == [True, True, False, False] * 2


class Counter:
    """A part of a run with a state."""

    def __init__(self) -> None:
        self.steps = 0

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]


def test_what_is_kept_moves_with_the_checkpoint(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    counters: list[Counter] = []

    class Counting(Stage1Trainer):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments)
            counters.append(Counter())
            self.kept["counter"] = counters[-1]

        def training_step(self, *arguments: Any, **keywords: Any) -> Tensor:
            counters[-1].steps += 1
            return super().training_step(*arguments, **keywords)

    monkeypatch.setattr(stage1, "Stage1Trainer", Counting)
    with pytest.raises(KeyboardInterrupt):
        train("stage1", folder="run", tell=interrupting(3))

    train("stage1", folder="run")

    assert [counter.steps for counter in counters] == [3, 4]


@pytest.fixture
def steps_made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The step of each micro-batch that is trained on."""
    made: list[int] = []

    def counted(real: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def step(self: Trainer, *arguments: Any, **keywords: Any) -> Tensor:
            made.append(self.state.global_step)
            return real(self, *arguments, **keywords)

        return step

    for trainer in (Stage1Trainer, stage2.Stage2Trainer):
        monkeypatch.setattr(trainer, "training_step", counted(trainer.training_step))
    return made


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_a_run_that_is_over_makes_no_further_step(
    stage: str, train: Train, steps_made: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed after its last checkpoint; here dev no longer rises at step 3 of 6, in the middle of a round."""
    scores = iter([0.5, 0.4, 0.3, 0.2] if stage == "stage2" else [0.4, 0.3, 0.2])
    monkeypatch.setattr(DevSet, "score", lambda *_: dict.fromkeys(("direct", "reasoned"), next(scores)))
    overrides = [f"{stage}.{key}" for key in ("steps=6", "evaluate_every=1", "patience=2")]
    if stage == "stage2":
        overrides[-1] = "stage2.patience=3"
    weights, curve, episodes = train(stage, *overrides, folder="run")
    assert steps_made == [0, 1, 2]

    resumed, again, same_episodes = train(stage, *overrides, folder="run")

    assert steps_made == [0, 1, 2]
    assert same(weights, resumed)
    assert (figures(again), same_episodes) == (figures(curve), episodes)


def test_another_number_of_processes_is_refused_in_one_line(train: Train, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train("stage2", "stage2.steps=4", folder="run", tell=interrupting(3))
    checkpoint = last_checkpoint(tmp_path / "run")
    assert checkpoint
    kept = (checkpoint / "kept.json").read_bytes()
    for rank in range(2):
        (checkpoint / f"kept-{rank}.json").write_bytes(kept)
    files = json.loads((checkpoint / checkpoints.FILES).read_text())
    files["kept-0.json"] = files["kept-1.json"] = files.pop("kept.json")
    (checkpoint / checkpoints.FILES).write_text(json.dumps(files))
    (checkpoint / "kept.json").unlink()

    with pytest.raises(DataError, match=r"saved by 2 process\(es\); resume with as many"):
        train("stage2", "stage2.steps=4", folder="run")


@pytest.mark.parametrize("damage", [b"\xff", b"}"], ids=["no text", "no JSON"])
def test_damage_that_leaves_the_size_is_one_line(damage: bytes, tmp_path: Path) -> None:
    """As a failing disk does; what a kill leaves is told by its size."""
    (tmp_path / "kept.json").write_bytes(damage)
    trainer = SimpleNamespace(_own=lambda name: name)

    with pytest.raises(DataError, match=r"kept\.json: damaged; remove"):
        WholeCheckpoints.load_kept(trainer, tmp_path)  # type: ignore[arg-type]


def test_after_the_last_step_nothing_is_trained(train: Train, steps_made: list[int]) -> None:
    overrides = ("stage1.steps=3", "stage1.evaluate_every=2")
    weights, curve, _ = train("stage1", *overrides, folder="run")

    resumed, again, _ = train("stage1", *overrides, folder="run")

    assert steps_made == [0, 1, 2]
    assert same(weights, resumed)
    assert figures(again) == figures(curve)


@pytest.mark.parametrize("best", [0, 2])
def test_the_best_is_found_where_the_run_is_now(
    best: int, train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not where it was, though it lies there still."""
    scores = iter([0.9, 0.2, 0.3] if best == 0 else [0.2, 0.9, 0.3])
    monkeypatch.setattr(DevSet, "score", lambda *_: dict.fromkeys(("direct", "reasoned"), next(scores)))
    overrides = ("stage2.steps=4", "stage2.evaluate_every=2")
    with pytest.raises(KeyboardInterrupt):
        train("stage2", *overrides, folder="run", tell=interrupting(3))
    shutil.copytree(tmp_path / "run", tmp_path / "copy")

    weights, _, _ = train("stage2", *overrides, folder="copy")

    assert {f"checkpoint-{best}", "checkpoint-4"} <= names(tmp_path / "copy")
    for folder, step in (("run", 2), ("copy", 4)):
        state = json.loads((tmp_path / folder / f"checkpoint-{step}" / "trainer_state.json").read_text())
        assert state["best_model_checkpoint"] == str(tmp_path / folder / f"checkpoint-{best}")
    (tmp_path / "copy").rename(tmp_path / "moved")
    assert same(weights, train("stage2", *overrides, folder="moved")[0])  # with nothing left to train


# Saving


def test_a_save_that_fails_leaves_the_older_checkpoint(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, curve, _ = train("stage1", *DEV, folder="whole")
    real = torch.save

    def full(value: Any, path: Any, *arguments: Any) -> None:
        if "checkpoint-4" in str(path) and "scheduler" in str(path):
            Path(path).write_bytes(b"half")
            raise RuntimeError("[enforce fail] . PytorchStreamWriter failed writing file data/0")
        real(value, path, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(SearchR3Error, match="checkpoint-4: no space left on the disk"):
            train("stage1", *DEV, folder="run")

    assert names(tmp_path / "run") == {"checkpoint-2"}
    resumed, again, _ = train("stage1", *DEV, folder="run")
    assert same(weights, resumed)
    assert figures(again) == figures(curve)


def test_a_checkpoint_holds_no_pickle_but_the_trainers_own(
    train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And these are read as weights only, which runs no code."""
    real, read = torch.load, set()

    def load(path: Any, *arguments: Any, **keywords: Any) -> Any:
        read.add((Path(path).name, keywords["weights_only"]))
        return real(path, *arguments, **keywords)

    with pytest.raises(KeyboardInterrupt):
        train("stage2", "stage2.steps=4", folder="run", tell=interrupting(3))
    monkeypatch.setattr(torch, "load", load)
    train("stage2", "stage2.steps=4", folder="run")

    files = [path for path in (tmp_path / "run").rglob("*") if path.is_file()]
    pickles = {path.name for path in files if path.read_bytes()[:2] in (b"PK", b"\x80\x02", b"\x80\x04")}
    assert pickles == ALLOWED
    assert not [
        path
        for path in files
        if path.suffix in (".bin", ".pkl", ".pickle", ".pt", ".pth") and path.name not in ALLOWED
    ]
    assert read == {(name, True) for name in ALLOWED}


class Second:
    """What the second of two processes does where it is no more than transformers' trainer."""

    def __init__(self, folder: Path):
        self.args = SimpleNamespace(output_dir=str(folder), should_save=False, world_size=2, process_index=1)
        self.state = SimpleNamespace(global_step=4, max_steps=8, best_global_step=4, best_model_checkpoint="")
        self.control = SimpleNamespace(should_training_stop=False)
        self.accelerator = SimpleNamespace(wait_for_everyone=lambda: None)
        self._tr_loss, self._globalstep_last_logged = torch.zeros(()), 4

    def add_callback(self, callback: object) -> None: ...

    def _get_output_dir(self, trial: object) -> str:
        return self.args.output_dir

    def _save_checkpoint(self, model: object, trial: object) -> None:
        self.state.best_model_checkpoint = f"{self._get_output_dir(trial)}/checkpoint-4"


def test_every_process_knows_where_the_best_checkpoint_lies(tmp_path: Path) -> None:
    """Each loads it at the end, not only the one that saved it."""

    class Trainer(WholeCheckpoints, Second):
        pass

    trainer = Trainer(tmp_path)
    trainer._save_checkpoint(None, None)

    assert trainer.state.best_model_checkpoint == str(tmp_path / "checkpoint-4")


def test_a_slow_process_leaves_the_first_one_s_next_work_alone(tmp_path: Path) -> None:
    """Once all have written, the first one renames, rotates and begins the next; others may lag behind."""

    class Trainer(WholeCheckpoints, Second):
        pass

    trainer, meetings = Trainer(tmp_path), []
    following = tmp_path / HIDDEN / "checkpoint-8" / "model.safetensors"

    def meet() -> None:
        meetings.append(1)
        if len(meetings) == 3:  # the last one; what the first does after it
            following.parent.mkdir(parents=True, exist_ok=True)
            following.write_text("weights")

    trainer.accelerator.wait_for_everyone = meet
    trainer._save_checkpoint(None, None)

    assert len(meetings) == 3 and following.read_text() == "weights"


# Killed


class Killer:
    """Trains in processes that kill themselves."""

    def __init__(self, folder: Path, model: Path, data: RetrievalDataset, recipe: Recipe):
        self.folder = folder
        data.save(folder / "data")
        self.job = {"data": str(folder / "data"), "model": str(model), "recipe": recipe.dump()}
        self.process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("killed.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(folder / "errors.txt").open("w"),
            text=True,
        )

    def train(self, stage: str, folder: str, moment: int | None = None, seconds: float | None = None) -> int:
        """Train in a folder, or go on there; returns the exit code, which is −9 when killed."""
        assert self.process.stdin and self.process.stdout
        when = {"moment": moment, "seconds": seconds}
        job = {**self.job, **when, "stage": stage, "folder": str(self.folder / folder)}
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def whole(self, stage: str) -> list[str]:
        """Train without a kill; returns what was done, of which a kill may fall on any."""
        assert self.train(stage, f"{stage}-whole") == 0, (self.folder / "errors.txt").read_text()
        return json.loads((self.folder / f"{stage}-whole" / "result.json").read_text())["trace"]

    def check(self, stage: str, *moments: int) -> None:
        """Kill a run at these moments, one after the other, and let it go on to its end."""
        folder = self.folder / f"{stage}-killed"
        shutil.rmtree(folder, ignore_errors=True)
        for moment in moments:
            assert self.train(stage, folder.name, moment) == -signal.SIGKILL, moment
            self._all_whole(folder / stage, moment)
        assert self.train(stage, folder.name) == 0, (self.folder / "errors.txt").read_text()
        self.compare(stage, folder, moments)

    def check_any_time(self, stage: str, draw: random.Random, longest: float) -> int:
        """Kill a run after a while, again and again, until it gets to its end; returns how often."""
        folder = self.folder / f"{stage}-killed"
        shutil.rmtree(folder, ignore_errors=True)
        for kills in range(100):
            longest *= 1.2  # else it may never come to the next checkpoint
            code = self.train(stage, folder.name, seconds=draw.uniform(0, longest))
            if code == 0:
                self.compare(stage, folder, kills)
                return kills
            assert code == -signal.SIGKILL, (self.folder / "errors.txt").read_text()
            self._all_whole(folder / stage, kills)
        raise AssertionError("never came to its end")

    def _all_whole(self, folder: Path, moment: int) -> None:
        for checkpoint in folder.glob("checkpoint-*"):
            assert is_whole(checkpoint) or checkpoint.name == "checkpoint-0", moment

    def compare(self, stage: str, folder: Path, moments: Any) -> None:
        """With the run that was not killed: weights, curve, episodes, and which checkpoint was the best."""
        whole = self.folder / f"{stage}-whole"
        (weights, curve, episodes), again = (
            (load_file(one / "weights.safetensors"), self._curve(one), self._episodes(one))
            for one in (whole, folder)
        )
        assert same(weights, again[0]), moments
        assert again[1:] == (curve, episodes), moments
        assert self._best(folder / stage) == self._best(whole / stage), moments
        assert HIDDEN not in names(folder / stage)

    def _best(self, folder: Path) -> tuple[int, float, dict[str, bytes]]:
        """Step and figure of the best checkpoint, and the weights that it and the newest hold."""
        newest = last_checkpoint(folder)
        assert newest
        state = json.loads((newest / "trainer_state.json").read_text())
        best = folder / f"checkpoint-{state['best_global_step']}"
        files = sorted(path for one in {best, newest} for path in one.rglob("*.safetensors"))
        held = {str(path.relative_to(folder)): path.read_bytes() for path in files}
        return state["best_global_step"], state["best_metric"], held

    def _curve(self, folder: Path) -> str:
        return figures(json.loads((folder / "result.json").read_text())["curve"])

    def _episodes(self, folder: Path) -> str:
        episodes = folder / "episodes.jsonl"
        return episodes.read_text() if episodes.exists() else ""


@pytest.fixture
def killer(
    few: RetrievalDataset, tiny_model: Path, toy_recipe: MakeRecipe, tmp_path: Path
) -> Iterator[Killer]:
    recipe = toy_recipe(*STAGE1, *STAGE2, "model.max_new_tokens=2")
    killer = Killer(tmp_path, tiny_model, few, recipe)
    yield killer
    killer.process.kill()
    killer.process.communicate()


@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_a_killed_run_goes_on_as_if_it_had_not_been(stage: str, killer: Killer) -> None:
    """In the middle of a save, of a deletion, and between two steps and while it goes on."""
    trace = killer.whole(stage)
    places = {name: [place for place, one in enumerate(trace) if one == name] for name in set(trace)}
    assert set(places) == {"replace", "fsync", "save", "rmtree", "training_step"}

    killer.check(stage, places["save"][-2])
    killer.check(stage, places["rmtree"][-2])
    killer.check(stage, places["training_step"][-1], places["fsync"][10])


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_a_run_may_be_killed_at_any_moment(stage: str, killer: Killer) -> None:
    for moment in range(len(killer.whole(stage))):
        killer.check(stage, moment)


@pytest.mark.slow
@pytest.mark.parametrize("lora", ["null", "{r: 4, dropout: 0.1}"])
@pytest.mark.parametrize("stage", ["stage1", "stage2"])
def test_a_run_may_be_killed_at_any_time(stage: str, lora: str, killer: Killer) -> None:
    """Not only where a file is touched: in the middle of a forward pass, of a draw, of an evaluation."""
    killer.job["recipe"]["model"]["lora"] = yaml.safe_load(lora)
    killer.whole(stage)  # the first job waits for the libraries
    started = time.perf_counter()
    assert killer.train(stage, "timed") == 0
    longest, draw, kills = time.perf_counter() - started, random.Random(0), 0

    for _ in range(20):
        kills += killer.check_any_time(stage, draw, longest / 2)
        if kills >= 5:
            return
    raise AssertionError(f"{kills} kills in 20 runs")
