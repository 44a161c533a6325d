"""The benchmarks: their short forms end and write a whole result; what they reckon with is right."""

import doctest
import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from searchr3.environment import Frozen, Full, Random
from searchr3.errors import SearchR3Error
from searchr3.ranking import METRICS
from searchr3.training.recipe_file import load_recipe

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
NAMES = sorted(path.stem for path in BENCHMARKS.glob("*.py") if not path.stem.startswith("_"))


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch):
    """Imports a file of `benchmarks/` as a module."""
    import importlib

    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


@pytest.mark.parametrize("name", ["_result", "_tables", "adaptive"])
def test_the_examples_hold(name: str, benchmark) -> None:
    found = doctest.testmod(benchmark(name))
    assert found.attempted and not found.failed


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_the_short_form_writes_a_result(name: str, tmp_path: Path) -> None:
    output = tmp_path / f"{name}.json"
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), "--quick", "--output", str(output)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=1200)

    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(output.read_text(encoding="utf-8"))
    assert set(result) == {"name", "commit", "command", "machine", "figures"}
    assert result["name"] == name
    assert result["figures"]
    assert all(value is None or math.isfinite(value) for value in result["figures"].values())


def test_parts_of_another_code_or_size_are_not_taken(benchmark, monkeypatch, tmp_path: Path) -> None:
    result = benchmark("_result")
    first = result.parts_folder(tmp_path, size={"steps": 5})
    assert result.parts_folder(tmp_path, size={"steps": 5}) == first
    assert json.loads((first / "about.json").read_text(encoding="utf-8"))["size"] == {"steps": 5}
    monkeypatch.setattr(result, "code", lambda: "another")
    second = result.parts_folder(tmp_path, size={"steps": 5})
    assert len({first, second, result.parts_folder(tmp_path, size={"steps": 6})}) == 3


def test_a_part_is_measured_once(benchmark, tmp_path: Path) -> None:
    result, asked = benchmark("_result"), []
    for _ in range(2):
        assert result.part(tmp_path / "speed.json", lambda: asked.append(1) or {"speed": 2.0}) == {
            "speed": 2.0
        }
    assert asked == [1]


def test_a_run_recorded_with_another_recipe_is_refused(benchmark, tmp_path: Path) -> None:
    (tmp_path / "meta.json").write_text(json.dumps({"recipe": load_recipe("quickstart", ["seed=1"]).dump()}))
    (tmp_path / "done").touch()
    record = benchmark("_trajectory").record
    record(tmp_path, tmp_path, None, load_recipe("quickstart", ["seed=1"]))  # is done
    with pytest.raises(SearchR3Error, match="recorded with another recipe"):
        record(tmp_path, tmp_path, None, load_recipe("quickstart"))


def test_rows_needed_lie_on_the_curve(benchmark) -> None:
    needed = benchmark("_growth").rows_needed
    assert needed([10, 100, 1000], [0.9, 0.98, 1.0]) == pytest.approx(10**2.5)
    assert needed([1000, 10, 100], [1.0, 0.9, 0.98]) == pytest.approx(10**2.5)  # in any order
    assert needed([10, 100], [0.995, 1.0]) == pytest.approx(10)  # fewer were not tried
    assert needed([10, 100], [0.5, 0.9]) is None
    assert needed([10, 100, 1000], [0.98, 0.991, 0.97]) is None  # it does not stay there


