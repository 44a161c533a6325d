"""The whole loop by the command line: trained, interrupted, resumed, searched, measured. No stand-ins."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

import searchr3
from searchr3.cli import app
from searchr3.dataset import RetrievalDataset
from searchr3.evaluation.report import CURVES
from searchr3.runs.closing import EXAMPLES

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(searchr3.__file__).parents[1])}
LONGEST = 400  # seconds, on a machine that is busy with other things

RECIPE = """\
name: toy
data: {source: toy, trace_words: 3, dev_queries: 10, dev_documents: 40}
model: {base: base, max_length: 96, max_new_tokens: 4}
stage1: {steps: 40, batch_size: 8, learning_rate: 0.003, evaluate_every: 4, log_every: 2, chat_prompts: 2}
stage2:
  {steps: 4, queries: 2, rollouts: 4, evaluate_every: 2, log_every: 1, contrastive: 0.3, episodes_every: 2,
  environment: {audit_every: 1}}
report_to: tensorboard
"""


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "searchr3", *arguments]


def sigint_as_in_a_terminal() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell in the background ignores it


@dataclass
class Whole:
    """A run that was interrupted in the middle of stage 1 and resumed."""

    folder: Path
    path: Path
    interrupted: subprocess.CompletedProcess[str]
    left: set[str]
    resumed: subprocess.CompletedProcess[str]

    def metrics(self) -> dict:
        return json.loads((self.path / "metrics.json").read_text(encoding="utf-8"))

    def searchr3(self, *arguments: str) -> str:
        """Standard output of a command that succeeds, in this process."""
        result = CliRunner().invoke(app, list(arguments))
        assert result.exit_code == 0, result.output
        return result.stdout


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, toy: RetrievalDataset, tiny_base: Path
) -> Iterator[Whole]:
    pytest.importorskip("tensorboard")
    folder = tmp_path_factory.mktemp("end-to-end")
    toy.without_reasoning().save(folder / "toy")
    (folder / "base").symlink_to(tiny_base)
    (folder / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    run = folder / "run"
    train = command("train", "recipe.yaml", "--output", "run")

    started = time.monotonic()
    process = subprocess.Popen(
        train,
        cwd=folder,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=sigint_as_in_a_terminal,
    )
    checkpoints = run / "checkpoints" / "stage1"
    while not list(checkpoints.glob("checkpoint-*/trainer_state.json")):
        if process.poll() is not None or time.monotonic() - started > LONGEST:
            process.kill()
            pytest.fail(f"no checkpoint of stage 1: {process.communicate()}")
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=LONGEST)
    interrupted = subprocess.CompletedProcess(train, process.returncode, out, err)
    left = {path.name for path in run.iterdir()}
    resumed = subprocess.run(
        [*train, "--resume"], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True, timeout=LONGEST
    )
    yield Whole(folder, run, interrupted, left, resumed)


def test_an_interruption_is_one_line_and_leaves_nothing_half_written(whole: Whole) -> None:
    assert whole.interrupted.returncode == 130, whole.interrupted.stderr
    assert (
        whole.interrupted.stderr.splitlines()[-1] == "interrupted; the same command with --resume continues"
    )
    assert "Traceback" not in whole.interrupted.stderr
    assert whole.interrupted.stdout == ""
    assert whole.left == {"recipe.yaml", "data", "base", "checkpoints", "progress.json"}


def test_the_resumed_run_goes_through_to_the_end(whole: Whole) -> None:
    assert whole.resumed.returncode == 0, whole.resumed.stderr
    phases = [
        line.split("min", 1)[1].split("  ")[1] for line in whole.resumed.stderr.splitlines() if "min" in line
    ]
    assert phases == ["data", "base", "stage1", "stage1 evaluation", "stage2", "stage2 evaluation"]
    shown = whole.resumed.stdout
    assert all(name in shown for name in ("direct", "reasoned", "bm25", "ndcg@10"))
    assert "searchr3 search" in shown and "--run run" in shown
    assert "{'loss'" not in shown + whole.resumed.stderr
    assert "it/s" not in whole.resumed.stderr


def test_the_run_folder_holds_what_it_should(whole: Whole) -> None:
    expected = {"recipe.yaml", "data", "base", "stage1", "stage2", "checkpoints", "episodes.jsonl"}
    expected |= {"metrics.json", "report.html", "vectors.safetensors", "progress.json"}

    assert {path.name for path in whole.path.iterdir()} == expected
    for stage in ("base", "stage1", "stage2"):
        names = {path.name for path in (whole.path / stage).iterdir()}
        assert {"config.json", "model.safetensors", "tokenizer.json", "searchr3.json"} <= names
    for split in ("stage1", "stage2", "dev", "test"):
        assert (whole.path / "data" / "qrels" / f"{split}.tsv").is_file()
    assert not list(whole.path.rglob("checkpoint-*"))
    assert list((whole.path / "checkpoints").rglob("events.out.tfevents*"))


def test_recipe_is_kept_as_used_with_versions_and_seed(whole: Whole) -> None:
    kept = yaml.safe_load((whole.path / "recipe.yaml").read_text(encoding="utf-8"))

    assert kept["recipe"]["stage1"]["steps"] == 40
    assert kept["recipe"]["stage1"]["temperature"] == 0.05  # a default is written down as well
    assert kept["recipe"]["seed"] == 0
    assert kept["machine"]["searchr3"] == searchr3.__version__
    assert {"python", "platform", "torch", "transformers", "trl"} <= kept["machine"].keys()
    places = f"data.source={whole.folder / 'toy'}", f"model.base={whole.folder / 'base'}"
    again = yaml.safe_load(whole.searchr3("train", str(whole.path / "recipe.yaml"), *places, "--dry-run"))
    again["data"]["source"] = kept["recipe"]["data"]["source"]
    again["model"]["base"] = kept["recipe"]["model"]["base"]
    assert again == kept["recipe"]


def test_metrics_hold_both_stages_on_the_same_test(whole: Whole) -> None:
    metrics = whole.metrics()

    assert {"seconds", "stages", "curves"} <= metrics.keys()
    assert all(seconds >= 0 for seconds in metrics["seconds"].values())
    assert list(metrics["stages"]) == ["stage1", "stage2"]
    for results in metrics["stages"].values():
        assert [run["name"] for run in results["runs"]] == ["direct", "reasoned", "bm25"]
        assert (results["documents"], results["split"]) == (150, "test")
        for run in results["runs"]:
            for metric in ("ndcg@10", "recall@10", "recall@100", "mrr@10"):
                low, high = run["ci95"][metric]
                assert 0 <= low <= run[metric] <= high <= 1
    first, second = (results["runs"][2] for results in metrics["stages"].values())
    assert first == second  # BM25 is measured once


def test_stage_1_learns_from_the_data(whole: Whole) -> None:
    curve = whole.metrics()["curves"]["stage1"]

    steps = [entry["step"] for entry in curve]
    assert steps == sorted(set(steps)) and steps[-1] == 40
    losses = [entry["info_nce"] for entry in curve if "info_nce" in entry]
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5])
    direct = whole.metrics()["stages"]["stage1"]["runs"][0]
    assert direct["ndcg@10"] > 0.5  # a random ranking of 150 documents has 0.03


def test_stage_2_leaves_rewards_and_episodes(whole: Whole) -> None:
    curve = whole.metrics()["curves"]["stage2"]
    lines = [
        json.loads(line) for line in (whole.path / "episodes.jsonl").read_text(encoding="utf-8").splitlines()
    ]

    assert [entry["step"] for entry in curve] == [0, 1, 2, 3, 4]
    assert all(0 <= entry["reward_ndcg"] <= 1 and "thinking_tokens" in entry for entry in curve[1:])
    assert [line["step"] for line in lines] == [0, 0, 2, 2]
    assert all(len(line["rollouts"]) == 4 and line["query"] and line["relevant"] for line in lines)


def test_the_report_is_whole_and_needs_nothing_else(whole: Whole) -> None:
    report = (whole.path / "report.html").read_text(encoding="utf-8")

    assert report.rstrip().endswith("</html>")
    assert not re.search(r"""(src|href)=["'](https?:|/|\./)""", report)
    runs = [f"{run}, stage\u00a0{number}" for number in (1, 2) for run in ("direct", "reasoned")]
    for run in ("BM25", *runs):  # with its three decimals of nDCG@10 and their interval
        figures = r"<td>[01]\.\d{3}<small>[01]\.\d{3} – [01]\.\d{3}"
        assert re.search(rf"{run}</th>\s*{figures}", report), run
    for _, _, title, _ in CURVES:
        assert re.search(rf"<h3>{re.escape(title)}</h3>\s*<svg", report), title
    assert report.count("<svg") == len(CURVES) + 3  # idle queries, ages, and the bars of nDCG@10
    assert report.count('<article class="card query">') == EXAMPLES


