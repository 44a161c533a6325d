"""`train --dry-run`: what would end a run later is told now, and what the run will cost."""

import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from typer.testing import CliRunner

from searchr3.cli import app
from searchr3.dataset import RetrievalDataset
from searchr3.runs import probe
from searchr3.training import rollout_engine
from searchr3.training.recipe import Recipe

MakeRecipe = Callable[..., Recipe]
GIVEN = ("--tflops", "100", "--tokens-per-second", "1000")


@pytest.fixture
def here(
    tmp_path: Path,
    toy: RetrievalDataset,
    toy_recipe: MakeRecipe,
    qwen2_base: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """A folder to work in, with `toy/`, `base/` and `recipe.yaml`."""
    toy.save(tmp_path / "toy")
    shutil.copytree(qwen2_base, tmp_path / "base")
    recipe = toy_recipe("data.source=toy", "model.base=base")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe.dump()), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def look(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["train", "recipe.yaml", "--dry-run", *arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def fault(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["train", "recipe.yaml", "--dry-run", *arguments])
    assert result.exit_code == 1 and not result.stdout
    (line,) = result.stderr.splitlines()
    return line.removeprefix("error: ")


def column(output: str, row: str) -> list[float]:
    """The numbers of a row of the tables."""
    rows = [line for line in output.splitlines() if line.removeprefix("#").strip().startswith(row)]
    found = (re.findall(r"(?<![\w.])[\d,.]+(?![\w.])", line) for line in rows)
    return next([float(number.replace(",", "")) for number in numbers] for numbers in found if numbers)


def test_it_shows_recipe_and_costs_and_writes_nothing(here: Path) -> None:
    before = sorted(os.listdir())

    output = look("stage1.steps=7", *GIVEN)

    shown = yaml.safe_load(output)  # the estimate stands in comments
    assert (shown["stage1"]["steps"], shown["data"]["source"]) == (7, "toy")
    assert "# data: 150 documents; queries: " in output
    assert all(f"{split} " in output for split in ("stage1", "stage2", "dev", "test"))
    assert column(output, "stage1 ")[0] == 7 and column(output, "stage1 ")[1] > 0
    assert "at 100 TFLOP/s and 1,000 generated tokens a second in each process, as given" in output
    assert sorted(os.listdir()) == before


def test_it_counts_the_queries_that_the_recipe_keeps(here: Path) -> None:
    output = look("data.stage1_queries=20", "data.stage2_queries=9", *GIVEN)
    assert "stage1 20, stage2 9" in output
    assert "wants 2 queries, but the split 'stage2' of toy has 1" in fault("data.stage2_queries=1", *GIVEN)


def test_the_weights_are_not_read_when_the_speed_is_given(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But for their heads, which tell whether they are whole."""

    def unread(*_: object, **__: object) -> None:
        raise OSError("nothing that could be read")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", unread)

    assert "parameters, " in look(*GIVEN)
    assert "hours: not measured (base: cannot load a model" in look()


def test_the_speed_is_measured_where_the_model_can_be_loaded(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "SECONDS", 0.05)
    line = next(line for line in look().splitlines() if line.startswith("# hours"))
    assert "measured here just now" in line and " 0 generated" not in line

    monkeypatch.setattr(probe, "free_bytes", lambda: 1000)
    assert "not measured, for " in look()


def test_a_device_that_is_too_small_is_told(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> float:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(probe, "_training", full)
    assert "not measured (the memory of this device does not suffice for one pass)" in look()


def test_more_processes_share_the_work(here: Path) -> None:
    alone, two = look(*GIVEN), look(*GIVEN, "--processes", "2")
    dealt = look(*GIVEN, "--processes", "2", "--shard")

    assert "memory of each of 2 processes, MiB" in two and "2 processes, sharded" in dealt
    assert column(two, "activations") <= column(alone, "activations")
    assert column(two, "optimizer") == column(alone, "optimizer")
    assert column(dealt, "optimizer")[0] == pytest.approx(column(alone, "optimizer")[0] / 2, abs=0.01)
    assert "buckets of DDP" in two and "buckets of DDP" not in alone + dealt


def test_the_place_of_the_run_is_looked_at_and_its_disk(here: Path) -> None:
    output = look(*GIVEN, "--output", "mine")
    (line,) = [line for line in output.splitlines() if line.startswith("# disk: ")]
    assert "MiB in mine: base and two models of " in line and not (here / "mine").exists()
    assert "TOO LITTLE" not in line
    assert fault("--output", "toy") == "toy: exists and is not a run; choose another folder with --output"
    (here / "mine").mkdir()
    shutil.copy("recipe.yaml", "mine/recipe.yaml")
    assert fault("--output", "mine").startswith("mine: holds an interrupted run; continue it with --resume")
    assert "# disk: " in look(*GIVEN, "--output", "mine", "--resume")
    assert "had another recipe" in fault("--output", "mine", "--resume", "stage1.steps=7")
    (here / "mine" / "report.html").touch()
    assert fault("--output", "mine").startswith("mine: holds a finished run")


def test_a_disk_that_is_too_small_is_told(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=1000))
    assert "TOO LITTLE" in look(*GIVEN)


def test_memory_is_that_of_the_longest_texts_of_a_mixture(here: Path, toy: RetrievalDataset) -> None:
    long = {key: one._replace(text=f"{one.text} " * 5) for key, one in toy.corpus.items()}
    replace(toy, corpus=long).save(here / "long")
    alone, mixed = look(*GIVEN), look(*GIVEN, "data.mixture=[{source: long}]")
    assert column(mixed, "activations")[0] > 1.3 * column(alone, "activations")[0]
    assert column(mixed, "activations")[1] == column(alone, "activations")[1]
    assert "mixture: long, 150 documents, 150 queries; document " in mixed


VLLM = "stage2.generation={engine: vllm, mode: MODE, port: PORT, timeout: 1, tensor_parallel: GPUS}"


@pytest.fixture
def with_vllm(monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """The override for vLLM, which is taken for installed."""
    monkeypatch.setattr(rollout_engine, "find_spec", lambda name: object())
    monkeypatch.setattr(rollout_engine, "_has_gpu", lambda: True)
    return lambda mode, port=1, gpus=1: (
        VLLM.replace("MODE", mode).replace("PORT", str(port)).replace("GPUS", str(gpus))
    )


def test_with_vllm_the_trainer_generates_for_dev_alone(here: Path, with_vllm: Callable[..., str]) -> None:
    many = ("stage2.queries=32", "data.dev_queries=5", *GIVEN)
    alone, beside = look(*many), look(*many, with_vllm("colocate"))
    rollouts = column(alone, "or else: generation")[1]
    assert column(beside, "or else: generation")[1] == pytest.approx(rollouts * 5 / (32 * 4), abs=0.02)
    # vLLM samples, so the trainer reads each rollout for its vector, and once more for its probabilities
    assert column(beside, "stage2 ")[2] > column(alone, "stage2 ")[2]
    assert "vLLM takes 0.3 of each GPU, which must then have " in beside and "vLLM" not in alone


def test_a_server_of_vllm_has_memory_of_its_own(here: Path, with_vllm: Callable[..., str]) -> None:
    output = look(*GIVEN, with_vllm("server"))
    assert "# the vLLM server needs, on GPUs of its own, " in output and "vLLM takes" not in output
    assert "# no vLLM server answers at http://127.0.0.1:1 now; when stage 2 begins it is waited" in output


def test_what_vllm_needs_is_looked_at(here: Path, with_vllm: Callable[..., str]) -> None:
    said = fault("--processes", "2", with_vllm("colocate", gpus=4))
    assert said.startswith("stage2.generation.tensor_parallel: 2 processes cannot be divided")
    look("--processes", "2", with_vllm("colocate", gpus=2), *GIVEN)


def test_without_vllm_its_recipe_is_refused(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollout_engine, "find_spec", lambda name: None)
    assert fault("stage2.generation.engine=vllm").startswith(
        "stage2.generation.engine: vllm is not installed"
    )


def test_only_the_first_process_speaks(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert look(*GIVEN) == look("stage1.stps=7") == ""  # of faults too


@pytest.mark.parametrize(
    "speeds",
    [
        ("--tflops", "100"),
        ("--tokens-per-second", "9"),
        ("--tflops", "0", "--tokens-per-second", "9"),
        ("--tflops", "-1", "--tokens-per-second", "9"),
        ("--tflops", "1", "--tokens-per-second", "nan"),
        ("--tflops", "inf", "--tokens-per-second", "9"),
    ],
)
def test_speeds_are_two_numbers_above_0(here: Path, speeds: tuple[str, ...]) -> None:
    assert fault(*speeds).startswith("--tflops and --tokens-per-second: give both, each a number above 0")


@pytest.mark.parametrize("option", [("--processes", "8"), ("--shard",), ("--tokens-per-second", "9")])
def test_a_run_refuses_what_only_a_dry_run_heeds(here: Path, option: tuple[str, ...]) -> None:
    result = CliRunner().invoke(app, ["train", "recipe.yaml", *option])
    assert result.exit_code == 1 and result.stderr.startswith(f"error: {option[0]}: is for --dry-run only")
    assert not (here / "runs").exists()


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        (("model.base=nobody/nothing",), "nobody/nothing: no such folder, and the Hub cannot be reached"),
        (("model.base=toy",), "toy: not a model folder"),
        (("model.lora={target_modules: [q_prj]}",), "model.lora: "),
        (("model.max_length=9",), "max_length 9 leaves no room"),
        (("--processes", "3"), "stage1.batch_size: 8 pairs cannot be divided among 3 processes"),
        (
            ("--processes", "3", "stage1.batch_size=300", "stage2.queries=3"),
            "stage1.batch_size: the 64 training pairs are fewer than a batch of 300",
        ),
        (
            ("--processes", "4"),
            "stage2.queries: 2 queries cannot be divided among 4 processes; set it to a multiple of 4",
        ),
        (
            ("--processes", "2", "stage2.accumulation=8"),
            "stage2.accumulation: the 4 rollouts of each of 2 processes cannot be made into 8 micro-batches",
        ),
        (("model.prompts=nowhere.yaml",), "nowhere.yaml: cannot read the prompts"),
        (("report_to=tensorbord",), "report_to: tensorbord is not supported"),
        (("data.source=your-data",), "data.source: this recipe leaves the data to you"),
    ],
)
def test_what_would_end_the_run_is_told(here: Path, keys: tuple[str, ...], words: str) -> None:
    assert fault(*keys).startswith(words)


def test_faults_in_the_files_are_told(here: Path) -> None:
    (here / "toy" / "qrels" / "dev.tsv").rename(here / "dev.tsv")
    assert "no split 'dev'" in fault()
    (here / "dev.tsv").rename(here / "toy" / "qrels" / "dev.tsv")
    weights = (here / "base" / "model.safetensors").rename(here / "weights")
    assert fault().startswith("base: no weights (model.safetensors)")
    (here / "base" / "model.safetensors").touch()
    assert fault().startswith("base: model.safetensors is missing or incomplete")
    weights.rename(here / "base" / "model.safetensors")
    (here / "base" / "chat_template.jinja").unlink()
    assert fault().startswith("base: the tokenizer has no chat template")
