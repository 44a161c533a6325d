"""What benchmarks/evidence.py reckons with: packs made smaller and one, cells, and what counts as helped."""

import importlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from searchr3.dataset import Document, Query, RetrievalDataset
from searchr3.training.base import parser

Import = Callable[[str], ModuleType]


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Import:
    """Imports a file of `benchmarks/` as a module."""
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    return importlib.import_module


def toy(name: str) -> RetrievalDataset:
    corpus = {f"d{i}": Document("", f"{name} document {i}") for i in range(40)}
    queries = {f"q{i}": Query(f"{name} query {i}") for i in range(20)}
    splits = {"stage1": range(10), "stage2": range(10, 15), "dev": range(15, 17), "test": range(17, 20)}
    qrels = {split: {f"q{i}": {f"d{i}": 1, f"d{i + 20}": 0} for i in rows} for split, rows in splits.items()}
    return RetrievalDataset(name, corpus, queries, qrels, frozenset({"d39"}), "Find it.")


def test_a_smaller_data_set_is_whole_and_nested(benchmark: Import) -> None:
    reduced, whole = benchmark("_packs").reduced, toy("toy")
    small, larger = (reduced(whole, {"stage1": n}, 3 * n + 20) for n in (2, 4))
    assert small.validate() is small
    assert {split: len(judged) for split, judged in small.qrels.items()} == {
        **{split: len(judged) for split, judged in whole.qrels.items()},
        "stage1": 2,
    }
    assert len(small.corpus) == 26 and len(larger.corpus) == 32
    assert small.qrels["stage1"].keys() < larger.qrels["stage1"].keys()
    assert small.qrels["test"] == whole.qrels["test"]
    assert len(reduced(whole, {}, 5).corpus) == 40  # judged documents stay, whatever is asked for
    assert small.held_out <= {"d39"} and small.instruction == "Find it."


def test_data_sets_become_one_without_mixing_their_ids(benchmark: Import) -> None:
    parts = {name: toy(name) for name in ("one", "two")}
    both = benchmark("_packs").merged("both", parts).validate()
    assert len(both.corpus) == 80 and len(both.queries) == 40
    assert both.qrels["test"]["two:q17"] == {"two:d17": 1, "two:d37": 0}
    assert both.corpus["two:d3"].text == "two document 3"
    assert both.held_out == {"one:d39", "two:d39"}
    assert both.instruction is None


def test_what_another_part_measures_is_not_trained_on(benchmark: Import) -> None:
    packs, one, two = benchmark("_packs"), toy("one"), toy("two")
    known = {"q18": Query("ONE query 3!"), "q0": Query("one query 2")}  # test and training queries of `two`
    two = replace(two, queries={**two.queries, **known})
    parts = {"one": one, "two": two}
    both = packs.merged("both", parts, packs.measured_queries(parts.values())).validate()
    assert "one:q3" not in both.qrels["stage1"] and "one:q2" in both.qrels["stage1"]
    assert "two:q18" in both.qrels["test"] and len(both.qrels["stage1"]) == 19


def case(benchmark: Import, counts: bool = True, **means: float):
    """Arms whose values lie about a mean, 40 queries."""
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.05, 40)
    values = {
        arm: {f"q{i}": mean + noise[i] + rng.normal(0, 0.02) for i in range(40)}
        for arm, mean in means.items()
    }
    tokens = {arm: {"reasoned2": 8.0, "auto": 2.0}[arm] for arm in ("reasoned2", "auto") if arm in means}
    return benchmark("_cells").Case(values, tokens, dict.fromkeys(tokens, 1.0), counts)


BELOW = {"direct1": 0.4, "direct2": 0.45, "control_a": 0.46, "reasoned2": 0.5}


def test_a_pack_is_better_only_where_all_three_are_beaten(benchmark: Import) -> None:
    cells = benchmark("_cells")
    cases = {
        "all": case(benchmark, **BELOW),
        "not control": case(benchmark, **{**BELOW, "control_a": 0.5}),
        "not direct2": case(benchmark, **{**BELOW, "direct2": 0.55}),
        "not measured": case(benchmark, direct1=0.1, direct2=0.1, reasoned2=0.5),
    }
    assert cells.thinking_helped(cases) == ["all"]
    found = cells.figures(cases)
    assert (found["packs"], found["packs_reasoned_significantly_better"]) == (4, 1)


