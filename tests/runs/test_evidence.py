"""`searchr3 evidence`: everything once, whatever interrupted it, and the whole of it for real on a toy."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from typer.testing import CliRunner

from searchr3.cli import app
from searchr3.dataset import RetrievalDataset
from searchr3.errors import RecipeError, SearchR3Error
from searchr3.evaluation import Hit, Results, Run
from searchr3.evaluation.controls import CONTROLS
from searchr3.evaluation.evidence import RUNS, TO_BEAT
from searchr3.model import SearchR3
from searchr3.ranking import METRICS
from searchr3.runs.evidence import Plan, gather
from searchr3.runs.pipeline import train
from searchr3.training.checkpoints import BEST
from searchr3.training.recipe import Recipe
from searchr3.training.recipe_file import load_recipe

PLACES = {
    "direct1": ("stage1", "direct"),
    "reasoned1": ("stage1", "reasoned"),
    "direct2": ("stage2", "direct"),
    "reasoned2": ("stage2", "reasoned"),
    "control_a": ("direct_only", "direct"),
    "control_b": ("no_policy", "reasoned"),
    "control_b_direct": ("no_policy", "direct"),
    "control_c": ("no_contrastive", "reasoned"),
    "control_c_direct": ("no_contrastive", "direct"),
    "control_d": ("stage2", "other_trace"),
    "control_e": ("stage2", "filler"),
    "control_f": ("stage2", "repeated"),
    "control_g": ("stage2", "bm25+trace"),
}
"""Figure of the evidence → the model and the run of it that it must come from."""

SHORT = ("data.source=toy", "stage2.contrastive=0.5", "data.stage1_queries=40", "data.dev_queries=2")


@pytest.fixture
def here(tmp_path: Path, toy: RetrievalDataset, toy_recipe: Any, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with `toy/` and `recipe.yaml`."""
    toy.save(tmp_path / "toy")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(toy_recipe(*SHORT).dump()), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Stage:
    """Stands in for training and measuring: quick, and it tells what was done, from which start.

    Attributes:
        done: what was trained or measured, in order.
        left: so many may still be done, then the next is interrupted.
        dev: what is trained and seed → its dev score.
        looks: of stage 1, where it looked at dev several times: seed → (direct, reasoned) each time.
        start_counts: what may be left as it began, if dev wants it so.
    """

    def __init__(self, toy: RetrievalDataset) -> None:
        self.done: list[tuple[Any, ...]] = []
        self.left = 10**9
        self.dev: dict[tuple[str, int], float] = {}
        self.looks: dict[int, list[tuple[float, float]]] = {}
        self.start_counts: set[str] = set()
        self.ids = tuple(toy.qrels["test"])

    def _one(self, *what: Any) -> None:
        if not self.left:
            raise KeyboardInterrupt
        self.left -= 1
        self.done.append(what)

    def _train(self, stage: str, model: SearchR3, dataset: RetrievalDataset, recipe: Recipe) -> list[Any]:
        weight = model.model.model.norm.weight
        what = recipe.name.partition(", ")[2] or stage
        labels = len(dataset.split("stage1"))
        self._one(what, recipe.seed, labels, round(weight[0].item(), 2))
        with torch.no_grad():
            weight[0] = {"stage1": 2.0, "stage2": 3.0}[stage] + 0.1 * recipe.seed
        dev = self.dev.get((what, recipe.seed), 0.5)
        looks = (self.looks.get(recipe.seed) if what == "stage1" else None) or [(dev, dev)]
        return [{"gradient_tokens": 10_000, "eval_direct": a, BEST: (a + b) / 2} for a, b in looks]

    def train_stage1(self, model: SearchR3, dataset: Any, recipe: Recipe, *_: Any, **how: Any) -> list[Any]:
        if how.get("start_counts"):
            self.start_counts.add(recipe.name.partition(", ")[2])
        return self._train("stage1", model, dataset, recipe)

    def train_stage2(self, model: SearchR3, dataset: Any, recipe: Recipe, *_: Any, **__: Any) -> list[Any]:
        return self._train("stage2", model, dataset, recipe)

    def evaluate(self, model: Any, dataset: Any, **asked: Any) -> Results:
        reasoning, controls = asked.get("reasoning", "both"), asked.get("controls", ())
        self._one("measured", asked["name"], reasoning, tuple(controls))
        names = ["direct", *(["reasoned"] if reasoning == "both" else []), *controls]
        runs = tuple(self.run(name, asked["name"]) for name in names)
        return Results(asked["name"], "toy", "test", 150, self.ids, runs)

    def run(self, name: str, of: str) -> Run:
        rng = np.random.default_rng([*map(ord, name + of)])
        values = {
            metric: dict(zip(self.ids, rng.uniform(size=len(self.ids)), strict=True)) for metric in METRICS
        }
        thoughts = {key: _Thought(key != self.ids[0]) for key in self.ids} if name == "reasoned" else {}
        return Run(name, values, {key: [Hit("d0", 1.0)] for key in self.ids}, 1.0, thoughts)