def test_the_run_tells_whether_the_model_still_chats(whole: Whole) -> None:
    told = whole.metrics()["chat"]
    report = (whole.path / "report.html").read_text(encoding="utf-8")
    command = ("chat-check", str(whole.path / "stage2"), "--base", str(whole.path / "base"), "--json")
    again = json.loads(whole.searchr3(*command))

    assert list(told) == ["stage1", "stage2"]
    for chat in told.values():
        assert chat["kl_base_trained"] > 0 and chat["kl_trained_base"] > 0 and 0 <= chat["same_token"] <= 1
    for name in ("kl_base_trained", "kl_trained_base", "same_token", "replies"):
        assert again[name] == told["stage2"][name]
    assert report.count('<article class="card query chat">') == 3
    assert f"{told['stage2']['kl_base_trained']:.4f}" in report
    assert "does it still chat?" in whole.resumed.stdout


def test_search_shows_the_reasoning_and_hits(whole: Whole) -> None:
    found = json.loads(
        whole.searchr3("search", "sort the list lazily", "--run", str(whole.path), "--json", "-k", "5")
    )

    assert len(found["hits"]) == 5
    assert isinstance(found["reasoning"], str)
    shown = whole.searchr3(
        "search", "sort the list lazily", "--run", str(whole.path), "--no-reasoning", "-k", "3"
    )
    assert len(re.findall(r"^ +\d  \d\.\d{3}  \w+_\w+$", shown, flags=re.MULTILINE)) == 3
    assert "sort" in shown or "list" in shown or "lazily" in shown


