"""A run folder: what may begin, what is refused before anything is written, and what evaluation is shown."""

import errno
import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
import yaml
from typer.testing import CliRunner

from searchr3.adaptive import Adaptive
from searchr3.cli import app
from searchr3.dataset import RetrievalDataset
from searchr3.errors import RecipeError, SearchR3Error
from searchr3.evaluation import Results
from searchr3.locks import alone
from searchr3.machine import machine
from searchr3.model import SearchR3
from searchr3.progress import Screen
from searchr3.runs.closing import _alarm_lines, _chat_lines
from searchr3.runs.pipeline import RunFolder, search
from searchr3.runs.preparation import bundled_base, limited, make_base_model, make_dataset, make_sources
from searchr3.training.recipe import Recipe
from searchr3.training.recipe_file import load_recipe

MakeRecipe = Callable[..., Recipe]


@pytest.fixture
def here(
    tmp_path: Path, toy: RetrievalDataset, toy_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A folder to work in, with `toy/` and `recipe.yaml`: neither stage trains."""
    toy.save(tmp_path / "toy")
    recipe = toy_recipe("data.source=toy", "stage1.steps=0", "stage2.steps=0")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe.dump()), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def failed(*arguments: str) -> str:
    """The one line of a command that fails."""
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 1, result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    assert lines[0] == result.stderr.splitlines()[-1]
    assert "Traceback" not in result.output
    assert "internal" not in lines[0]
    return lines[0].removeprefix("error: ")


def train(*overrides: str) -> str:
    """The error of a `train` in `here` that must leave no run behind."""
    line = failed("train", "recipe.yaml", *overrides, "--output", "run")
    assert not Path("run").exists()
    return line


@pytest.mark.slow
def test_two_processes_fill_one_run_folder(
    here: Path, toy_recipe: MakeRecipe, launch: Callable[..., None]
) -> None:
    """As `torchrun` or `accelerate launch` would start them; also when the run goes on after a stop."""
    recipe = toy_recipe("data.source=toy", "stage2.contrastive=0.5", "stage2.contrastive_pairs=4")
    (here / "recipe.yaml").write_text(yaml.safe_dump(recipe.dump()), encoding="utf-8")
    command = ("-m", "searchr3", "train", "recipe.yaml", "--output", "run")

    launch(2, *command)

    metrics = json.loads((here / "run" / "metrics.json").read_text(encoding="utf-8"))
    assert set(metrics["stages"]) == {"stage1", "stage2"}
    assert metrics["curves"]["stage2"][-1]["step"] == recipe.stage2.steps
    assert (here / "run" / "report.html").is_file()
    queries = [json.loads(line)["query"] for line in (here / "run" / "episodes.jsonl").open(encoding="utf-8")]
    assert len(queries) == recipe.stage2.steps * recipe.stage2.queries
    assert not list((here / "run" / "checkpoints").rglob("checkpoint-*"))

    shutil.rmtree(here / "run" / "stage2")
    (here / "run" / "report.html").unlink()
    launch(2, *command, "--resume")
    again = json.loads((here / "run" / "metrics.json").read_text(encoding="utf-8"))
    assert (
        again["stages"]["stage1"]["runs"][0]["ndcg@10"] == metrics["stages"]["stage1"]["runs"][0]["ndcg@10"]
    )
    assert (here / "run" / "report.html").is_file()


def test_a_process_that_is_late_does_not_take_a_stage_for_done(
    tmp_path: Path, toy_recipe: MakeRecipe, on_ranks: Callable[..., Any]
) -> None:
    """Where nothing is to be trained the first has saved the stage before the other looks for it."""
    saved, trained = threading.Event(), []

    class Late(RunFolder):
        @contextmanager
        def phase(self, name: str, doing: str) -> Iterator[None]:
            if self.group.rank:
                saved.wait(0.5)
            yield

        def train_stage(self, *_: Any) -> list[dict[str, float]]:
            trained.append(self.group.rank)
            return []

        def _save(self, name: str, *_: Any) -> None:
            (self.path / name).mkdir()
            saved.set()

        def measure(self, *_: Any) -> Any: ...

    recipe = toy_recipe("stage1.steps=0", "evaluation.chat_tokens=0")
    on_ranks(
        2, lambda group: Late(tmp_path, recipe, Screen(), group)._stage("stage1", Mock(), Mock(), None, None)
    )
    assert sorted(trained) == [0, 1]


# Bad input: one line that names the place, and no folder


def test_a_recipe_with_an_unknown_key(here: Path) -> None:
    assert "unknown key 'stage1.temprature'; did you mean 'temperature'?" in train("stage1.temprature=1")


def test_a_missing_recipe(here: Path) -> None:
    assert failed("train", "nowhere.yaml").startswith("nowhere.yaml: no such recipe file")


def test_a_missing_data_set(here: Path) -> None:
    missing = here / "nowhere"

    assert train(f"data.source={missing}").startswith(f"{missing}: no such file or folder")


@pytest.mark.parametrize(
    ("file", "line", "words"),
    [
        ("corpus.jsonl", '{"_id": "x", "text": "half', "corpus.jsonl:151: not valid JSON"),
        ("corpus.jsonl", '{"_id": "x"}', "corpus.jsonl:151: key 'text' is missing"),
        ("queries.jsonl", '{"_id": "x", "text": ""}', "queries.jsonl:151: 'text' is empty"),
        ("queries.jsonl", "[1, 2]", "queries.jsonl:151: expected a JSON object"),
        ("qrels/dev.tsv", "q5\tnobody\t1", "judges the unknown document id 'nobody'"),
        ("qrels/dev.tsv", "nobody\td1\t1", "judges the unknown query id 'nobody'"),
    ],
)
def test_a_bad_line_of_the_data(here: Path, file: str, line: str, words: str) -> None:
    with (here / "toy" / file).open("a", encoding="utf-8") as lines:
        lines.write(line + "\n")

    message = train()

    assert f"toy/{file}:" in message
    assert words in message


def test_data_without_a_split_that_is_needed(here: Path) -> None:
    (here / "toy" / "qrels" / "dev.tsv").unlink()

    assert "no split 'dev'" in train()


def test_more_queries_in_a_step_than_there_are(here: Path) -> None:
    assert train("stage2.steps=1", "stage2.queries=500").startswith("stage2.queries: a step wants 500")


def test_a_base_that_is_none(here: Path) -> None:
    assert train("model.base=toy").startswith("toy: not a model folder")
    assert train("model.base=./nowhere").startswith("./nowhere: ")


def test_prompts_that_are_none(here: Path) -> None:
    (here / "prompts.yaml").write_text("embd: hello\n", encoding="utf-8")

    assert "prompts.yaml: unknown key 'embd'; did you mean 'embed'?" in train("model.prompts=prompts.yaml")


def test_a_tracker_that_is_none(here: Path) -> None:
    assert train("report_to=tensorbord").startswith("report_to: tensorbord is not supported")


@pytest.mark.parametrize(
    ("baseline", "words"),
    [
        ("bm52", "baseline bm52: neither bm25, nor a folder, nor a Hub id"),
        ("toy", "baseline toy: neither a searchr3 nor a sentence-transformers model"),
        ("nobody/nothing", "baseline nobody/nothing: no such folder, and the Hub cannot be reached"),
    ],
)
def test_a_baseline_that_is_none(here: Path, baseline: str, words: str) -> None:
    assert train(f"evaluation.baselines=[bm25, {baseline}]").startswith(words)


@pytest.mark.parametrize("dry", [(), ("--dry-run",)])
def test_the_bundled_base_has_seen_the_packages_that_are_to_be_held_out(
    here: Path, dry: tuple[str, ...]
) -> None:
    keys = ("data.source=python", "data.split_by=package", "model.base=bundled")
    line = failed("train", "recipe.yaml", *keys, *dry, "--output", "run")

    assert line.startswith("data.split_by: the bundled base has seen functions")
    assert "python -m searchr3.training.base OUTPUT --split-by package" in line and "model.base" in line
    assert not Path("run").exists()


def test_a_template_longer_than_max_length(here: Path) -> None:
    assert train("model.max_length=9").startswith("max_length 9 leaves no room")


def test_conversations_longer_than_the_model_was_made_for(here: Path) -> None:
    line = train("model.max_length=2044")

    assert line.startswith("model.max_length: 2044 tokens and 4 of reasoning are more than the 2048 of ")
    assert line.endswith("; set them lower")


def test_layers_that_lora_does_not_find(here: Path, toy_recipe: MakeRecipe) -> None:
    line = train("model.lora={target_modules: [q_prj]}")

    assert line.startswith("model.lora: ") and "q_prj" in line
    assert train("model.lora={target_modules: 'q_proj('}").startswith("model.lora: ")
    make_base_model(toy_recipe("model.lora={target_modules: [q_proj]}"))  # and there it is found


@pytest.mark.parametrize("setting", ["seed", "=3", " =3"])
def test_a_setting_that_is_no_pair(here: Path, setting: str) -> None:
    assert train(setting).startswith(repr(setting))


def test_after_the_mend_the_same_command_runs(here: Path) -> None:
    """A fault in the data leaves nothing that would have to be resumed or removed first."""
    qrels = here / "toy" / "qrels" / "dev.tsv"
    good = qrels.read_text(encoding="utf-8")
    qrels.write_text(good + "q5\tnobody\t1\n", encoding="utf-8")
    train()
    qrels.write_text(good, encoding="utf-8")

    result = CliRunner().invoke(app, ["train", "recipe.yaml", "--output", "run"])

    assert result.exit_code == 0, result.output
    assert (here / "run" / "report.html").is_file()


def test_a_model_without_the_embed_token_embeds_nothing(here: Path, tiny_base: Path) -> None:
    assert CliRunner().invoke(app, ["train", "recipe.yaml", "--output", "run"]).exit_code == 0
    shutil.rmtree("run/stage2")
    shutil.copytree(tiny_base, "run/stage2")

    for line in (
        failed("search", "parse a date", "--run", "run"),
        failed("evaluate", str(tiny_base), "--data", "toy", "--output", "results.json"),
    ):
        assert "the tokenizer has no <|embed_token|>" in line
    assert not Path("results.json").exists()


# A full disk


def full_disk(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def torch_on_a_full_disk(*_: Any, **__: Any) -> None:
    raise RuntimeError(
        "[enforce fail at inline_container.cc:678] . PytorchStreamWriter failed writing file data/0"
    )


@pytest.mark.parametrize(
    ("place", "stand_in", "left"),
    [
        ("searchr3.runs.pipeline.write_text", full_disk, set()),
        ("searchr3.dataset.types.write_jsonl", full_disk, {"recipe.yaml", "progress.json"}),
        ("transformers.PreTrainedModel.save_pretrained", full_disk, {"recipe.yaml", "data", "progress.json"}),
        ("torch.save", torch_on_a_full_disk, {"recipe.yaml", "data", "base", "checkpoints", "progress.json"}),
        (
            "safetensors.numpy.save_file",
            full_disk,
            {"recipe.yaml", "data", "base", "stage1", "stage2", "checkpoints", "progress.json"},
        ),
    ],
    ids=["recipe", "data", "base", "checkpoint", "vectors"],
)
def test_a_full_disk_is_one_line_and_nothing_is_half_written(
    here: Path, place: str, stand_in: Callable[..., None], left: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And once there is room, --resume goes on."""
    steps = ("stage1.steps=1", "stage1.evaluate_every=1")
    with monkeypatch.context() as patch:
        patch.setattr(place, stand_in)
        line = failed("train", "recipe.yaml", *steps, "--output", "run")

    assert "no space left on the disk" in line
    assert {path.name for path in Path("run").glob("*")} == left
    result = CliRunner().invoke(app, ["train", "recipe.yaml", *steps, "--output", "run", "--resume"])
    assert result.exit_code == 0, result.output
    assert {path.name for path in Path("run").glob(".*")} == set()


# Who may begin


def begin(path: Path, recipe: Recipe, resume: bool) -> RunFolder:
    run = RunFolder(path, recipe, Screen())
    run._admit(resume)
    return run


def test_a_new_folder_an_empty_one_and_an_interrupted_run_are_admitted(
    tmp_path: Path, toy_recipe: MakeRecipe
) -> None:
    begin(tmp_path / "new", toy_recipe(), resume=False)
    begin(tmp_path / "new", toy_recipe(), resume=True)
    begin(tmp_path, toy_recipe(), resume=False)
    used = {"recipe": toy_recipe().dump(), "machine": machine()}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(used), encoding="utf-8")
    (tmp_path / "progress.json").write_text('{"data": 2.5}', encoding="utf-8")

    assert begin(tmp_path, toy_recipe(), resume=True).seconds == {"data": 2.5}
    with pytest.raises(SearchR3Error, match="holds an interrupted run; continue it with --resume or choose"):
        begin(tmp_path, toy_recipe(), resume=False)
    with pytest.raises(RecipeError, match="another recipe"):
        begin(tmp_path, toy_recipe("stage1.steps=5"), resume=True)