class _Thought:
    text, token_ids = "one two", (1, 2)

    def __init__(self, emitted: bool) -> None:
        self.emitted = emitted


@pytest.fixture
def stage(toy: RetrievalDataset, monkeypatch: pytest.MonkeyPatch) -> Stage:
    stand_in = Stage(toy)
    monkeypatch.setattr("searchr3.training.stage1.train_stage1", stand_in.train_stage1)
    monkeypatch.setattr("searchr3.training.stage2.train_stage2", stand_in.train_stage2)
    monkeypatch.setattr("searchr3.evaluation.evaluate", stand_in.evaluate)
    return stand_in


def without_clock(found: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in found.items() if key != "seconds"}


# What is done


def test_every_arm_begins_with_the_seeds_own_stage_1(here: Path, stage: Stage) -> None:
    gather("recipe.yaml", output=Path("out"), plan=Plan(seeds=2))

    trained = [one for one in stage.done if one[0] != "measured"]
    start = round(SearchR3("out/base").model.model.norm.weight[0].item(), 2)
    for seed, of_stage1 in ((0, 2.0), (1, 2.1)):
        assert [one for one in trained if one[1] == seed] == [
            ("stage1", seed, 40, start),
            ("stage2", seed, 40, of_stage1),
            ("direct_only", seed, 43, of_stage1),  # all 43 queries of stage 2
            ("direct_only_stage1_rate", seed, 43, of_stage1),
            ("no_policy", seed, 40, of_stage1),
            ("no_contrastive", seed, 40, of_stage1),
        ]
    assert stage.start_counts == {"direct_only", "direct_only_stage1_rate"}
    measured = {one[1:] for one in stage.done if one[0] == "measured"}
    assert measured == {
        *(
            (f"seed-{seed} {name}", "both", ())
            for seed in (0, 1)
            for name in ("stage1", "no_policy", "no_contrastive")
        ),
        *((f"seed-{seed} stage2", "both", CONTROLS) for seed in (0, 1)),
        *((f"seed-{seed} direct_only", "off", ()) for seed in (0, 1)),
        *((f"seed-{seed} direct_only_stage1_rate", "off", ()) for seed in (0, 1)),
    }
    assert load_recipe("out/seed-1/recipe.yaml").seed == 1
    assert load_recipe("out/seed-1/no_policy/recipe.yaml").stage2.policy_gradient == 0
    assert RetrievalDataset.load("out/data").qrels == RetrievalDataset.load("toy").qrels  # uncut


