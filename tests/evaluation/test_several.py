"""Several data sets: files, resuming, what is missing, and what the results say together."""

import json
import shutil
import weakref
from dataclasses import replace
from pathlib import Path

import pytest

from searchr3.adaptive import Adaptive
from searchr3.errors import SearchR3Error
from searchr3.evaluation.comparison import suite_tables
from searchr3.evaluation.several import (
    Plan,
    evaluate_several,
    files_of,
    label,
    refuse_taken,
    summarized,
)
from searchr3.evaluation.statistics import holm
from searchr3.evaluation.suites import GROUPS, SUITES
from searchr3.files import write_json
from searchr3.ranking import METRICS

PLAN = Plan("bag", options={"baselines": ("bm25",)})


@pytest.fixture
def folders(make_data, tmp_path):
    data = make_data()
    for name in ("one", "two"):
        replace(data, name=name).save(tmp_path / name)
    return [str(tmp_path / name) for name in ("one", "two")]


def test_each_has_its_file_and_what_is_missing_its_reason(model, folders, tmp_path):
    heard = []
    nowhere = str(tmp_path / "nowhere")
    sources = [folders[0], nowhere, folders[1]]
    summary = evaluate_several(lambda: model, sources, tmp_path / "out", PLAN, "mine", tell=heard.append)
    assert heard == sources
    assert summary == json.loads((tmp_path / "out" / "suite.json").read_text())
    assert (summary["suite"], summary["model"]) == ("mine", "bag")
    assert summary["tasks"] == [{"task": name, "file": f"{name}.json"} for name in ("one", "two")]
    (missing,) = summary["missing"]
    assert missing["why"].startswith(f"{nowhere}: no such file or folder")
    one = json.loads((tmp_path / "out" / "one.json").read_text())
    assert (tmp_path / "out" / "one.queries.parquet").is_file()
    for run in one["runs"]:  # both data sets hold the same
        for metric in METRICS:
            assert summary["means"][run["name"]][metric] == pytest.approx(run[metric])
    for row in summary["differences"]:
        assert row["p_holm"] == min(1, 2 * row["p"])
    table, gains = suite_tables(summary, tmp_path / "out")
    assert [*table.columns[0].cells] == ["one", "two", "mean"]
    assert [*gains.columns[0].cells] == ["one", "two"]
    rows = [row for row in summary["differences"] if (row["a"], row["metric"]) == ("reasoned", "ndcg@10")]
    told = next(row for row in rows if row["b"] == "direct")
    assert f"{told['mean']:+.3f}" in next(iter(gains.columns[1].cells))
    assert [*gains.columns[4].cells] == [f"{told['p_holm']:.3f}"] * 2  # both data sets hold the same
    one["runs"][0]["p-mrr"] = 0.25
    write_json(tmp_path / "out" / "one.json", one)
    summary["means"]["direct"]["p-mrr"] = 0.25
    _, table, _ = suite_tables(summary, tmp_path / "out")
    assert [*table.columns[1].cells] == ["0.250", "–", "0.250"]
    summary["differences"] = []
    assert len(suite_tables(summary, tmp_path / "out")) == 2


def test_what_is_there_is_kept_on_resuming(model, folders, tmp_path):
    out = tmp_path / "out"
    evaluate_several(lambda: model, folders[:1], out, PLAN)
    with pytest.raises(SearchR3Error, match=r"one.json: exists already.*--resume.*--overwrite"):
        refuse_taken(folders, out)
    before = (out / "one.json").stat().st_mtime_ns
    model.encoded = 0
    summary = evaluate_several(lambda: model, folders, out, PLAN, resume=True)
    assert [task["task"] for task in summary["tasks"]] == ["one", "two"]
    assert (out / "one.json").stat().st_mtime_ns == before and model.encoded == 150

    def no_model():
        pytest.fail("the model was loaded")

    assert evaluate_several(no_model, folders, out, PLAN, resume=True) == summary
    for other, words in (
        (replace(PLAN, model="other"), "is of the model bag, not other"),
        (replace(PLAN, split="dev"), "is of the split test, not dev"),
        (replace(PLAN, options={"baselines": ("some/model",)}), "with baselines bm25, not some/model"),
        (replace(PLAN, options={**PLAN.options, "max_new_tokens": 4}), "with max_new_tokens None, not 4"),
        (replace(PLAN, instructions=False), "with instructions True, not False"),
    ):
        with pytest.raises(SearchR3Error, match=words):
            evaluate_several(no_model, folders, out, other, resume=True)


