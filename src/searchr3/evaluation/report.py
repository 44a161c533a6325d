"""`report.html`: one page that shows a run and needs nothing outside itself."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from searchr3.evaluation.figures import bars, curve, lines, shares
from searchr3.evaluation.pages import render, run_name, verdict
from searchr3.evaluation.results import Results, Run
from searchr3.ranking import METRICS
from searchr3.words import shortened

if TYPE_CHECKING:
    from searchr3.dataset import RetrievalDataset

CURVES = (
    ("stage1", "loss", "Loss, stage 1", "accent"),
    ("stage1", "eval_direct", "Direct nDCG@10 on dev, stage 1", "direct"),
    ("stage1", "eval_reasoned", "Reasoned nDCG@10 on dev, stage 1", "reasoned"),
    ("stage2", "reward", "Reward, stage 2", "accent"),
    ("stage2", "thinking_tokens", "Thinking length in tokens, stage 2", "reasoned"),
    ("stage2", "reward_gain", "Reward with thinking minus without, stage 2", "reasoned"),
    ("stage2", "groups_useful", "Share of queries whose rollouts are told apart", "accent"),
    ("stage2", "eval_direct", "Direct nDCG@10 on dev, stage 2", "direct"),
    ("stage2", "eval_reasoned", "Reasoned nDCG@10 on dev, stage 2", "reasoned"),
    ("stage2", "environment_share_tokens", "Share of the corpus encoded again, in tokens", "accent"),
    ("stage2", "environment_seconds", "Seconds of a refresh, encoding included", "baseline"),
    ("stage2", "audit_advantage_spearman", "Advantages against a fresh corpus, Spearman", "accent"),
    ("stage2", "audit_reward_error", "Error of the rewards against a fresh corpus", "baseline"),
    ("stage2", "audit_top10_overlap", "Share of the ten first hits that a fresh corpus has", "accent"),
    ("stage2", "audit_drift", "Drift: 1 − cosine of stored and fresh vectors", "baseline"),
)
"""Figures over the training steps: stage, key of its rows, title, colour. Drawn where a row has the key."""

ZERO_VARIANCE = {
    "zero_variance_same": ("same thought", "reasoned"),
    "zero_variance_saturated": ("saturated", "accent"),
    "zero_variance_hopeless": ("hopeless", "baseline"),
    "zero_variance_other": ("other", "direct"),
}
"""Queries from which nothing is learnt, by cause: key of stage 2's rows → name, colour."""

AGES = {
    "audit_age_p90": ("90 %", "baseline"),
    "audit_age_p50": ("median", "accent"),
    "audit_age_p10": ("10 %", "direct"),
}
"""Percentiles of the ages of the stored vectors: key of stage 2's rows → name, colour."""

_OWN = ("direct", "reasoned")  # runs of the model; the others are baselines