def test_the_figures_are_those_of_the_right_runs(here: Path, stage: Stage) -> None:
    found = gather("recipe.yaml", output=Path("out"), plan=Plan(seeds=2))

    for name, (model, run) in PLACES.items():
        runs = [stage.run(run, f"seed-{seed} {model}").values["ndcg@10"] for seed in (0, 1)]
        assert found[name] == pytest.approx(np.mean([[*values.values()] for values in runs]))
    assert PLACES.keys() | {"bm25", "rival"} == RUNS.keys()
    assert "rival" not in found and found["bm25"] > 0.5
    assert found["complete"] and found["seeds"] == [0, 1]
    one_forced = 1 - 1 / len(stage.ids)
    assert (found["thinking_tokens"], found["emission_rate"]) == (2.0, pytest.approx(one_forced))
    assert found["gradient_tokens_stage2"] == found["gradient_tokens_direct_only"] == 10_000
    assert set(found["seconds"]) >= {"stage1", "stage2 evaluation", "direct_only"}
    assert found["verdict"]["thinking_helped"] is False
    assert found == json.loads(Path("out/evidence.json").read_text(encoding="utf-8"))
    assert found["verdict"]["sentences"][0] in Path("out/evidence.html").read_text(encoding="utf-8")


def test_seeds_are_counted_from_the_recipes_own(here: Path, stage: Stage) -> None:
    found = gather("recipe.yaml", ["seed=5"], Path("out"), Plan(seeds=2))
    assert found["seeds"] == [5, 6] == sorted({one[1] for one in stage.done if one[0] == "stage1"})


def test_queries_are_paired_in_whatever_order_a_file_holds_them(here: Path, stage: Stage) -> None:
    plan = Plan(seeds=2)
    found = gather("recipe.yaml", output=Path("out"), plan=plan)
    place = here / "out" / "seed-1" / "results" / "stage2.queries.parquet"
    table = pq.read_table(place)
    pq.write_table(table.take(np.arange(len(table))[::-1]), place)
    again = gather("recipe.yaml", output=Path("out"), plan=plan, resume=True)
    assert without_clock(again) == without_clock(found)


def test_tokens_and_seconds_are_means_over_the_seeds_of_the_right_training(here: Path, stage: Stage) -> None:
    plan = Plan(seeds=2)
    gather("recipe.yaml", output=Path("out"), plan=plan)
    trained = {
        "stage2": "checkpoints/stage2.curve.json",
        "direct_only": "direct_only/checkpoints/stage1.curve.json",
        "no_policy": "no_policy/checkpoints/stage2.curve.json",
        "no_contrastive": "no_contrastive/checkpoints/stage2.curve.json",
    }
    for seed in (0, 1):
        folder = here / "out" / f"seed-{seed}"
        for number, curve in enumerate(trained.values()):
            row = {"gradient_tokens": 1000 * number + 10 * seed, "eval_direct": 0.5, BEST: 0.5}
            (folder / curve).write_text(json.dumps([row]), encoding="utf-8")
        clock = {f"seed-{seed} stage1": 2.0 + seed, f"seed-{seed} stage2": 4.0 + seed}
        (folder / "progress.json").write_text(json.dumps(clock), encoding="utf-8")

    found = gather("recipe.yaml", output=Path("out"), plan=plan, resume=True)

    for number, name in enumerate(trained):
        assert found[f"gradient_tokens_{name}"] == 1000 * number + 5
    assert found["seconds"] == {"stage1": 2.5, "stage2": 4.5}


def test_control_a_is_at_the_rate_that_is_better_on_dev_seed_by_seed(here: Path, stage: Stage) -> None:
    stage.dev = {("direct_only", 0): 0.4, ("direct_only_stage1_rate", 1): 0.3}  # the others: 0.5

    found = gather("recipe.yaml", output=Path("out"), plan=Plan(seeds=2))

    slow, fast = found["control_a_rates"]
    assert (slow["learning_rate"], fast["learning_rate"]) == (0.001, 0.003)
    assert (slow["dev"], fast["dev"]) == ([0.4, 0.5], [0.5, 0.3])
    assert (slow["chosen"], fast["chosen"]) == ([False, True], [True, False])
    assert found["control_a"] == pytest.approx((fast["ndcg@10"][0] + slow["ndcg@10"][1]) / 2)
    assert fast["ndcg@10"][0] != slow["ndcg@10"][0]

    stage.done.clear()
    alone = gather("recipe.yaml", output=Path("alone"), plan=Plan(seeds=1, both_rates=False))
    assert "direct_only_stage1_rate" not in {one[0] for one in stage.done}
    assert [one["chosen"] for one in alone["control_a_rates"]] == [[True]]


