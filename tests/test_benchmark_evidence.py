"""What benchmarks/evidence.py reckons with: packs made smaller and one, cells, and what counts as helped."""

import gzip
import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import yaml

from searchr3.adaptive import load_rule
from searchr3.dataset import Document, Query, RetrievalDataset
from searchr3.errors import SearchR3Error
from searchr3.files import write_json
from searchr3.training.base import parser
from searchr3.training.recipe_file import load_recipe

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
    for nothing in ({"hurt": hurt}, {"helped": case(benchmark, **BELOW)}):
        found = cells.headline(nothing)
        assert (found["adaptive_gain_share"], found["adaptive_token_share"]) == (None, None)
        assert found["adaptive_packs"] == 0


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
    assert (found.start, found.steps) == ((start, 600) if start else (None, 3000))
    shares = dict(found.share)
    assert set(shares) == ({"python", "python-pairs"} if start else {"python-pairs"})  # code was read before
    assert not start or sum(shares.values()) == pytest.approx(1)
    assert found.size == (None if start else "5m")  # a base keeps its shape
    assert found.pairs and found.python and found.resume


# What is kept


@pytest.fixture
def options(benchmark: Import, tmp_path: Path) -> SimpleNamespace:
    """Of a run whose base and part `python` are made."""
    evidence = benchmark("evidence")
    found = SimpleNamespace(
        work=tmp_path, packs=None, start=None, quick=True, size=evidence.QUICK, overrides=[]
    )
    (tmp_path / "data" / "python").mkdir(parents=True)
    write_json(tmp_path / "base" / "base.json", {"sources": []})
    write_json(tmp_path / "python" / "base" / "base.json", {"sources": []})
    write_json(tmp_path / "python" / "evidence.json", {"complete": True})
    recipe = load_recipe(evidence.RECIPE, evidence.overrides("python", found))
    text = yaml.safe_dump({"recipe": recipe.dump(), "machine": {}})
    (tmp_path / "python" / "recipe.yaml").write_text(text, encoding="utf-8")
    return found


def test_a_part_that_is_done_is_taken_only_as_it_was_asked_for(
    benchmark: Import, options: SimpleNamespace
) -> None:
    evidence = benchmark("evidence")
    assert evidence.train("python", options) == options.work / "python"
    options.overrides = ["evaluation.depth=150"]  # changes no model
    assert evidence.train("python", options) == options.work / "python"
    options.overrides = ["stage2.rollouts=2"]
    with pytest.raises(SearchR3Error, match=r"python: was made by another recipe; remove it, or .* --work"):
        evidence.train("python", options)


def test_a_part_of_another_base_is_not_taken(benchmark: Import, options: SimpleNamespace) -> None:
    evidence = benchmark("evidence")
    write_json(options.work / "base" / "base.json", {"sources": [], "from": {"sources": []}})
    options.start = options.work / "start"
    write_json(options.start / "base.json", {"sources": []})
    with pytest.raises(SearchR3Error, match="python: was made from another base"):
        evidence.train("python", options)
    options.start = None
    with pytest.raises(SearchR3Error, match="base: goes on from another base than is named with --from"):
        evidence.train("python", options)


def test_bm25_is_held_against_others_figures_where_the_data_is_whole(
    benchmark: Import, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = benchmark("_checks")
    quality = {"python": 0.5, "scifact": 0.7, "squad11_dev": 0.9}
    monkeypatch.setattr(checks, "checked", lambda name: ({"as_found": 0.0, "ties": 1e-9}, quality[name]))
    pairs = [(name, name) for name in quality]

    found = checks.measured(pairs, {"scifact": 0.677, "squad11_dev": 0.894})
    assert found["bm25.scifact.off"] == pytest.approx(0.023) == found["bm25_off_most"]
    assert found["bm25.squad11_dev.stated"] == 0.894 and "bm25.python.stated" not in found
    assert found["scifact_outside"] == pytest.approx(0.7 - 0.679)
    assert found["difference_most"] == found["agreement.python.ties"] == 1e-9

    less = checks.measured(pairs, None)
    assert less.keys() == {key for key in found if key[-4:] not in (".off", "ated", "most", "side")} | {
        "difference_most"
    }


# For real


def pack(folder: Path, name: str) -> None:
    """A data set as the packs are: gzipped BEIR, splits train, dev and test."""
    folder = folder / name
    (folder / "qrels").mkdir(parents=True)
    words = [f"{name}{kind}{i}" for i in range(160) for kind in "ab"]
    files = {
        "corpus": [
            {"_id": f"d{i}", "title": words[2 * i], "text": " ".join(words[i : i + 9])} for i in range(160)
        ],
        "queries": [{"_id": f"q{i}", "text": f"find {words[2 * i]} and {words[i + 3]}"} for i in range(160)],
    }
    for file, rows in files.items():
        with gzip.open(folder / f"{file}.jsonl.gz", "wt", encoding="utf-8") as lines:
            lines.writelines(json.dumps(row) + "\n" for row in rows)
    for split, rows in {"train": range(120), "dev": range(120, 140), "test": range(140, 160)}.items():
        lines = ["query-id\tcorpus-id\tscore", *(f"q{i}\td{i}\t1" for i in rows)]
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")


@pytest.mark.slow
def test_the_mixed_part_and_the_checks_from_packs_to_figures(tmp_path: Path) -> None:
    """One model of four data sets, tested on seven, a rule chosen, and nothing done twice."""
    foreign = ("scifact", "cosqa", "mbxp_code")
    for name in ("tldr", "nl2bash", "medquad", *foreign, "squad11_dev"):
        pack(tmp_path / "packs", name)
    script = Path(__file__).parent.parent / "benchmarks" / "evidence.py"
    command = [sys.executable, str(script), "--quick", "--packs", "packs", "--output", "found.json"]

    def run(*more: str) -> subprocess.CompletedProcess[str]:
        asked = [*command, "--parts", "mixed", "checks", *more]
        return subprocess.run(asked, cwd=tmp_path, capture_output=True, text=True, timeout=1200)

    done = run()
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))["figures"]
    assert found["packs"] == len(foreign)  # the others have, in full, models of their own
    for test in ("python", "tldr", "nl2bash", "medquad", *foreign):
        for arm in ("bm25", "direct1", "reasoned1", "direct2", "reasoned2", "auto", "st_mnrl", "control_a"):
            assert 0 <= found[f"mixed-{test}.{arm}.ndcg"] <= 1
    assert {"stage1_over_st_mnrl_mean", "adaptive_gain_share", "adaptive_token_share"} <= found.keys()
    assert found["difference_most"] < 1e-6 and "bm25.squad11_dev.ndcg@10" in found
    base = json.loads((tmp_path / "runs/benchmark-evidence-quick/base/base.json").read_text(encoding="utf-8"))
    assert {f"hold-out-{name}" for name in foreign} < {one["name"] for one in base["sources"]}
    rule = load_rule(tmp_path / "runs/benchmark-evidence-quick/mixed/seed-0/stage2")
    assert rule and "mixed dev" in rule.chosen_on

    again = run()
    assert again.returncode == 0 and "stage2 on" not in again.stdout
    assert json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))["figures"] == found
    refused = run("--", "stage2.rollouts=2")
    assert refused.returncode and "mixed: was made by another recipe" in refused.stderr
