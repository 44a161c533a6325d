"""Measuring a model against the field's baselines: runs, intervals, comparisons, report."""

from searchr3.evaluation.baselines import check_baselines
from searchr3.evaluation.comparison import (
    between,
    compare,
    differences_table,
    results_table,
)
from searchr3.evaluation.controls import CONTROLS, check_controls
from searchr3.evaluation.curves import curve_tables
from searchr3.evaluation.results import Hit, Results, Run
from searchr3.evaluation.rivals import reusable
from searchr3.evaluation.runner import evaluate
from searchr3.evaluation.saved import read_queries, read_results

__all__ = [
    "CONTROLS",
    "Hit",
    "Results",
    "Run",
    "between",
    "check_baselines",
    "check_controls",
    "compare",
    "curve_tables",
    "differences_table",
    "evaluate",
    "read_queries",
    "read_results",
    "results_table",
    "reusable",
]