def test_what_direct_search_gives_up_as_stage_1_is_chosen_for_both_forms_is_told(
    here: Path, stage: Stage
) -> None:
    stage.looks = {0: [(0.7, 0.3), (0.66, 0.6), (0.6, 0.6)], 1: [(0.5, 0.4), (0.6, 0.5)]}

    found = gather("recipe.yaml", output=Path("out"), plan=Plan(seeds=2, labels=(20,)))

    assert found["direct1_given_up"] == pytest.approx((0.04 + 0.0) / 2)
    assert [point["direct1_given_up"] for point in found["labels"]] == pytest.approx([0.04, 0.02])
    assert "it would have been 0.020 above" in Path("out/evidence.html").read_text(encoding="utf-8")


def test_killed_at_every_turn_it_does_everything_once(here: Path, stage: Stage) -> None:
    plan = Plan(seeds=1)
    expected = without_clock(gather("recipe.yaml", output=Path("whole"), plan=plan))
    everything, stage.done = stage.done, []

    killed = 0
    while True:
        stage.left = 1
        try:
            found = gather("recipe.yaml", output=Path("out"), plan=plan, resume=killed > 0)
            break
        except KeyboardInterrupt:
            killed += 1

    assert killed == len(everything) - 1 == 11
    assert stage.done == everything
    assert without_clock(found) == expected


def test_more_may_be_asked_for_later(here: Path, stage: Stage, tiny_model: Path) -> None:
    gather("recipe.yaml", output=Path("out"), plan=Plan(seeds=1))
    stage.done.clear()

    more = Plan(2, (20, 40), label_seeds=1, rival=str(tiny_model))
    found = gather("recipe.yaml", output=Path("out"), plan=more, resume=True)

    trained = [one[:3] for one in stage.done if one[0] in ("stage1", "stage2")]
    assert trained == [("stage1", 1, 40), ("stage2", 1, 40), ("stage1", 0, 20), ("stage2", 0, 20)]
    assert found["seeds"] == [0, 1]
    assert [(point["labels"], point["seeds"]) for point in found["labels"]] == [(20, 1), (40, 2)]
    assert found["labels"][1]["reasoned2"] == found["reasoned2"]  # the recipe's own number is no new run
    assert 0 <= found["rival"] <= 1

    other = replace(more, rival=str(shutil.copytree(tiny_model, here / "other_rival")))
    gather("recipe.yaml", output=Path("out"), plan=other, resume=True)
    assert json.loads(Path("out/results/rival.json").read_text(encoding="utf-8"))["model"] == other.rival


def test_what_is_there_is_told_though_less_is_asked_for(here: Path, stage: Stage, tiny_model: Path) -> None:
    asked = Plan(seeds=2, labels=(20,), rival=str(tiny_model))
    found = gather("recipe.yaml", output=Path("out"), plan=asked)
    stage.done.clear()

    few = Plan(seeds=1, stage2_arms=False, both_rates=False)
    again = gather("recipe.yaml", output=Path("out"), plan=few, resume=True)

    assert without_clock(again) == without_clock(found)
    assert {"rival", "control_b", "control_c"} <= found.keys() and stage.done == []
    assert len(found["control_a_rates"]) == 2 and len(found["labels"]) == 2


