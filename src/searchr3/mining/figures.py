"""What a mining came to, in figures and as a table."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table


def figures(rows: Iterable[Mapping[str, Any]], without_relevant: int) -> dict[str, Any]:
    """Sum up what was chosen.

    Args:
        rows: for each query the fields of `Choice`, and its `negatives` by id.
        without_relevant: queries that were not asked, having no relevant document to train on.

    Returns:
        `queries` that were asked; `without_relevant`; `negatives`; `by_count`, number of negatives → queries;
        `candidates` in the windows; `dropped` of them by the margin; `copies` that were passed over;
        `mean_rank` and `mean_gap` of the negatives, None without any.
    """
    counts: Counter[int] = Counter()
    sums: Counter[str] = Counter()
    ranks, gaps = 0, 0.0
    for row in rows:
        counts[len(row["negatives"])] += 1
        for name in ("window", "dropped", "copies"):
            sums[name] += row[name]
        ranks += sum(row["ranks"])
        gaps += math.fsum(row["gaps"])
    negatives = sum(count * queries for count, queries in counts.items())
    return {
        "queries": counts.total(),
        "without_relevant": without_relevant,
        "negatives": negatives,
        "by_count": {str(count): counts[count] for count in sorted(counts, reverse=True)},
        "candidates": sums["window"],
        "dropped": sums["dropped"],
        "copies": sums["copies"],
        "mean_rank": ranks / negatives if negatives else None,
        "mean_gap": gaps / negatives if negatives else None,
    }


def mining_table(found: Mapping[str, Any], wanted: int, title: str) -> Table:
    """The figures for the terminal; `wanted` negatives a query."""
    from rich import box
    from rich.markup import escape
    from rich.table import Table

    table = Table(title=escape(title), box=box.SIMPLE, show_header=False, title_justify="left")
    table.add_column()
    table.add_column(justify="right")
    full, none = (found["by_count"].get(str(count), 0) for count in (wanted, 0))
    some = found["queries"] - full - none
    lines = [
        (f"queries with {wanted} new negatives", f"{full:,}"),
        *([(f"queries with 1 to {wanted - 1}", f"{some:,}")] if wanted > 1 else []),
        ("queries with none", f"{none:,}"),
        ("candidates in the rank window", f"{found['candidates']:,}"),
        ("  dropped by the margin", f"{found['dropped']:,}{_share(found['dropped'], found['candidates'])}"),
        ("  passed over as copies", f"{found['copies']:,}"),
        ("mean rank of the negatives", _number(found["mean_rank"], ".1f")),
        ("mean score below the relevant document", _number(found["mean_gap"], ".3f")),
    ]
    if found["without_relevant"]:
        lines.insert(3, ("queries without a relevant document", f"{found['without_relevant']:,}"))
    for line in lines:
        table.add_row(*line)
    return table


def _share(part: int, whole: int) -> str:
    return f" ({part / whole:.1%})" if whole else ""


def _number(value: float | None, form: str) -> str:
    return "–" if value is None else format(value, form)
