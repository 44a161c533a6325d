"""The tables of budgets and samples."""

import io

import numpy as np
import pytest
from rich.console import Console

from searchr3.evaluation import curve_tables, evaluate
from searchr3.evaluation.statistics import holm, paired_difference


def shown(table):
    console = Console(width=80, file=io.StringIO())
    console.print(table)
    return console.file.getvalue()


def test_tables_show_every_point_and_what_direct_gives(thinker, data):
    summary = evaluate(thinker, data, baselines=(), budgets=[0, 3], samples=[1, 2], max_new_tokens=5).summary
    budget, samples, uncertainty = map(shown, curve_tables(summary))
    assert f"direct: {summary['runs'][0]['ndcg@10']:.3f}" in budget
    for text, rows in ((budget, summary["curves"]["budget"]), (samples, summary["curves"]["samples"])):
        for row in rows:
            assert f"{row['ndcg@10']:.3f} {row['ci95'][0]:.3f}–{row['ci95'][1]:.3f}" in text
            assert f"{row['thinking_tokens_mean']:.1f}" in text and f"{row['emission_rate']:.1%}" in text
    for row in summary["uncertainty"]["signals"]:
        assert row["signal"] in uncertainty and f"{row['auroc']:.3f}" in uncertainty
    assert "2 samples" in uncertainty


def test_every_point_is_held_against_direct_query_by_query(thinker, data):
    asked = {"baselines": (), "budgets": [0, 2, 5], "samples": [1, 2], "max_new_tokens": 5}
    found = evaluate(thinker, data, **asked)
    curves = found.summary["curves"]
    direct = found.run("direct").values["ndcg@10"]
    for points in curves.values():
        apart = [point["minus_direct"] for point in points]
        assert [one["p_holm"] for one in apart] == holm([one["p"] for one in apart])
        for point, one in zip(points, apart, strict=True):
            assert one["mean"] == pytest.approx(point["ndcg@10"] - np.mean([*direct.values()]))
            assert one["ci95"][0] <= one["mean"] <= one["ci95"][1]
    reasoned = [found.run("reasoned").values["ndcg@10"][query] for query in found.query_ids]
    whole = paired_difference(np.array(reasoned), np.array([direct[query] for query in found.query_ids]))
    assert curves["budget"][-1]["ci95"] == pytest.approx(found.summary["runs"][1]["ci95"]["ndcg@10"])
    last = curves["budget"][-1]["minus_direct"]  # the whole thought, as `reasoned` has it
    assert (last["mean"], last["p"]) == (pytest.approx(whole.mean), pytest.approx(whole.p, abs=0.02))
    budget, *_ = map(shown, curve_tables(found.summary))
    assert "− direct" in budget and f"{last['mean']:+.3f}" in budget
    alone = evaluate(thinker, data, reasoning="on", **asked).summary["curves"]
    assert not any("minus_direct" in point for points in alone.values() for point in points)


def test_what_was_not_asked_for_has_no_table(thinker, data):
    assert curve_tables(evaluate(thinker, data, baselines=()).summary) == []
    only = evaluate(thinker, data, reasoning="on", baselines=(), budgets=[2]).summary
    (table,) = curve_tables(only)
    assert "direct" not in shown(table)
    signals = [{"signal": "agreement", "run": "direct", "rank_correlation": None, "auroc": None}]
    constant = {"runs": [], "uncertainty": {"samples": 2, "agreement_mean": 1.0, "signals": signals}}
    (table,) = curve_tables(constant)
    assert shown(table).count("–") == 2