def test_copies_of_folders_are_no_seeds_and_damage_is_one_line(here: Path, stage: Stage) -> None:
    plan = Plan(seeds=1, labels=(20,))
    found = gather("recipe.yaml", output=Path("out"), plan=plan)
    for name in ("seed-0", "labels-20"):
        for copy in (f"{name} (copy)", f"{name}.bak"):
            shutil.copytree(here / "out" / name, here / "out" / copy)
    assert without_clock(gather("recipe.yaml", output=Path("out"), plan=plan, resume=True)) == without_clock(
        found
    )
    for name, mend in (
        ("seed-0/results/stage2.queries.parquet", "evaluate again"),
        ("seed-0/results/stage2.json", "searchr3 evaluate"),
        ("seed-0/checkpoints/stage2.curve.json", "go on with --resume"),
        ("results/bm25.json", "searchr3 evaluate"),
        ("evidence.json", "made again with --resume"),
    ):
        place = here / "out" / name
        whole = place.read_bytes()
        place.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(SearchR3Error, match=rf"{Path(name).name}: .*{mend}"):
            gather("recipe.yaml", output=Path("out"), plan=plan, resume=True)
        place.write_bytes(whole)


def test_evidence_so_far_is_told_after_every_seed(here: Path, stage: Stage) -> None:
    stage.left = 14
    with pytest.raises(KeyboardInterrupt):
        gather("recipe.yaml", output=Path("out"), plan=Plan(seeds=3))
    found = json.loads(Path("out/evidence.json").read_text(encoding="utf-8"))
    assert (found["complete"], found["seeds"]) == (False, [0])
    assert "not complete yet" in Path("out/evidence.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("done", [3, 12, 14])
def test_it_is_complete_only_when_all_that_was_asked_for_is_there(
    here: Path, stage: Stage, done: int
) -> None:
    """Killed in the first seed, between the seed and a point of the curve over labels, and in that."""
    stage.left, plan = done, Plan(seeds=1, labels=(20,))
    with pytest.raises(KeyboardInterrupt):
        gather("recipe.yaml", output=Path("out"), plan=plan)
    assert json.loads(Path("out/evidence.json").read_text(encoding="utf-8"))["complete"] is False
    stage.left = 10**9
    assert gather("recipe.yaml", output=Path("out"), plan=plan, resume=True)["complete"] is True


def test_without_a_contrastive_term_stage_1_is_what_reinforcement_must_be_above(
    here: Path, stage: Stage
) -> None:
    found = gather("recipe.yaml", ["stage2.contrastive=0"], Path("out"), Plan(seeds=1))
    assert not {one[0] for one in stage.done} & {"no_policy", "no_contrastive"}
    assert found["control_b"] == found["reasoned1"]
    assert "control_c" not in found


def test_a_base_that_has_read_the_pairs_is_named(here: Path, stage: Stage) -> None:
    gather("recipe.yaml", output=Path("plain"), plan=Plan(seeds=1))
    base = SearchR3("plain/base")
    base.save_pretrained(here / "taught")
    facts = {"sources": [{"name": "other", "kind": "data", "pairs": True}]}
    (here / "taught" / "base.json").write_text(json.dumps(facts), encoding="utf-8")
    taught = gather("recipe.yaml", ["model.base=taught"], Path("out"), Plan(seeds=1))
    plain = json.loads((here / "plain" / "evidence.json").read_text(encoding="utf-8"))
    for found, shown in ((plain, False), (taught, True)):
        assert found["base_was_shown_pairs"] == shown
        assert ("The base has read" in found["verdict"]["sentences"][-1]) == shown


def test_what_a_base_has_read_is_known_after_it_has_moved(here: Path, stage: Stage, tiny_base: Path) -> None:
    shutil.copytree(tiny_base, here / "taught")
    facts = {"sources": [{"name": "other", "kind": "data", "pairs": True}]}
    (here / "taught" / "base.json").write_text(json.dumps(facts), encoding="utf-8")
    overrides = ["model.base=taught"]
    gather("recipe.yaml", overrides, Path("out"), Plan(seeds=1))
    copy = Path("out/base/base.json")
    assert json.loads(copy.read_text(encoding="utf-8")) == facts

    (here / "taught").rename(here / "moved")
    for then in (lambda: None, copy.unlink):  # older versions kept no copy
        then()
        found = gather("recipe.yaml", overrides, Path("out"), Plan(seeds=1), resume=True)
        assert found["base_was_shown_pairs"] is True


# What is refused


@pytest.mark.parametrize(
    ("overrides", "plan", "message"),
    [
        (["stage2.steps=0"], Plan(), "evidence needs both stages; set both above 0"),
        ([], Plan(labels=(20, 900)), "--labels 900: toy has 64 labelled queries for stage 1; leave it out"),
        ([], Plan(rival="nowhere"), "baseline nowhere: neither bm25, nor a folder, nor a Hub id"),
        ([], Plan(rival="rewrite:some/model"), "rewrite:some/model: embeds the query with what the model"),
        (["data.stage2_queries=1"], Plan(), "wants 2 queries, but the split 'stage2' of toy has 1"),
    ],
)
def test_faults_are_told_before_anything_is_trained(
    here: Path, stage: Stage, overrides: list[str], plan: Plan, message: str
) -> None:
    with pytest.raises(SearchR3Error, match=message):
        gather("recipe.yaml", overrides, Path("out"), plan)
    assert stage.done == []


def test_only_its_own_folder_is_gone_on_with(here: Path, stage: Stage) -> None:
    (here / "other").mkdir()
    (here / "other" / "note.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(SearchR3Error, match="other: exists and holds no evidence; choose another folder"):
        gather("recipe.yaml", output=Path("other"), resume=True)
    (here / "run" / "checkpoints").mkdir(parents=True)
    (here / "run" / "recipe.yaml").write_text((here / "recipe.yaml").read_text(encoding="utf-8"))
    with pytest.raises(SearchR3Error, match="run: holds the run of another command; choose another folder"):
        gather("recipe.yaml", output=Path("run"), resume=True)

    gather("recipe.yaml", output=Path("out"), plan=Plan(seeds=1))

    with pytest.raises(SearchR3Error, match="out: holds evidence already; add to it with --resume or choose"):
        gather("recipe.yaml", output=Path("out"), plan=Plan(seeds=1))
    with pytest.raises(RecipeError, match="was begun with another recipe"):
        gather("recipe.yaml", ["stage2.steps=4"], Path("out"), Plan(seeds=1), resume=True)
    with pytest.raises(SearchR3Error, match="out: holds what `searchr3 evidence` gathers; choose another"):
        train("recipe.yaml", output=Path("out"), resume=True)


def test_numbers_of_labels_are_whole_and_above_0(here: Path) -> None:
    for wrong in ("many", "0,100", "-5"):
        result = CliRunner().invoke(app, ["evidence", "recipe.yaml", f"--labels={wrong}", "--output", "out"])
        assert result.exit_code == 2 and "whole numbers from 1 to" in result.output
    assert not Path("out").exists()


# For real


def test_the_command_on_a_toy(here: Path) -> None:
    """Two seeds of everything with a tiny model, a step or two each."""
    steps = ("stage1.steps=2", "stage2.steps=1", "stage2.evaluate_every=1")
    command = ["evidence", "recipe.yaml", *steps, "--seeds", "2", "--labels", "40", "--output", "out"]

    result = CliRunner().invoke(app, [*command, "--json"])

    assert result.exit_code == 0, result.output
    found = json.loads(Path("out/evidence.json").read_text(encoding="utf-8"))
    assert found == json.loads(result.stdout)
    assert {*TO_BEAT, *RUNS} - {"rival"} <= found.keys()
    tokens, equal = found["gradient_tokens_stage2"], found["gradient_tokens_direct_only"]
    steps_of_a = load_recipe("out/seed-0/direct_only/recipe.yaml").stage1.steps
    assert abs(tokens - equal) <= equal / steps_of_a
    assert [point["labels"] for point in found["labels"]] == [40]
    assert not list(Path("out").rglob("checkpoint-*"))  # nothing is left but models, curves and results

    again = CliRunner().invoke(app, [*command, "--resume"])
    assert again.exit_code == 0, again.output
    assert "reasoned 2 − it" in again.stdout and found["verdict"]["sentences"][0] in again.stdout
