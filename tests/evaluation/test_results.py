"""results.json: what it holds, that it survives the disk, and how two are compared."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from searchr3.errors import DataError
from searchr3.evaluation import (
    CONTROLS,
    Results,
    Run,
    between,
    compare,
    differences_table,
    evaluate,
    read_queries,
    read_results,
    results_table,
)
from searchr3.evaluation.results import queries_path
from searchr3.evaluation.statistics import bootstrap_ci, holm, paired_difference
from searchr3.ranking import METRICS


def make(seed=0, names=("direct", "reasoned"), baselines=("bm25",), queries=30, shift=0.0, **changes):
    def run(name):
        rng = np.random.default_rng([seed, *name.encode()])
        values = {
            metric: {f"q{i}": float(rng.random() * 0.5 + shift) for i in range(queries)} for metric in METRICS
        }
        return Run(name, values, {}, 1.5)

    ids = tuple(f"q{i}" for i in range(queries))
    fields = {"model": "m", "data": "toy", "split": "test", "documents": 7, "query_ids": ids} | changes
    return Results(runs=tuple(map(run, names)), baselines=tuple(map(run, baselines)), **fields)


def test_summary_is_what_the_design_says(model, data):
    results = evaluate(model, data, name="m")
    summary = results.summary
    keys = ["model", "data", "split", "documents", "queries", "runs", "differences", "examples"]
    assert list(summary) == keys
    assert [run["kind"] for run in summary["runs"]] == ["own", "own", "baseline"]
    assert (summary["model"], summary["queries"], summary["documents"]) == ("m", 40, 150)
    for run in summary["runs"]:
        values = {metric: np.array([*results.run(run["name"]).values[metric].values()]) for metric in METRICS}
        assert {"name", *METRICS, "ci95", "thinking_tokens_mean", "emission_rate", "seconds"} <= run.keys()
        assert run["cost"].keys() == {"seconds_per_query", "thinking_tokens_per_second", "documents_seconds"}
        assert run["cost"]["seconds_per_query"] == run["seconds"] / 40
        for metric in METRICS:
            assert run[metric] == pytest.approx(values[metric].mean())
            assert run["ci95"][metric] == pytest.approx([*bootstrap_ci(values[metric])])
    assert [run["emission_rate"] is None for run in summary["runs"]] == [True, False, True]
    assert [run["kind"] for run in summary["runs"]] == ["own", "own", "baseline"]
    row = summary["differences"][0]
    assert (row["a"], row["b"], row["metric"]) == ("reasoned", "direct", "ndcg@10")
    a, b = ([*results.run(name).values["ndcg@10"].values()] for name in ("reasoned", "direct"))
    expected = paired_difference(a, b)
    assert (row["mean"], row["p"]) == (pytest.approx(expected.mean), pytest.approx(expected.p, abs=1e-9))
    assert row["ci95"] == pytest.approx(expected.ci95)


def test_saved_and_read_again(model, data, tmp_path):
    results = evaluate(model, data)
    path = tmp_path / "new" / "results.json"
    results.save(path)
    assert read_results(path) == json.loads(json.dumps(results.summary)) == results.summary
    assert read_queries(path) == {name: results.run(name).values for name in ("direct", "reasoned", "bm25")}
    assert sorted(file.name for file in path.parent.iterdir()) == ["results.json", "results.queries.parquet"]
    rows = pq.read_table(queries_path(path)).to_pylist()
    assert len(rows) == 3 * 40
    row = next(row for row in rows if row["run"] == "reasoned" and row["query"] == "q20")
    reasoned = results.run("reasoned")
    assert row["reasoning"] == reasoned.thoughts["q20"].text
    assert row["thinking_tokens"] == len(reasoned.thoughts["q20"].token_ids)
    assert row["hits"] == [hit.document for hit in reasoned.hits["q20"][:10]]
    emitted = {row["query"]: row["emitted"] for row in rows if row["run"] == "reasoned"}
    assert emitted == {query: thought.emitted for query, thought in reasoned.thoughts.items()}
    assert {*emitted.values()} == {True, False}
    assert rows[0]["run"] == "direct" and rows[0]["emitted"] is None and rows[0]["reasoning"] is None


def test_nothing_half_written_is_left(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        Path(args[1]).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full)
    with pytest.raises(Exception, match="no space left"):
        make().save(tmp_path / "results.json")
    assert not list(tmp_path.iterdir())


GOOD = make(queries=3).summary


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("{", "not valid JSON"),
        ("[]", "not a JSON object"),
        (json.dumps({**GOOD, "runs": "?"}), "'runs' is not a list"),
        (json.dumps({k: v for k, v in GOOD.items() if k != "data"}), "'data' is missing"),
        (json.dumps({**GOOD, "queries": "many"}), "'queries' is not a whole number"),
        (json.dumps({**GOOD, "runs": [{}]}), r"'runs\[0\].name' is missing"),
        (
            json.dumps({**GOOD, "runs": [{**GOOD["runs"][0], "mrr@10": None}]}),
            r"'runs\[0\].mrr@10' is not a number",
        ),
        (
            json.dumps({**GOOD, "runs": [{**GOOD["runs"][0], "ci95": {}}]}),
            r"'runs\[0\].ci95' has no interval of 'ndcg@10'",
        ),
        (json.dumps({**GOOD, "runs": GOOD["runs"] * 2}), "'runs' has two runs of the name 'direct'"),
        (b"\xff\xfe", "not valid JSON"),
    ],
)
def test_a_wrong_file_is_one_clear_line(tmp_path, content, fault):
    path = tmp_path / "wrong.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=fault) as caught:
        read_results(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def cut(table):
    return table.slice(0, 60)


def lowered(table):
    return table.set_column(2, "ndcg@10", pa.array([0.0] * len(table)))


def twice(table):
    return pa.concat_tables([table, lowered(table)])


def nameless(table):
    return table.set_column(0, "run", pa.array([None] * len(table), pa.string()))


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (cut, "holds the values of other results than a.json"),
        (lowered, "holds the values of other results than a.json"),
        (twice, "holds the values of other results than a.json"),
        (nameless, "does not hold the values of each query"),
    ],
)
def test_values_that_are_not_of_the_results_beside_them_are_refused(tmp_path, change, fault):
    make().save(tmp_path / "a.json")
    place = queries_path(tmp_path / "a.json")
    pq.write_table(change(pq.read_table(place)), place)
    with pytest.raises(DataError, match=fault):
        read_queries(tmp_path / "a.json")


def test_values_of_another_model_are_refused(tmp_path):
    """As after a copy of one file without the other."""
    make(1).save(tmp_path / "a.json")
    make(2).save(tmp_path / "b.json")
    queries_path(tmp_path / "a.json").write_bytes(queries_path(tmp_path / "b.json").read_bytes())
    with pytest.raises(DataError, match="holds the values of other results"):
        compare(tmp_path / "a.json", tmp_path / "b.json")


def test_missing_files_are_named(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_results(tmp_path / "none.json")
    with pytest.raises(DataError, match="cannot be read"):
        read_results(tmp_path)
    make().save(tmp_path / "a.json")
    (tmp_path / "a.queries.parquet").unlink()
    with pytest.raises(DataError, match=r"a\.queries\.parquet: no such file; keep it beside a\.json"):
        compare(tmp_path / "a.json", tmp_path / "a.json")
    (tmp_path / "a.queries.parquet").write_text("no parquet")
    with pytest.raises(DataError, match="does not hold the values of each query"):
        read_queries(tmp_path / "a.json")


def saved(folder, name, **options):
    path = folder / f"{name}.json"
    make(**options).save(path)
    return path


def test_compare(tmp_path):
    a, b = saved(tmp_path, "a", shift=0.2), saved(tmp_path, "b", seed=1, baselines=())
    rows = compare(a, b)
    assert [(row["run"], row["metric"]) for row in rows] == [
        (run, m) for run in ("direct", "reasoned") for m in METRICS
    ]
    assert {(row["a"], row["b"]) for row in rows} == {(str(a), str(b))}
    for row in rows:
        of_a, of_b = (read_queries(path)[row["run"]][row["metric"]] for path in (a, b))
        assert row["mean"] == pytest.approx(np.mean([of_a[query] - of_b[query] for query in of_a]))
        assert row["ci95"][0] > 0 and row["p"] < 0.01
    assert [row["mean"] for row in compare(b, a)] == pytest.approx([-row["mean"] for row in rows])
    assert all((row["mean"], row["p"]) == (0, 1) for row in compare(a, a))
    assert [row["p_holm"] for row in rows] == holm([row["p"] for row in rows])
    assert all(row["p_holm"] > row["p"] for row in rows)


def test_older_files_can_be_compared_with_new_ones(thinker, data, tmp_path):
    """Those without kinds, curves, examples and controls."""
    asked = {"controls": CONTROLS, "budgets": [0, 2], "samples": [2]}
    evaluate(thinker, data, max_new_tokens=4, **asked).save(tmp_path / "new.json")
    evaluate(thinker, data, max_new_tokens=4).save(tmp_path / "old.json")
    old = json.loads((tmp_path / "old.json").read_text())
    del old["examples"]
    for run in old["runs"]:
        del run["kind"]
    (tmp_path / "old.json").write_text(json.dumps(old))
    rows = compare(tmp_path / "new.json", tmp_path / "old.json")
    assert {row["run"] for row in rows} == {"direct", "reasoned", "bm25"}
    assert all(row["mean"] == 0 for row in rows)


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"data": "other"}, "differ in their data"),
        ({"split": "dev"}, "differ in their split"),
        ({"documents": 8}, "differ in their documents"),
        ({"queries": 29}, "differ in their set of queries"),
        ({"names": ("other",), "baselines": ()}, r"share no run \(direct, reasoned, bm25 against other\)"),
    ],
)
def test_what_cannot_be_compared(tmp_path, options, fault):
    with pytest.raises(DataError, match=fault):
        compare(saved(tmp_path, "a"), saved(tmp_path, "b", **options))


def test_results_on_data_that_has_changed_cannot_be_compared(tmp_path):
    a, b = (saved(tmp_path, name, extras={"data_files": name}) for name in "ab")
    with pytest.raises(DataError, match="were measured on different files of toy; evaluate both on the same"):
        compare(a, b)
    assert compare(a, saved(tmp_path, "older"))


def test_between_two_stages():
    first, second = make(), make(seed=1, shift=0.3)
    rows = between(first, second)
    assert {(row["a"], row["b"]) for row in rows} == {
        (f"stage2 {a}", f"stage1 {b}") for a in ("direct", "reasoned") for b in ("direct", "reasoned")
    }
    assert all(row["mean"] > 0.1 for row in rows)
    with pytest.raises(DataError, match="stage1 and stage2 differ in their set of queries"):
        between(first, make(queries=5))


def test_values_are_paired_by_query_in_whatever_order_they_are_held():
    first, second = make(), make(seed=1)
    turned = [
        replace(run, values={metric: dict([*each.items()][::-1]) for metric, each in run.values.items()})
        for run in first.runs
    ]
    assert between(replace(first, runs=tuple(turned)), second) == between(first, second)
    one = replace(first, runs=(first.runs[0], turned[1]))
    assert between(second, one) == between(second, first)


def shown(table):
    console = Console(width=80, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


def test_tables_show_every_run_and_take_names_as_they_are(tmp_path, monkeypatch):
    results = make(baselines=("bm25", "[b]x[/b]"))
    text = shown(results_table(results.summary))
    for run in results.summary["runs"]:
        low, high = run["ci95"]["ndcg@10"]
        assert run["name"] in text
        assert f"{run['ndcg@10']:.3f} {low:.3f}–{high:.3f}" in text
        assert f"{run['mrr@10']:.3f}" in text
    text = shown(differences_table(results.summary["differences"], ["ndcg@10"]))
    assert "reasoned − direct" in text and "reasoned − [b]x[/b]" in text and "mrr@10" not in text
    monkeypatch.chdir(tmp_path)
    make(seed=1).save("a.json")
    make(shift=0.5).save("b.json")
    text = shown(differences_table(compare("b.json", "a.json")))
    assert text.startswith("b.json − a.json")
    assert text.count("<0.001") == 3 * len(METRICS)
    assert "p (Holm)" in text and max(map(len, text.splitlines())) <= 80


def test_a_table_tells_p_and_the_corrected_p():
    row = {"run": "direct", "a": "x", "b": "y", "metric": "ndcg@10", "mean": 0.1, "ci95": [0.05, 0.15]}
    text = shown(
        differences_table([{**row, "p": 0.004, "p_holm": 0.012}, {**row, "p": 0.0004, "p_holm": 0.7}])
    )
    assert [line.split()[-2:] for line in text.splitlines()[-3:] if line.strip()] == [
        ["0.004", "0.012"],
        ["<0.001", "0.700"],
    ]


def test_a_name_does_not_steer_the_terminal():
    text = shown(results_table(make(data="\x1b[31mred\x1b]0;mine\x07\nthing").summary))
    assert "\x1b" not in text and "\x07" not in text and text.count("red ]0;mine  thing · test") == 1


def test_a_table_tells_the_cost_in_80_columns():
    summary = make().summary
    direct, reasoned, bm25 = summary["runs"]
    reasoned |= {"emission_rate": 0.995, "thinking_tokens_mean": 128.4, "seconds": 61000.0}
    reasoned["cost"] = {"seconds_per_query": 12.3456, "thinking_tokens_per_second": 1234.5}
    direct["cost"]["seconds_per_query"] = 0.00049
    del bm25["cost"], bm25["kind"]  # as an older version wrote it
    text = shown(results_table(summary))
    rows = {row.split()[0]: row.split()[-4:] for row in text.splitlines() if row[:2].strip("─ ")}
    assert rows["direct"] == ["–", "–", "–", "0.5"]
    assert rows["reasoned"] == ["128.4", "99.5%", "1,234", "12,346"]
    assert rows["bm25"] == ["–", "–", "–", "50.0"]  # 1.5 seconds for 30 queries


def test_no_differences_are_an_empty_table():
    assert "paired differences" in shown(differences_table([]))