def test_two_runs_never_share_a_folder(here: Path) -> None:
    taken = "run: another run is at work there; wait for its end, or choose another folder with --output"
    with alone(here / "run", "taken"):
        assert failed("train", "recipe.yaml", "--output", "run") == taken
        assert [path.name for path in Path("run").iterdir()] == [".lock"]
    with alone(here / "run", "taken"):
        shutil.copy("recipe.yaml", "run/recipe.yaml")
        for resume in ((), ("--resume",)):
            assert failed("train", "recipe.yaml", "--output", "run", *resume) == taken
    (here / "run" / ".lock").touch()  # as a killed run leaves it
    result = CliRunner().invoke(app, ["train", "recipe.yaml", "--output", "run", "--resume"])
    assert result.exit_code == 0, result.output
    assert not list(Path("run").glob(".*"))


def test_a_run_that_was_killed_before_it_wrote_anything_begins_anew(here: Path) -> None:
    Path("run").mkdir()
    Path("run/.lock").touch()
    assert CliRunner().invoke(app, ["train", "recipe.yaml", "--output", "run"]).exit_code == 0


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"data": "x"}', '{"data": null}'])
def test_a_clock_that_is_damaged_does_not_end_a_run(
    tmp_path: Path, toy_recipe: MakeRecipe, content: str
) -> None:
    used = {"recipe": toy_recipe().dump(), "machine": machine()}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(used), encoding="utf-8")
    (tmp_path / "progress.json").write_text(content, encoding="utf-8")
    assert begin(tmp_path, toy_recipe(), resume=True).seconds == {}


