"""The tables of budgets and samples."""

import io

from rich.console import Console

from searchr3.evaluation import curve_tables, evaluate


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


def test_what_was_not_asked_for_has_no_table(thinker, data):
    assert curve_tables(evaluate(thinker, data, baselines=()).summary) == []
    only = evaluate(thinker, data, reasoning="on", baselines=(), budgets=[2]).summary
    (table,) = curve_tables(only)
    assert "direct" not in shown(table)
    signals = [{"signal": "agreement", "run": "direct", "rank_correlation": None, "auroc": None}]
    constant = {"runs": [], "uncertainty": {"samples": 2, "agreement_mean": 1.0, "signals": signals}}
    (table,) = curve_tables(constant)
    assert shown(table).count("–") == 2