def test_the_queries_are_those_of_the_split_and_options_that_were_left_out_count(model, folders, tmp_path):
    plan = replace(PLAN, split="dev", options={**PLAN.options, "max_new_tokens": 4})
    evaluate_several(lambda: model, folders[:1], tmp_path / "out", plan)
    found = json.loads((tmp_path / "out" / "one.json").read_text())
    assert (found["split"], found["queries"]) == ("dev", 20)
    with pytest.raises(SearchR3Error, match="with max_new_tokens 4, not None"):
        evaluate_several(lambda: model, folders, tmp_path / "out", replace(PLAN, split="dev"), resume=True)


def test_what_is_taken_over_is_looked_at_before_anything_is_measured(model, folders, tmp_path):
    out = tmp_path / "out"
    evaluate_several(lambda: model, folders[1:], out, PLAN)
    model.encoded = 0
    with pytest.raises(SearchR3Error, match="was measured with"):
        evaluate_several(lambda: model, folders, out, replace(PLAN, split_by="package"), resume=True)
    assert model.encoded == 0


def test_results_of_other_weights_are_not_taken_over(model, folders, tmp_path):
    out = tmp_path / "out"
    model.digest = lambda: "before"
    evaluate_several(lambda: model, folders[:1], out, PLAN)
    assert json.loads((out / "one.json").read_text())["digest"] == "before"
    model.digest = lambda: "after"
    with pytest.raises(SearchR3Error, match=r"one.json: is of a model with other weights"):
        evaluate_several(lambda: model, folders, out, PLAN, resume=True)
    assert not (out / "two.json").exists()
    model.digest = lambda: "before"
    assert len(evaluate_several(lambda: model, folders, out, PLAN, resume=True)["tasks"]) == 2


def test_what_servers_found_is_not_mixed_with_what_was_found_here(model, folders, tmp_path):
    """A model behind vLLM has no digest: nobody knows what stands there."""
    here, away = tmp_path / "here", tmp_path / "away"
    evaluate_several(lambda: model, folders[:1], away, PLAN)
    model.digest = lambda: "known"
    evaluate_several(lambda: model, folders[:1], here, PLAN)
    with pytest.raises(SearchR3Error, match=r"one.json: is of .*behind another --backend"):
        evaluate_several(lambda: model, folders, away, PLAN, resume=True)
    del model.digest
    with pytest.raises(SearchR3Error, match=r"one.json: is of .*behind another --backend"):
        evaluate_several(lambda: model, folders, here, PLAN, resume=True)
    assert len(evaluate_several(lambda: model, folders, away, PLAN, resume=True)["tasks"]) == 2