def test_the_p_values_are_corrected_over_the_packs(
    benchmark: Import, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = benchmark("_cells")
    seen: list[list[float]] = []
    monkeypatch.setattr(cells, "holm", lambda values: seen.append(values) or [0.04, 0.06])
    cases = {name: case(benchmark, **BELOW) for name in ("one", "two")}
    assert cells.thinking_helped(cases) == ["one"]
    (family,) = seen
    assert len(family) == 2 and max(family) < 0.05
    seen.clear()
    cells.thinking_helped(cases | {"two": case(benchmark, **{**BELOW, "control_a": 0.6})})
    assert seen[0][1] == 1.0  # the comparison that is worst for it counts


def test_cells_hold_means_intervals_and_the_distance_to_reasoned(benchmark: Import) -> None:
    cells = benchmark("_cells")
    arms = {**BELOW, "st_mnrl": 0.38, "bm25": 0.3}
    found = cells.figures({"one": case(benchmark, **arms), "mixed-one": case(benchmark, False, **arms)})
    assert found["packs"] == 1  # a test set counts once
    assert found["one.direct2.ndcg"] == pytest.approx(0.45, abs=0.03)
    assert found["one.direct2.low"] < found["one.direct2.ndcg"] < found["one.direct2.high"]
    assert found["one.direct2.behind"] == pytest.approx(0.05, abs=0.015)
    assert found["one.direct2.behind_low"] > 0 and found["one.direct2.p"] < 0.01
    assert "one.reasoned2.behind" not in found and found["one.reasoned2.tokens"] == 8.0
    assert {key for key in found if key.startswith("mixed-one.bm25.")}
    low, mean, high = (found[f"stage1_over_st_mnrl_mean{end}"] for end in ("_low", "", "_high"))
    assert low < mean < high and mean == pytest.approx(0.02, abs=0.015)


def test_adaptive_thinking_is_pooled_where_thinking_helped(benchmark: Import) -> None:
    cells = benchmark("_cells")
    helped = case(benchmark, **BELOW, auto=0.49)
    hurt = case(benchmark, direct1=0.5, direct2=0.5, control_a=0.5, reasoned2=0.4, auto=0.5)
    found = cells.headline({"helped": helped, "hurt": hurt})
    assert found["adaptive_packs"] == 1
    assert found["adaptive_gain_share"] == pytest.approx(0.8, abs=0.2)
    assert found["adaptive_token_share"] == 0.25
    assert "adaptive_gain_share" not in cells.headline({"hurt": hurt})
    assert "adaptive_gain_share" not in cells.headline({"helped": case(benchmark, **BELOW)})


def test_the_test_sets_of_a_part(benchmark: Import, tmp_path: Path) -> None:
    evidence = benchmark("evidence")
    options = evidence.arguments("").parse_args(["--output", "x"])
    options.packs = tmp_path
    assert evidence.tests_of("tldr", options) == ("tldr",)
    assert set(evidence.tests_of("mixed", options)) == {*evidence.OWN, *evidence.FOREIGN}
    options.packs = None
    assert evidence.tests_of("mixed", options) == ("python",)


@pytest.mark.parametrize("start", [None, Path("mine")])
def test_the_base_goes_on_from_another_if_one_is_named(
    benchmark: Import, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: Path | None
) -> None:
    asked: list[list[str]] = []
    monkeypatch.setattr("searchr3.training.base.main", asked.append)
    evidence = benchmark("evidence")
    options = evidence.arguments("").parse_args(["--output", "x"])
    options.size, options.packs, options.work, options.start = evidence.FULL, None, tmp_path, start
    evidence.make_base(options)
    ((place, *told),) = asked
    assert place == str(tmp_path / "base")
    found = parser().parse_args([place, *told])
    assert (found.start, found.steps) == ((start, 1500) if start else (None, 3000))
    assert found.size == (None if start else "5m")  # a base keeps its shape
    assert found.pairs and found.python and found.resume