def test_the_seconds_before_a_kill_count(
    tmp_path: Path, toy_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("searchr3.progress._QUIET", 0.0)
    run = RunFolder(tmp_path, toy_recipe(), Screen())
    run.record()
    with run.phase("stage1", "preparing"):
        time.sleep(0.2)
        run.screen.training({"stage": "stage1", "step": 1, "steps": 9})
        known = json.loads((tmp_path / "progress.json").read_text(encoding="utf-8"))  # all that a kill leaves
        assert known["stage1"] >= 0.2
        (tmp_path / "killed").write_text(json.dumps(known), encoding="utf-8")
    run.screen.training({"stage": "stage1", "step": 2, "steps": 9})  # of no phase

    (tmp_path / "killed").replace(tmp_path / "progress.json")
    again = RunFolder(tmp_path, toy_recipe(), Screen())
    again.take_up()
    with again.phase("stage1", "preparing"):
        time.sleep(0.1)
    assert again.seconds["stage1"] >= known["stage1"] + 0.1 - 1e-9


def test_how_a_run_is_measured_may_change_when_it_is_resumed(here: Path, toy_recipe: MakeRecipe) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("searchr3.training.stage2.train_stage2", full_disk)
        assert "no space left" in failed("train", "recipe.yaml", "stage2.steps=1", "--output", "run")
    mended = ("train", "recipe.yaml", "stage2.steps=1", "evaluation.depth=120", "evaluation.baselines=[]")

    assert "another recipe" in failed(*mended, "seed=1", "--output", "run", "--resume")
    result = CliRunner().invoke(app, [*mended, "--output", "run", "--resume"])

    assert result.exit_code == 0, result.output
    assert load_recipe("run/recipe.yaml").evaluation.depth == 120
    stages = json.loads(Path("run/metrics.json").read_text(encoding="utf-8"))["stages"]
    assert [[run["name"] for run in one["runs"]] for one in stages.values()] == [["direct", "reasoned"]] * 2


def test_a_baseline_that_reads_thoughts_is_measured_anew_after_each_stage(
    here: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def moved(model: SearchR3, *_: Any) -> list[Any]:
        with torch.no_grad():
            model.model.get_input_embeddings().weight.add_(0.5)
        return []

    monkeypatch.setattr("searchr3.training.stage2.train_stage2", moved)
    found: dict[str, Results] = {}
    finish = RunFolder._finish
    monkeypatch.setattr(
        RunFolder, "_finish", lambda run, data, results: (found.update(results), finish(run, data, results))
    )
    rewriting = f"rewrite:{tiny_model}"

    asked = ("train", "recipe.yaml", "stage2.steps=1", f"evaluation.baselines=[bm25, '{rewriting}']")
    result = CliRunner().invoke(app, [*asked, "--output", "run"])

    assert result.exit_code == 0, result.output
    first, second = found["stage1"], found["stage2"]
    assert first.run("reasoned").thoughts != second.run("reasoned").thoughts
    for one in (first, second):
        assert one.run(rewriting).thoughts == one.run("reasoned").thoughts
    assert first.run("bm25") is second.run("bm25")


def test_a_run_is_named_after_its_recipe(here: Path) -> None:
    Path("runs/recipe").mkdir(parents=True)
    Path("runs/recipe/thesis.tex").touch()

    assert failed("train", "recipe.yaml").startswith("runs/recipe: exists and is not a run; choose another")


@pytest.mark.parametrize("resume", [True, False])
def test_somebody_elses_folder_is_left_alone(tmp_path: Path, toy_recipe: MakeRecipe, resume: bool) -> None:
    (tmp_path / "thesis.tex").write_text("", encoding="utf-8")

    with pytest.raises(SearchR3Error, match="exists and is not a run"):
        begin(tmp_path, toy_recipe(), resume)


def test_a_finished_run_is_not_resumed(tmp_path: Path, toy_recipe: MakeRecipe) -> None:
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(toy_recipe().dump()), encoding="utf-8")
    (tmp_path / "report.html").write_text("", encoding="utf-8")

    with pytest.raises(SearchR3Error, match="finished run; there is nothing to resume"):
        begin(tmp_path, toy_recipe(), resume=True)
    with pytest.raises(SearchR3Error, match="finished run; choose another folder with --output"):
        begin(tmp_path, toy_recipe(), resume=False)


def test_traces_are_made_where_the_queries_bring_none(here: Path, toy_recipe: MakeRecipe) -> None:
    data = RetrievalDataset.load("toy")
    bare = replace(data.without_reasoning(), name="bare")
    bare.save("bare")

    made = make_dataset(toy_recipe("data.source=bare"))
    none = make_dataset(toy_recipe("data.source=bare", "data.trace_words=0"))
    theirs = make_dataset(toy_recipe("data.source=toy"))
    drafts = make_dataset(toy_recipe("data.source=bare", "data.trace=beginning", "data.trace_words=2"))

    with_trace = {key for key, query in made.queries.items() if query.reasoning}
    assert with_trace == set(made.split("stage1"))
    assert all(len(made.queries[key].reasoning.split()) <= 3 for key in with_trace)  # type: ignore[union-attr]
    for key, judged in drafts.split("stage1").items():
        assert (
            drafts.queries[key].reasoning == bare.corpus[next(iter(judged))].title
        )  # two words, at its head
    assert none.queries == bare.queries
    assert theirs.queries == data.queries


# Evaluation


def test_no_trace_reaches_evaluation(
    tmp_path: Path, toy: RetrievalDataset, toy_recipe: MakeRecipe, tiny_model: Path
) -> None:
    """A data set whose traces give every answer away is measured like one without any."""
    answers = {
        query: toy.corpus[document].content * 3
        for qrels in toy.qrels.values()
        for query, grades in qrels.items()
        for document in grades
    }
    poisoned = replace(
        toy, queries={key: replace(query, reasoning=answers[key]) for key, query in toy.queries.items()}
    )
    run = RunFolder(tmp_path, toy_recipe(), Screen())

    clean, given_away = (
        run.measure("stage", SearchR3(tiny_model, dtype="float32"), dataset, ["bm25"])
        for dataset in (toy.without_reasoning(), poisoned)
    )

    assert [one.name for one in clean.runs + clean.baselines] == ["direct", "reasoned", "bm25"]
    for a, b in zip(clean.runs + clean.baselines, given_away.runs + given_away.baselines, strict=True):
        assert (a.values, a.hits, a.thoughts) == (b.values, b.hits, b.thoughts)


def test_stage_2_gets_the_vectors_of_the_documents_that_may_be_trained_on(
    tmp_path: Path, toy: RetrievalDataset, toy_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    held_out = frozenset(list(toy.corpus)[::3])
    dataset = replace(toy, held_out=held_out)
    seen: list[Any] = []
    monkeypatch.setattr("searchr3.training.stage2.train_stage2", lambda *arguments: seen.append(arguments))
    rows = np.arange(len(toy.corpus), dtype=np.float32)[:, None]

    RunFolder(tmp_path, toy_recipe(), Screen()).train_stage("stage2", None, dataset, tmp_path, rows)  # type: ignore[arg-type]

    assert seen[0][5][:, 0].tolist() == [row for row, key in enumerate(toy.corpus) if key not in held_out]


# Fewer labels


def test_fewer_labelled_queries_are_nested_and_change_nothing_else(
    toy: RetrievalDataset, toy_recipe: MakeRecipe
) -> None:
    few, more = (
        limited(toy, toy_recipe(f"data.stage1_queries={n}", "data.stage2_queries=5")) for n in (9, 30)
    )

    assert few.qrels["stage1"].items() < more.qrels["stage1"].items() < toy.qrels["stage1"].items()
    assert (len(few.qrels["stage1"]), len(more.qrels["stage1"]), len(few.qrels["stage2"])) == (9, 30, 5)
    assert few.corpus == toy.corpus
    assert [few.qrels[split] for split in ("dev", "test")] == [toy.qrels[split] for split in ("dev", "test")]
    assert limited(more, toy_recipe("data.stage1_queries=9")).qrels["stage1"] == few.qrels["stage1"]
    assert limited(toy, toy_recipe("data.stage1_queries=5000")).qrels == toy.qrels


def test_a_run_learns_from_fewer_queries_and_keeps_all(
    here: Path, toy_recipe: MakeRecipe, toy: RetrievalDataset
) -> None:
    recipe = toy_recipe("data.source=toy", "data.stage1_queries=20")

    made, _ = begin(Path("run"), recipe, resume=False).begin()
    found, _ = begin(Path("run"), recipe, resume=True).begin()

    assert len(made.qrels["stage1"]) == 20 and found.qrels == made.qrels
    assert RetrievalDataset.load("run/data").qrels == toy.qrels


# Search


def test_search_needs_a_finished_run(tmp_path: Path) -> None:
    with pytest.raises(SearchR3Error, match="not a run folder; make one"):
        search("query", tmp_path)
    (tmp_path / "recipe.yaml").write_text("recipe: {}\nmachine: {}\n", encoding="utf-8")
    with pytest.raises(SearchR3Error, match="not finished; continue it with --resume"):
        search("query", tmp_path)


def test_search_finds_what_the_model_ranks_first(here: Path) -> None:
    assert CliRunner().invoke(app, ["train", "recipe.yaml", "--output", "run"]).exit_code == 0
    model, data = SearchR3("run/stage2", dtype="float32"), RetrievalDataset.load("run/data")
    query = "parse the date strictly"

    direct = search(query, Path("run"), k=3, reasoning=False)
    thought = search(query, Path("run"), k=1000)

    documents = model.encode_document([one.content for one in data.corpus.values()])
    scores = (model.encode_query([query]) @ documents.T)[0]
    ids = list(data.corpus)
    assert [hit.document_id for hit in direct.hits] == [ids[row] for row in np.argsort(-scores)[:3]]
    assert [hit.rank for hit in direct.hits] == [1, 2, 3]
    np.testing.assert_allclose([hit.score for hit in direct.hits], np.sort(scores)[::-1][:3], atol=1e-3)
    assert direct.hits[0].title == data.corpus[direct.hits[0].document_id].title
    assert (direct.reasoning, direct.thinking_tokens) == ("", 0)
    (expected,) = model.generate(batch=[query], max_new_tokens=4)
    assert (thought.reasoning, thought.thinking_tokens) == (expected.text, len(expected.token_ids))
    assert len(thought.hits) == 150
    assert (thought.thought, direct.thought) == (True, False)
    with pytest.raises(
        SearchR3Error, match=r"has no rule .* searchr3 adapt run/stage2 --data run/data --max"
    ):
        search(query, Path("run"), reasoning="auto")
    for threshold, same in ((None, direct), (0.0, thought)):
        Adaptive("margin", threshold).save(Path("run/stage2"))
        auto = search(query, Path("run"), k=len(same.hits), reasoning="auto")
        assert (auto.reasoning, auto.thought) == (same.reasoning, same.thought)
        assert [hit.document_id for hit in auto.hits] == [hit.document_id for hit in same.hits]


def test_search_tells_the_instruction(here: Path) -> None:
    run = ("train", "recipe.yaml", "data.instruction=Find code.", "--output", "run")
    assert CliRunner().invoke(app, [*run]).exit_code == 0
    model, data = SearchR3("run/stage2", dtype="float32"), RetrievalDataset.load("run/data")
    documents = model.encode_document([one.content for one in data.corpus.values()])

    hits = search("parse the date strictly", Path("run"), k=3, reasoning=False).hits

    assert data.instruction == "Find code."
    scores = model.encode_query(["parse the date strictly"], instruction="Find code.")[0] @ documents.T
    np.testing.assert_allclose([hit.score for hit in hits], np.sort(scores)[::-1][:3], atol=1e-3)


# Mixtures


def test_a_run_keeps_its_own_copy_of_further_sources(
    here: Path, toy_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = RetrievalDataset.load("toy").without_reasoning()
    data.save("more")
    mixture = "data.mixture=[{source: more, instruction: Find code.}]"
    recipe = toy_recipe("data.source=toy", mixture, "stage2.steps=0")
    seen: list[Any] = []
    monkeypatch.setattr("searchr3.training.stage1.train_stage1", lambda *arguments: seen.append(arguments))

    def trained() -> RetrievalDataset:
        run = begin(Path("run"), recipe, resume=Path("run").is_dir())
        dataset, model = run.begin()
        run.train_stage("stage1", model, dataset, Path("checkpoints"), None)
        return seen[-1][5][0]

    first = trained()
    shutil.rmtree("more")

    assert trained() == first == RetrievalDataset.load("run/mixture/more")
    assert first.instruction == "Find code."
    traced = {key for key, query in first.queries.items() if query.reasoning}
    assert traced == set(data.qrels["stage1"]) | set(data.qrels["stage2"])


def test_what_is_measured_is_not_trained_on_in_a_further_source(here: Path, toy_recipe: MakeRecipe) -> None:
    data = RetrievalDataset.load("toy")
    measured = [key for split in ("dev", "test") for key in data.qrels[split]]
    texts = {data.queries[key].text.casefold() for key in measured}
    qrels = {"stage1": data.qrels["stage1"] | data.qrels["test"], "stage2": data.qrels["dev"]}
    loud = {key: replace(query, text=f" {query.text.upper()} ") for key, query in data.queries.items()}
    replace(data, queries=loud, qrels=qrels).save("more")  # the same questions, written otherwise

    (more,) = make_sources(toy_recipe("data.mixture=[{source: more}]", "stage1.steps=1"), data)

    trained = {more.queries[key].text.strip().casefold() for split in more.qrels.values() for key in split}
    assert trained and not trained & texts
    assert set(more.qrels["stage1"]) == set(data.qrels["stage1"]) and "stage2" not in more.qrels


def test_faults_of_further_sources(here: Path) -> None:
    RetrievalDataset.load("toy").save("more")
    assert train("stage1.steps=1", "data.mixture=[{source: nowhere/x}]").startswith("nowhere/x: ")
    few = train("stage1.steps=1", "stage1.batch_size=512", "data.mixture=[{source: more}]")
    assert few.startswith("data.mixture: the source 'more' has ")
    assert "leaves no room" in train(f"data.mixture=[{{source: more, instruction: {'word ' * 99}}}]")
    dry = CliRunner().invoke(
        app, ["train", "recipe.yaml", "stage1.steps=1", "data.mixture=[{source: more}]", "--dry-run"]
    )
    assert "# mixture: more, 150 documents, 150 queries" in dry.stdout


def test_the_bundled_base_is_there() -> None:
    assert json.loads((bundled_base() / "config.json").read_text(encoding="utf-8"))["model_type"] == "qwen3"


def test_why_a_model_was_not_held_against_its_base_is_told() -> None:
    told = _chat_lines({"stage1": {"kl_base_trained": 0.1}, "stage2": {"skipped": "out of memory"}})
    assert told == ["Whether stage2 still chats was not measured: out of memory"]


def test_alarms_are_told_at_the_end_and_whether_one_ended_the_stage() -> None:
    alarms = [{"step": 12, "name": "length", "value": 2.0, "threshold": 3.0, "message": "shrunk; do this"}]

    told = _alarm_lines(alarms, load_recipe({}))
    stopped = _alarm_lines(alarms, load_recipe({}, ["stage2.health.stop=true", "stage2.steps=40"]))

    assert told == ["Alarm at step 12 of stage 2: shrunk; do this."]
    assert stopped[:1] == told and "after 12 of 40 steps" in stopped[1]
    assert _alarm_lines([], load_recipe({}, ["stage2.health.stop=true"])) == []