def render_report(
    title: str,
    stages: Mapping[str, Mapping[str, Any]],
    curves: Mapping[str, Sequence[Mapping[str, Any]]],
    examples: Sequence[Mapping[str, Any]],
    recipe_text: str,
    environment: Mapping[str, Any],
    differences: Sequence[Mapping[str, Any]] = (),
    alarms: Sequence[Mapping[str, Any]] = (),
    chats: Mapping[str, Mapping[str, Any]] | None = None,
    chat_examples: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The page as HTML text. Every text from outside is escaped.

    Args:
        title: heading of the page.
        stages: "stage1", "stage2" → the content of a `results.json`, over the same test.
        curves: "stage1", "stage2" → `{"step": int, "loss" | "reward" | "thinking_tokens" | …: number}` rows.
        examples: as `choose_examples` returns them.
        recipe_text: the recipe as it was used.
        environment: what → version or value, of the machine and the libraries.
        differences: between the stages, as `evaluation.between` returns them.
        alarms: of stage 2's health monitor, `{"step", "name", "value", "threshold", "message"}` each.
        chats: "stage1", "stage2" → as `evaluation.chat.still_chats` returns it.
        chat_examples: as `evaluation.chat.chat_examples` returns them.
    """
    rows = _rows(stages)
    within = [
        {**row, "a": _named(row["a"], stage), "b": _named(row["b"], stage)}
        for stage, summary in stages.items()
        for row in summary["differences"]
    ]
    across = [{**row, "a": _across(row["a"]), "b": _across(row["b"])} for row in differences]
    drawn = [
        (label, curve(curves.get(stage, ()), key, label, colour)) for stage, key, label, colour in CURVES
    ]
    idle = "Share of queries whose rollouts are all worth the same"
    drawn.append((idle, shares(curves.get("stage2", ()), ZERO_VARIANCE, idle)))
    ages = "Age of the stored vectors in steps, percentiles"
    drawn.append((ages, lines(curves.get("stage2", ()), AGES, ages)))
    return render(
        "report.html.j2",
        title=title,
        metrics=METRICS,
        data=next(iter(stages.values()), None),
        rows=rows,
        bars=rows and _bars(rows),
        differences=[row for row in (*across, *within) if row["metric"] == "ndcg@10"],
        findings=_findings(stages, differences),
        curves=[(label, svg) for label, svg in drawn if svg],
        alarms=alarms,
        watched=bool(curves.get("stage2")),
        examples=examples,
        chats=[(_stage(name), chat) for name, chat in (chats or {}).items()],
        replies=[
            {**one, "sides": [(_stage(name), said) for name, said in one["sides"]]} for one in chat_examples
        ],
        recipe=recipe_text,
        environment=environment,
    )


def choose_examples(
    before: Results,
    after: Results,
    dataset: RetrievalDataset,
    count: int = 10,
    hits: int = 5,
    run: str = "reasoned",
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Queries for the report, drawn at random so that nobody picked them, with the thoughts and the hits.

    Args:
        before: say, the evaluation after stage 1.
        after: say, the evaluation after stage 2, of the same queries.
        dataset: what both were evaluated on.
        count: queries shown.
        hits: hits shown for each.
        run: which run of both; "direct" when nothing was thought.
        seed: of the draw.

    Returns:
        `{"query", "relevant": [title], "before": side, "after": side}` for each query, where a side is
        `{"reasoning", "rank", "hits": [{"title", "text", "score", "relevant"}]}`; the rank is that of the
        first relevant hit, or None.
    """
    qrels = dataset.split(before.split)
    ids = random.Random(seed).sample(sorted(before.query_ids), min(count, len(before.query_ids)))
    return [
        {
            "query": dataset.queries[query].text,
            "relevant": [
                _heading(dataset, document) for document, grade in qrels[query].items() if grade > 0
            ],
            "before": _side(before.run(run), query, qrels[query], dataset, hits),
            "after": _side(after.run(run), query, qrels[query], dataset, hits),
        }
        for query in ids
    ]


def _side(
    run: Run, query: str, grades: Mapping[str, int], dataset: RetrievalDataset, shown: int
) -> dict[str, Any]:
    found, thought = run.hits.get(query, ()), run.thoughts.get(query)
    ranks = [rank for rank, hit in enumerate(found, start=1) if grades.get(hit.document, 0) > 0]
    return {
        "reasoning": thought.text if thought else None,
        "rank": ranks[0] if ranks else None,
        "hits": [
            {
                "title": _heading(dataset, hit.document),
                "text": shortened(dataset.corpus[hit.document].text, 120),
                "score": hit.score,
                "relevant": grades.get(hit.document, 0) > 0,
            }
            for hit in found[:shown]
        ],
    }


def _heading(dataset: RetrievalDataset, document: str) -> str:
    found = dataset.corpus.get(document)  # judgements may name others
    return shortened((found.title if found else "") or document, 100)


def _rows(stages: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The runs of all stages for table and bars; a baseline, which no stage changes, once and on top."""
    rows: dict[str, dict[str, Any]] = {}
    for stage, summary in stages.items():
        for run in summary["runs"]:
            kind = run["name"] if run["name"] in _OWN else "baseline"
            label = _named(run["name"], stage)
            rows.setdefault(label, {"label": label, "kind": kind, "run": run})
    return sorted(rows.values(), key=lambda row: row["kind"] != "baseline")


def _bars(rows: Sequence[Mapping[str, Any]]) -> str:
    means, intervals = zip(
        *((row["run"]["ndcg@10"], row["run"]["ci95"]["ndcg@10"]) for row in rows), strict=True
    )
    return bars(
        [shortened(row["label"], 30) for row in rows], means, intervals, [row["kind"] for row in rows]
    )


def _named(run: str, stage: str) -> str:
    """A run as people read it: "direct, stage 1"; a baseline by the last part of its path."""
    if run in _OWN:
        return f"{run}, {_stage(stage)}"
    return run_name(run)


def _across(name: str) -> str:
    """ "stage2 reasoned" as "reasoned, stage 2"."""
    stage, _, run = name.partition(" ")
    return f"{run}, {_stage(stage)}" if run else name


def _stage(stage: str) -> str:
    return f"stage\u00a0{stage[5:]}" if stage.startswith("stage") and stage[5:].isdigit() else stage


def _findings(
    stages: Mapping[str, Mapping[str, Any]], across: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """The questions of the page and their answers, from the differences in nDCG@10."""
    asked = [
        (
            "Does thinking help, after stage 2?",
            stages.get("stage2", {}).get("differences", ()),
            "reasoned",
            "direct",
        ),
        ("Did reinforcement improve the thinking?", across, "stage2 reasoned", "stage1 reasoned"),
        (
            "Is thinking, reinforced, better than not thinking before it?",
            across,
            "stage2 reasoned",
            "stage1 direct",
        ),
        ("Did reinforcement harm direct search?", across, "stage2 direct", "stage1 direct"),
    ]
    if "stage2" not in stages:
        asked.append(
            (
                "Does thinking help?",
                next(iter(stages.values()), {}).get("differences", ()),
                "reasoned",
                "direct",
            )
        )
    found = []
    for question, rows, a, b in asked:
        for row in rows:
            if (row["a"], row["b"], row["metric"]) == (a, b, "ndcg@10"):
                found.append({"question": question, "row": row, "answer": _answer(row)})
    return found


def _answer(row: Mapping[str, Any]) -> str:
    found = verdict(row["ci95"], row["p"])
    return f"significantly {found}" if found else "no significant difference"