def test_results_of_weights_that_were_there_before_are_not_taken_over(model, folders, tmp_path, tiny_model):
    out, place = tmp_path / "out", shutil.copytree(tiny_model, tmp_path / "trained")
    plan = replace(PLAN, model=str(place))
    summary = evaluate_several(lambda: model, folders, out, plan)

    def no_model():
        pytest.fail("the model was loaded")

    Adaptive("margin", 0.25).save(place)  # which is no part of what was measured
    assert evaluate_several(no_model, folders, out, replace(plan), resume=True) == summary
    (place / "prompts.yaml").write_text("embed: Find it.")
    (place / "model.safetensors").write_bytes(b"trained again")
    for changed in (plan, replace(plan, prompts=place / "prompts.yaml")):
        with pytest.raises(SearchR3Error, match=r"one.json: is of a model with other weights or prompts"):
            evaluate_several(no_model, folders, out, replace(changed), resume=True)
    shutil.copy(tiny_model / "model.safetensors", place)
    with pytest.raises(SearchR3Error, match="other weights or prompts"):
        evaluate_several(no_model, folders, out, changed, resume=True)
    for name in ("one", "two"):
        old = json.loads((out / f"{name}.json").read_text())
        del old["files"]  # of a version that did not look
        write_json(out / f"{name}.json", old)
    assert evaluate_several(no_model, folders, out, changed, resume=True)["tasks"]


@pytest.mark.parametrize("damage", [Path.unlink, lambda place: place.write_bytes(place.read_bytes()[:100])])
def test_results_without_the_values_of_each_query_are_not_taken_over(model, folders, tmp_path, damage):
    out = tmp_path / "out"
    summary = evaluate_several(lambda: model, folders, out, PLAN)
    damage(out / "one.queries.parquet")
    words = r"one\.queries\.parquet: .*; without one\.json it is measured again with --resume"
    with pytest.raises(SearchR3Error, match=words):
        evaluate_several(lambda: model, folders, out, PLAN, resume=True)
    (out / "one.json").unlink()
    assert evaluate_several(lambda: model, folders, out, PLAN, resume=True)["tasks"] == summary["tasks"]


def test_results_by_another_rule_of_when_to_think_are_not_taken_over(model, folders, tmp_path):
    out, plan = tmp_path / "out", Plan("bag", options={"baselines": (), "reasoning": "auto"})
    model.adaptive = Adaptive("margin", 0.25, "dev of one")
    summary = evaluate_several(lambda: model, folders, out, plan)
    model.adaptive = Adaptive("margin", 0.25, "the same rule, chosen elsewhere")
    model.encoded = 0
    assert evaluate_several(lambda: model, folders, out, plan, resume=True) == summary
    for other in (Adaptive("margin", 0.5), Adaptive("score", 0.25), Adaptive("margin", None)):
        model.adaptive = other
        with pytest.raises(SearchR3Error, match=r"one.json: its run auto .*margin from 0.25.*--overwrite"):
            evaluate_several(lambda: model, folders, out, plan, resume=True)
    model.adaptive = None
    with pytest.raises(SearchR3Error, match="has no rule of when to think"):
        evaluate_several(lambda: model, folders, out, plan, resume=True)
    assert model.encoded == 0


@pytest.mark.parametrize("file", ["corpus.jsonl", "queries.jsonl", "qrels/test.tsv", "dataset.json"])
def test_results_of_data_that_has_changed_are_not_taken_over(model, folders, tmp_path, file):
    out = tmp_path / "out"
    summary = evaluate_several(lambda: model, folders, out, PLAN)
    (tmp_path / "one" / "notes.json").write_text("{}")  # which is no part of it
    assert evaluate_several(lambda: model, folders, out, PLAN, resume=True) == summary
    changed = tmp_path / "one" / file
    changed.write_text(changed.read_text() + "\n")
    with pytest.raises(SearchR3Error, match=r"one.json: .*one has changed since; choose another folder"):
        evaluate_several(lambda: model, folders, out, PLAN, resume=True)
    old = json.loads((out / "one.json").read_text())
    del old["data_files"]  # of a version that did not look
    write_json(out / "one.json", old)
    assert evaluate_several(lambda: model, folders, out, PLAN, resume=True)["tasks"] == summary["tasks"]