class Drifting:
    """A trajectory of 80 documents in 6 dimensions whose encoder turns a little at every step."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.ids = [f"d{row}" for row in range(80)]
        self.start, self.course = rng.standard_normal((2, 80, 6))
        self.encoded: dict[int, set[int]] = {}
        reward = SimpleNamespace(temperature=0.3)
        environment = SimpleNamespace(candidates=20)
        stage2 = SimpleNamespace(rollouts=4, reward=reward, environment=environment)
        self.recipe = SimpleNamespace(stage2=stage2)

    def corpus(self, step: int) -> np.ndarray:
        moved = self.start + 0.1 * step * self.course
        return (moved / np.linalg.norm(moved, axis=1, keepdims=True)).astype(np.float32)

    def fresh(self, step: int, rows: list[int]) -> np.ndarray:
        self.encoded.setdefault(step, set()).update(rows)
        return self.corpus(step)[rows]

    def rollouts(self, step: int) -> tuple[np.ndarray, list[dict[str, float]]]:
        rng = np.random.default_rng(step)
        wanted = np.repeat(rng.choice(80, 3, replace=False), 4)
        noise = 0.3 * rng.standard_normal((12, 6))
        vectors = (self.corpus(step)[wanted] + noise).astype(np.float32)
        return vectors, [{self.ids[row]: 1.0} for row in wanted]

    def keep(self) -> None: ...


@pytest.mark.parametrize("seeds", [2, 3, 7])
def test_the_interval_of_two_arms_is_students(benchmark, seeds: int) -> None:
    values = np.random.default_rng(seeds).normal(size=(2, seeds)) + np.arange(seeds)
    _, low, high = benchmark("_result").interval((values[1] - values[0]).tolist())
    assert benchmark("reward").half_width(values) == pytest.approx((high - low) / 2)
    assert benchmark("reward").half_width(values[:, :1]) is None


def test_intervals_of_many_arms_hold_as_often_as_they_say(benchmark) -> None:
    """Two seeds of five arms that differ in nothing but chance: whatever the seeds share is left out."""
    draw = np.random.default_rng(0)
    held = 0
    for _ in range(2000):
        values = draw.normal(size=(5, 2)) + 5 * draw.normal(size=(1, 2))
        means = values.mean(1)
        held += abs(means[1] - means[0]) <= benchmark("reward").half_width(values)
    assert 0.93 <= held / 2000 <= 0.97


@pytest.mark.parametrize("size", [60, 300])  # fewer documents than there are, and more
def test_growth_plays_every_step_and_encodes_only_what_is_asked_for(benchmark, size) -> None:
    growth, trajectory = benchmark("_growth"), Drifting()
    policies = (Full, Frozen, lambda: Random(10))
    full, frozen, random = growth.fidelity(trajectory, 6, [3, 6], size, policies)
    assert full[:2] == (size, pytest.approx(1)) and frozen[0] == 0 and random[0] == 10
    assert frozen[1] < 0.95 and random[1] < 1

    trajectory.encoded.clear()
    list(growth.fidelity(trajectory, 6, [3, 6], size, [lambda: Random(2)]))
    assert set(trajectory.encoded) == {1, 2, 4, 5}  # the audited ones are known
    assert all(len(rows) <= 2 * 3 for rows in trajectory.encoded.values())  # simulated ones have 3 parents


def test_simulated_documents_are_one_step_s_whether_all_or_some_are_asked_for(benchmark) -> None:
    corpus = benchmark("_growth").Corpus(Drifting(), range(1, 5), [0, 4], 300)
    rows = np.array([250, 3, 299, 80, 79, 250])
    some = corpus.at(2, rows)
    corpus.audited.add(2)
    assert np.array_equal(some, corpus.whole(2)[rows])
    assert np.linalg.norm(some, axis=1) == pytest.approx(1, abs=1e-6)


def test_a_curve_ends_where_it_is_good_enough(benchmark, tmp_path: Path) -> None:
    places = [tmp_path / f"{rows}.json" for rows in (20, 40, 80, 160)]
    curve_of = benchmark("_growth").curve_of
    assert curve_of(places) == []
    for place, spearman in zip(places, (0.5, 0.9, 0.995, 0.98), strict=True):
        place.write_text(json.dumps([float(place.stem), spearman, 1.0]))
    assert [rows for rows, *_ in curve_of(places)] == [20, 40, 80]
    places[1].unlink()
    assert [rows for rows, *_ in curve_of(places)] == [20]


def test_growth_has_a_slope_in_logarithms(benchmark) -> None:
    curve = [[10, 0.9, 0.1], [100, 0.98, 0.2], [1000, 1.0, 0.3]]
    doubled = [[2 * rows, *rest] for rows, *rest in curve]
    found = benchmark("_figures").of_growth({"1000": curve, "10000": doubled})
    assert found["rows_needed_10000"] == pytest.approx(2 * found["rows_needed_1000"])
    assert found["rows_slope"] == pytest.approx(math.log10(2))
    assert found["refresh_seconds_1000"] == 0.2
    never = [[10, 0.5, 0.1], [100, 0.9, 0.2]]
    assert benchmark("_figures").of_growth({"1000": curve, "10000": never})["rows_slope"] is None


def test_the_gap_of_the_closed_loop_is_paired(benchmark) -> None:
    full = [{"ndcg": value, "tokens": 40.0, "contrastive_tokens": 0.0} for value in (0.50, 0.60, 0.55)]
    default = [{"ndcg": value, "tokens": 1.0, "contrastive_tokens": 3.0} for value in (0.49, 0.60, 0.53)]
    part = {"documents": 9, "full": full, "default": default, "frozen": default}
    found = benchmark("_figures").of_closed(part)
    assert found["final_ndcg_gap"] == pytest.approx(0.01)
    assert found["final_ndcg_gap_low"] == pytest.approx(0.01 - 4.3027 * 0.01 / 3**0.5, abs=1e-5)
    assert found["tokens_saved_ratio"] == pytest.approx(40)
    assert found["tokens_saved_ratio_with_contrastive"] == pytest.approx(10)


def test_headlines_are_those_of_the_worse_learning_rate(benchmark) -> None:
    module = benchmark("_figures")
    keys = (
        "share_reencoded_mean",
        "advantage_spearman_mean",
        "advantage_spearman_min",
        "advantage_cosine_mean",
    )

    def of(name: str, frozen: float, *values: float) -> dict[str, float]:
        found = {f"{name}.default.{key}": value for key, value in zip(keys, values, strict=True)}
        found[f"{name}.frozen.advantage_spearman_end"] = frozen
        return found | {f"{name}.frozen.groups_varied_mean": 0.8}

    base = of("base", 0.7, 0.01, 0.99, 0.9, 0.98)
    found = module.headline(base | of("five", 0.4, 0.02, 0.98, 0.95, 0.97), ["base", "five"])
    assert [found[key] for key in keys] == [0.02, 0.98, 0.9, 0.97]
    lost = module.headline(base | of("five", 0.4, 0.02, math.nan, 0.95, 0.97), ["base", "five"])
    assert lost["advantage_spearman_mean"] is None
    tame = module.headline(base | of("five", 0.95, 0.02, 0.98, 0.95, 0.97), ["base", "five"])
    assert tame == {"base.counts": 1, "five.counts": 0}


def test_a_step_without_variance_is_counted_and_not_averaged(benchmark) -> None:
    step = benchmark("_replay").Step
    plain = {"rows": 1, "share": 0.1, "token_share": 0.1, "seconds": 1.0, "bound": math.nan}
    known = {"reward_error": 0.1, "top10": 1.0, "drift": 0.1, "cosine": 1.0}
    spearman = (0.9, math.nan, 0.5)
    steps = [step(step=0, **plain)]
    steps += [
        step(step=place, **plain, **known, spearman=value, varied=float(value == value))
        for place, value in enumerate(spearman, start=1)
    ]
    found = benchmark("_figures").of_policy(steps)
    assert found["advantage_spearman_mean"] == pytest.approx(0.7)
    assert found["advantage_spearman_min"] == found["advantage_spearman_last"] == 0.5
    assert found["advantage_spearman_first_half"] == 0.9
    assert found["steps_without_variance"] == 1
    none = benchmark("_figures").of_policy([steps[0], steps[2]])
    assert none["advantage_spearman_mean"] is none["advantage_spearman_min"] is None


def test_a_metric_that_is_wrong_is_seen(benchmark, monkeypatch) -> None:
    metrics = benchmark("_checks")
    run = {"a": {"1": 2.0, "2": 1.0}, "b": {"2": 1.0, "3": 1.0}, "c": {"9": 1.0}}
    qrels = {"a": {"2": 1, "5": 2}, "b": {"2": 1}, "d": {"1": 1}}
    for case, hits, judged in metrics.cases(run, qrels):
        assert metrics.disagreement(hits, judged) < 1e-6, case
    right = metrics.trec_metrics

    def wrong(run, qrels):
        found = right(run, qrels)
        found["recall@10"]["b"] -= 0.01
        return found

    monkeypatch.setattr(metrics, "trec_metrics", wrong)
    assert metrics.disagreement(run, qrels) == pytest.approx(0.01)


def test_the_figures_of_a_readme_are_found(benchmark, tmp_path: Path) -> None:
    stated = benchmark("metrics").stated
    assert stated(tmp_path / "README.md") == {}
    rows = ["| pack | BM25 nDCG@10 (R@10), test |", "|---|---|", "| one | 0.677 (0.8) |", "| two | |"]
    table = "\n".join(rows)
    (tmp_path / "README.md").write_text(f"# Packs\n\n{table}", encoding="utf-8")
    assert stated(tmp_path / "README.md") == {"one": 0.677}


def test_the_digest_of_the_code_is_of_what_runs(benchmark, monkeypatch, tmp_path: Path) -> None:
    result = benchmark("_result")
    monkeypatch.setattr(result, "HERE", tmp_path / "benchmarks")
    (tmp_path / "src").mkdir()
    (tmp_path / "benchmarks").mkdir()

    def digest(text: str) -> str:
        (tmp_path / "src" / "one.py").write_text(text, encoding="utf-8")
        return result.code()

    plain = digest('def f(x):\n    """What it does."""\n    return x + 1\n')
    assert digest('"""About."""\n\ndef f(x):\n    """More of it."""\n    return x + 1  # why\n') == plain
    assert digest('def f(x):\n    """What it does."""\n    return x + 2\n') != plain
    again = "def f(x):\n    return x + 1\n"
    assert digest(again) == plain
    (tmp_path / "benchmarks" / "_one.py").write_text("x = 1\n", encoding="utf-8")
    measured = digest(again)
    assert measured != plain
    monkeypatch.setattr(result, "version", lambda library: "0")
    assert digest(again) != measured


def evaluated(name: str, gain: float, auto: float, low: float, queries: int = 100, **more) -> dict:
    """What `evaluate --reasoning all` writes, as far as it is read; thinking costs 10 tokens, auto 4."""
    rows = [("direct", 0.4, 0.0), ("reasoned", 0.4 + gain, 10.0), ("auto", 0.4 + auto, 4.0)]
    runs = [{"name": run, "ndcg@10": ndcg, "thinking_tokens_mean": tokens} for run, ndcg, tokens in rows]
    difference = {"a": "reasoned", "b": "direct", "metric": "ndcg@10", "mean": gain, "ci95": [low, 2 * gain]}
    difference["p"] = 0.01 if low > 0 else 0.3
    adaptive = {"chosen_on": f"{name} dev, 50 queries"}
    found = {"data": name, "split": "test", "queries": queries, "runs": runs, "differences": [difference]}
    return found | {"adaptive": adaptive} | more


def test_adaptive_shares_are_pooled_over_the_sets_where_thinking_helps(benchmark) -> None:
    pooled = benchmark("adaptive").pooled
    sets = [
        evaluated("a", 0.10, 0.10, low=0.05),
        evaluated("b", 0.02, 0.01, low=0.001, queries=300),
        evaluated("c", 0.05, -0.5, low=-0.01),  # not sure to help: does not count
    ]
    found = pooled(sets)
    assert found["adaptive_gain_share"] == pytest.approx(
        (100 * 0.10 + 300 * 0.01) / (100 * 0.10 + 300 * 0.02)
    )
    assert found["adaptive_token_share"] == pytest.approx(0.4)
    assert (found["adaptive_sets"], found["adaptive_sets_seen"]) == (2, 3)
    assert pooled(sets[2:])["adaptive_gain_share"] is None
    with pytest.raises(SearchR3Error, match="a test: evaluate it with --reasoning all"):
        pooled([evaluated("a", 0.1, 0.1, 0.05) | {"runs": sets[0]["runs"][:2]}])
    with pytest.raises(SearchR3Error, match="a test: chose the rule itself"):
        pooled([evaluated("a", 0.1, 0.1, 0.05, adaptive={"chosen_on": "a test, 100 queries"})])


def test_arms_of_a_cost_have_recipes_that_fit_it(benchmark) -> None:
    adaptive = benchmark("adaptive")
    for weight in (None, *adaptive.WEIGHTS):
        recipe = adaptive.recipe_of("quickstart", adaptive.QUICK, weight)
        assert recipe.stage2.reward.length == (weight or 0)
        assert recipe.stage2.direct_rollout == bool(weight)  # without a cost it is another answer, and harms
        assert "." not in adaptive.arm_name(weight)
    assert len({adaptive.arm_name(weight) for weight in adaptive.WEIGHTS}) == len(adaptive.WEIGHTS)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (("--weights", "0.005", "0.0052"), "two have the same first digit"),
        (("--weights", "0", "nan"), "length"),
        (("--results", "gone.json"), "gone.json: no such file"),
        (("--results", "thought.json"), "evaluate it with --reasoning all"),
    ],
)
def test_adaptive_looks_at_all_before_it_trains(
    benchmark, monkeypatch, tmp_path: Path, asked: tuple[str, ...], words: str
) -> None:
    adaptive = benchmark("adaptive")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(adaptive, "beginning", lambda *_: pytest.fail("trained before all was looked at"))
    runs = [
        {
            "name": "direct",
            **dict.fromkeys(METRICS, 0.5),
            "ci95": dict.fromkeys(METRICS, (0.4, 0.6)),
            "thinking_tokens_mean": 0,
            "seconds": 1,
        }
    ]
    told = {"model": "m", "data": "a", "split": "test", "documents": 9, "queries": 3, "differences": []}
    Path("thought.json").write_text(json.dumps({**told, "runs": runs}), encoding="utf-8")
    monkeypatch.setattr(sys, "argv", ["adaptive.py", *asked, "--output", "out.json"])
    with pytest.raises(SystemExit, match=words):
        adaptive.main()


@pytest.mark.parametrize("place", ["file/out.json", "folder"])
def test_the_place_of_a_result_is_looked_at_first(benchmark, tmp_path: Path, place: str, capsys) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    parser = benchmark("_result").arguments("")
    with pytest.raises(SystemExit):
        parser.parse_args(["--output", str(tmp_path / place)])
    assert f"argument --output: {tmp_path / place}: " in capsys.readouterr().err


def test_figures_of_the_reference_are_numbers_with_their_bounds(benchmark) -> None:
    from searchr3.evaluation.evidence import OWN, STAGES, TO_BEAT, label_point, weigh

    rng = np.random.default_rng(0)
    values = {name: rng.uniform(0, 1, (2, 20)) for name in dict.fromkeys([*STAGES, *TO_BEAT, OWN])}
    point = {"labels": 100, "seeds": 1, **label_point({name: values[name] for name in STAGES})}
    point["direct1_given_up"] = 0.25
    found = {"recipe": "reference", "complete": True, "seeds": [0, 1], "seconds": {"stage2 evaluation": 3.5}}
    found |= {**weigh(values), "labels": [point], "queries": 20, "base_was_shown_pairs": True}

    flat = benchmark("reference").figures(found)

    assert all(isinstance(value, int | float) for value in flat.values())
    assert "complete" not in flat and flat["seeds"] == 2 and flat["thinking_helped"] == 0.0
    assert flat["base_was_shown_pairs"] == 1.0 and flat["labels_100_direct1_given_up"] == 0.25
    for name in (*TO_BEAT, *STAGES, "reasoned2_minus_best_control", "labels_100_stage2"):
        assert name in flat
    assert flat["labels_100_reasoned1"] == values["reasoned1"].mean()
    for name in ("reasoned2_minus_best_control", "reasoned2_minus_direct1", "labels_100_stage1"):
        assert flat[f"{name}_low"] <= flat[name] <= flat[f"{name}_high"]
    assert flat["seconds_stage2_evaluation"] == 3.5
    young = benchmark("reference").young_figures(found)
    assert young["young_direct2"] == flat["direct2"]
    assert young["young_reasoned2_minus_direct1_low"] == flat["reasoned2_minus_direct1_low"]


@pytest.mark.parametrize("option", ["--run", "--young"])
def test_evidence_that_is_not_complete_is_no_reference(benchmark, monkeypatch, tmp_path, option: str) -> None:
    reference = benchmark("reference")
    monkeypatch.setattr(
        reference, "gather", lambda *_, **__: pytest.fail("gathered before all was looked at")
    )
    monkeypatch.setattr(
        sys, "argv", ["reference.py", option, str(tmp_path), "--output", str(tmp_path / "out")]
    )
    for content, words in (({"complete": False}, "is not complete; go on with"), (None, "no such file")):
        (tmp_path / "evidence.json").unlink(missing_ok=True)
        if content:
            (tmp_path / "evidence.json").write_text(json.dumps(content), encoding="utf-8")
        with pytest.raises(SystemExit, match=words):
            reference.main()
    assert not (tmp_path / "out").exists()


def test_a_result_says_on_what_it_was_measured(benchmark, tmp_path: Path) -> None:
    result = benchmark("_result")
    for used, told in (
        ({"processor": "A chip", "cores": "3", "python": "3.11.1", "platform": "Linux"}, "A chip, 3 cores, "),
        ({"python": "3.11.1", "platform": "Linux-6"}, "Linux-6, "),  # of an older run
    ):
        result.write(tmp_path / "one.json", "one", {"x": 1.0}, used)
        found = json.loads((tmp_path / "one.json").read_text(encoding="utf-8"))
        assert found["machine"] == told + "Python 3.11.1"
    result.write(tmp_path / "one.json", "one", {"x": 1.0})
    found = json.loads((tmp_path / "one.json").read_text(encoding="utf-8"))
    assert found["machine"].endswith(f"Python {sys.version.split()[0]}")


def test_the_cost_of_indexing_is_that_of_slices_that_were_measured_both_ways(benchmark) -> None:
    costs = benchmark("_indexing").costs
    slices = [
        {"chunks": 100.0, "indexing": 11.0, "encoding": 10.0},
        {"chunks": 100.0, "indexing": 50.0},  # the machine did something else
        {"chunks": 50.0, "indexing": 6.0, "encoding": 5.0},
    ]
    found = costs([*slices, {"chunks": 0.0, "settling": 1.0}])
    assert found["encoding_seconds"] == pytest.approx(250 * 0.1)
    assert found["indexing_over_encoding"] == pytest.approx((1.1 + 1.2) / 2 + 1 / 25)
    assert found["indexing_over_encoding_whole"] == pytest.approx(68 / 25)
    assert found["indexing_seconds"] == pytest.approx(68)
    assert (found["indexing_over_encoding_least"], found["indexing_over_encoding_most"]) == (1.1, 1.2)
    with pytest.raises(SearchR3Error, match="begin anew"):
        costs(slices)


def test_parts_of_serving_that_are_known_are_not_measured_again(benchmark, monkeypatch, tmp_path) -> None:
    serving, asked = benchmark("serving"), []
    options = SimpleNamespace(work=tmp_path, model=None, size={"rounds": 1}, parts=["engine", "api"])
    options.folder = tmp_path
    monkeypatch.setattr(serving, "measured", lambda part, _: asked.append(part) or {f"{part}_figure": 1.0})
    first = serving.figures_of(options)
    assert asked == ["engine", "api"] and {"engine_figure", "api_figure"} < set(first)
    options.parts = ["load"]
    assert serving.figures_of(options) == {**first, "load_figure": 1.0}
    assert asked == ["engine", "api", "load"]


def test_pages_hold_the_committed_results(benchmark) -> None:
    tables = benchmark("_tables")
    assert (BENCHMARKS / "RESULTS.md").read_text(encoding="utf-8") == tables.render()
    for page, names in tables.PAGES.items():
        text = (BENCHMARKS.parent / page).read_text(encoding="utf-8")
        assert tables.with_tables(text, names) == text, f"{page}: run python benchmarks/_result.py"


def test_a_table_wants_its_place(benchmark) -> None:
    with pytest.raises(ValueError, match="<!-- labels -->"):
        benchmark("_tables").between("<!-- labels --> without an end", "labels", "a table")


def test_tables_tell_differences_with_their_sign_and_interval(benchmark) -> None:
    tables = benchmark("_tables")
    told = {"direct1": 0.4, "reasoned2": 0.5, "bm25": 0.6, "rival": None}
    told |= {
        "reasoned2_minus_bm25": -0.1,
        "reasoned2_minus_bm25_low": -0.12,
        "reasoned2_minus_bm25_high": 0.01,
    }
    lines = tables.reference(told).splitlines()
    assert lines[2:] == [
        "| stage 1, direct | 0.400 |  |  |",
        "| **stage 2, reasoned** | 0.500 |  |  |",
        "| BM25, tuned on dev | 0.600 | −0.100 | −0.120 to +0.010 |",
    ]

    points = {f"labels_{count}_stage{stage}": 0.01 * stage for count in (1000, 300) for stage in (1, 2)}
    points |= {f"{key}_{end}": value for key, value in points.items() for end in ("low", "high")}
    points |= {f"labels_{count}_direct{stage}": 0.3 for count in (1000, 300) for stage in (1, 2)}
    points["labels_300_direct1_given_up"] = 0.0
    row = "0.300 | +0.010 (+0.010 to +0.010) | 0.300 | +0.020 (+0.020 to +0.020)"
    assert tables.labels(points).splitlines()[2:] == [f"| 300 | {row} |", f"| 1,000 | {row} |"]

    cells = {"tldr.direct1.ndcg": 0.4, "tldr.reasoned2.ndcg": 0.5, "mixed-scifact.reasoned2.ndcg": 0.1}
    cells |= {
        f"{case}.direct2.behind{end}": 0.1
        for case in ("tldr", "mixed-scifact")
        for end in ("", "_low", "_high")
    }
    lines = tables.evidence(cells).splitlines()
    assert lines[0].count("|") == lines[2].count("|") and lines[2].startswith("| tldr | – | 0.400 |")
    assert lines[3].startswith("| mixed: scifact |") and lines[3].endswith("| +0.100 (+0.100 to +0.100) |")