def test_evaluate_measures_the_saved_model_as_the_run_did(whole: Whole) -> None:
    """Data from the run folder or the original: the same figures, but for bfloat16 in the run."""
    output = whole.folder / "results.json"
    whole.searchr3(
        "evaluate",
        str(whole.path / "stage2"),
        "--data",
        str(whole.folder / "toy"),
        "--max-new-tokens",
        "4",
        "--output",
        str(output),
    )

    results = json.loads(output.read_text(encoding="utf-8"))
    of_run = {run["name"]: run for run in whole.metrics()["stages"]["stage2"]["runs"]}
    for run in results["runs"]:
        assert run["ndcg@10"] == pytest.approx(of_run[run["name"]]["ndcg@10"], abs=0.05)
    assert output.with_suffix(".queries.parquet").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "holds a finished run; choose another folder with --output"),
        (("--resume",), "holds a finished run; there is nothing to resume"),
        (("stage1.steps=3", "--resume"), "finished"),
    ],
)
def test_a_finished_run_is_never_written_over(whole: Whole, arguments: tuple[str, ...], words: str) -> None:
    before = (whole.path / "metrics.json").stat().st_mtime_ns

    result = CliRunner().invoke(
        app, ["train", str(whole.folder / "recipe.yaml"), *arguments, "--output", str(whole.path)]
    )

    assert result.exit_code == 1
    assert words in result.stderr
    assert (whole.path / "metrics.json").stat().st_mtime_ns == before


@pytest.mark.slow
def test_a_run_killed_in_both_stages_ends_as_the_other(whole: Whole) -> None:
    """Killed, not interrupted: nothing can be put in order first."""
    train = command("train", "recipe.yaml", "--output", "killed")
    killed = whole.folder / "killed"
    for sign in ("stage1/checkpoint-8", "stage2/checkpoint-2"):
        process = subprocess.Popen(
            train, cwd=whole.folder, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        started = time.monotonic()
        while not (killed / "checkpoints" / sign).exists():
            assert process.poll() is None and time.monotonic() - started < LONGEST
            time.sleep(0.01)
        process.kill()
        process.wait()
        train = command("train", "recipe.yaml", "--output", "killed", "--resume")
    subprocess.run(train, cwd=whole.folder, env=ENVIRONMENT, check=True, capture_output=True, timeout=LONGEST)

    for name in (
        "stage1/model.safetensors",
        "stage2/model.safetensors",
        "episodes.jsonl",
        "vectors.safetensors",
    ):
        assert (killed / name).read_bytes() == (whole.path / name).read_bytes(), name
    curves = [json.loads((path / "metrics.json").read_text())["curves"] for path in (killed, whole.path)]
    for curve in (*curves[0].values(), *curves[1].values()):
        for row in curve:
            for timing in ("step_time", "environment_seconds"):
                row.pop(timing, None)
    assert curves[0] == curves[1]