def test_vectors_of_one_data_set_are_gone_before_the_next(model, folders, tmp_path, monkeypatch):
    """Those of FEVER alone may take all memory."""
    measure, held = Plan.measure, []

    def watched(*asked):
        assert not any(vectors() is not None for vectors in held)
        results = measure(*asked)
        held.append(weakref.ref(results.document_vectors))
        return results

    monkeypatch.setattr(Plan, "measure", watched)
    evaluate_several(lambda: model, folders, tmp_path / "out", PLAN)
    assert len(held) == 2


def test_results_of_another_folder_of_that_name_are_not_taken_over(model, make_data, tmp_path):
    for place in ("a", "b"):
        make_data().save(tmp_path / place / "same")
    evaluate_several(lambda: model, [str(tmp_path / "a" / "same")], tmp_path / "out", PLAN)
    with pytest.raises(SearchR3Error, match="was measured with source"):
        evaluate_several(lambda: model, [str(tmp_path / "b" / "same")], tmp_path / "out", PLAN, resume=True)


def test_an_instruction_may_be_left_out(make_data, tmp_path):
    replace(make_data(), instruction="Find colours.").save(tmp_path / "told")
    assert PLAN.load(str(tmp_path / "told")).instruction == "Find colours."
    assert replace(PLAN, instructions=False).load(str(tmp_path / "told")).instruction is None


def test_two_of_one_name_are_refused(tmp_path):
    (tmp_path / "a" / "same").mkdir(parents=True)
    (tmp_path / "b" / "same").mkdir(parents=True)
    with pytest.raises(SearchR3Error, match="both results would be"):
        files_of([str(tmp_path / "a" / "same"), str(tmp_path / "b" / "same")], Path("out"))
    with pytest.raises(SearchR3Error, match="which is for all"):
        files_of(["suite"], Path("out"))
    assert [label(source) for source in ("python", "x/triples.jsonl.gz")] == ["python", "triples"]


def test_the_suites_are_of_tasks_with_files_of_their_own():
    assert {suite: len(sources) for suite, sources in SUITES.items()} == {
        "paper": 5,
        "bright": 12,
        "followir": 3,
        "beir": 26,
    }
    for sources in SUITES.values():
        assert len(files_of(sources, Path())) == len(sources)
    assert set(GROUPS) < set(SUITES["beir"])


def row(name, value):
    return {"name": name, **dict.fromkeys(METRICS, value)}


def test_a_group_counts_once_and_only_what_every_task_has_gets_a_mean():
    forums = list(GROUPS)[:2]
    found = {
        forums[0]: {"runs": [row("direct", 0.2)], "differences": []},
        forums[1]: {"runs": [row("direct", 0.4)], "differences": []},
        "mteb:SciFact": {"runs": [row("direct", 0.9), row("bm25", 0.5)], "differences": []},
    }
    summary = summarized("beir", "m", found)
    assert summary["means"] == {"direct": pytest.approx(dict.fromkeys(METRICS, 0.6))}
    assert [task.get("group") for task in summary["tasks"]] == ["CQADupstackRetrieval"] * 2 + [None]


def test_p_values_are_adjusted_over_the_tasks_of_one_pair_and_metric():
    values = {"a": [0.01, 0.03], "b": [0.02, 0.9], "c": [0.2, 0.5]}
    found = {
        task: {
            "runs": [],
            "differences": [
                {"a": "x", "b": "y", "metric": "ndcg@10", "p": first},
                {"a": "x", "b": "z", "metric": "ndcg@10", "p": second},
            ],
        }
        for task, (first, second) in values.items()
    }
    rows = summarized("s", "m", found)["differences"]
    for place, pair in enumerate("yz"):
        adjusted = [one["p_holm"] for one in rows if one["b"] == pair]
        assert adjusted == holm([two[place] for two in values.values()])


def test_a_broken_file_is_told(tmp_path, folders, model):
    write_json(tmp_path / "out" / "one.json", {"no": "results"})
    with pytest.raises(SearchR3Error, match=r"one.json: key 'model' is missing"):
        evaluate_several(lambda: model, folders[:1], tmp_path / "out", PLAN, resume=True)
