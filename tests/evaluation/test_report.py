"""The report: whole, self-contained, harmless, and saying what the figures say."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from searchr3.dataset import Document, Query
from searchr3.evaluation import between, evaluate
from searchr3.evaluation.figures import bars, curve, shares
from searchr3.evaluation.report import choose_examples, render_report

EVIL = "<script>alert('x')</script>\"><img src=x onerror=alert(1)>"
VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Checks that the tags are balanced, and collects them and the text."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.attributes, self.text = [], [], [], []
        self.feed(html)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


CURVES = {
    "stage1": [{"step": i, "loss": 5 / i} for i in range(1, 60)] + [{"step": 30, "eval_direct": 0.2}],
    "stage2": [{"step": i, "reward": 0.3 + i / 100, "thinking_tokens": 9.0} for i in range(1, 9)],
}


@pytest.fixture
def stages(model, data):
    first = evaluate(model, data)
    model.said = "red"
    return first, evaluate(model, data, baselines=[first.run("bm25")])


def render(results, data, **changes):
    first, second = results
    options = {
        "title": "A run",
        "stages": {"stage1": first.summary, "stage2": second.summary},
        "curves": CURVES,
        "examples": choose_examples(first, second, data),
        "recipe_text": "seed: 0\nstage1:\n  steps: 10",
        "environment": {"torch": "2.13", "seed": 0},
        "differences": between(first, second),
    }
    return render_report(**options | changes)


def test_the_page_is_whole_and_says_the_figures(stages, data):
    html = render(stages, data)
    page = Page(html)
    text = " ".join("".join(page.text).split())
    for stage, results in zip(("stage 1", "stage 2"), stages, strict=True):
        for run in results.summary["runs"]:
            name = "BM25" if run["name"] == "bm25" else f"{run['name']}, {stage}"
            assert name in text
            assert f"{run['ndcg@10']:.3f}" in text
    assert text.count("BM25 ") and stages[0].run("bm25").setting in text
    for part in (
        "A run",
        "Loss, stage 1",
        "Reward, stage 2",
        "Thinking length",
        "10 test queries",
        "steps: 10",
        "2.13",
    ):
        assert part in text, part
    row = next(
        row for row in between(*stages) if (row["a"], row["b"]) == ("stage2 reasoned", "stage1 reasoned")
    )
    assert f"{row['mean']:+.3f}".replace("-", "−") in text
    assert page.tags.count("svg") == 5
    assert html == render(stages, data)  # nothing of it depends on the time or on chance


def test_alarms_are_told_and_so_is_their_absence(stages, data):
    alarm = {"step": 12, "name": "length", "value": 2.0, "threshold": 3.0, "message": f"shrunk; {EVIL}"}
    html = render(stages, data, alarms=[alarm])
    page = Page(html)
    assert "step 12" in "".join(page.text) and f"shrunk; {EVIL}" in "".join(page.text)
    assert "script" not in page.tags
    assert "found nothing amiss" not in html
    assert "found nothing amiss" in render(stages, data)
    assert "Alarms" not in "".join(Page(render(stages, data, curves={"stage1": CURVES["stage1"]})).text)


def test_what_is_said_to_chat_prompts_stands_beside_what_the_base_says(stages, data):
    measured = {"kl_base_trained": 0.0123, "kl_trained_base": 0.5, "same_token": 0.875, "embed_rate": 0.25}
    example = {"prompt": "Hello!", "kl_base_trained": 0.25, "sides": [("base", "Hi."), ("stage2", EVIL)]}
    chats = {"stage1": {"skipped": "no memory"}, "stage2": measured}
    page = Page(render(stages, data, chats=chats, chat_examples=[example]))
    text = " ".join("".join(page.text).split())

    assert "Not measured after stage 1: no memory" in text
    assert "after stage 20.01230.500087.5 %25.0 %" in text
    assert "Hello! 0.2500 nats a token" in text
    assert "Hi." in text and EVIL in text and "script" not in page.tags
    nothing = render(stages, data, chats={"stage1": {"skipped": "no memory"}})
    assert "no memory" in nothing and "nats" not in nothing
    assert "still chat" not in render(stages, data)


def test_why_groups_teach_nothing_is_drawn_by_cause():
    parts = {"a": ("same thought", "reasoned"), "b": ("<other>", "direct")}
    rows = [{"step": i, "a": 0.1, "b": i / 10} for i in range(5)]
    svg = shares(rows, parts, "causes")
    assert "same thought" in svg and "&lt;other&gt;" in svg and "var(--reasoned)" in svg
    assert svg == shares([*rows, {"step": 9, "a": 0.5}, {"step": 9, "a": None, "b": 0.1}], parts, "causes")
    assert shares(rows[:1], parts, "causes")
    assert shares([{"step": 1, "a": 0.1}], parts, "causes") is None


def test_the_page_needs_nothing_outside_itself(stages, data):
    html = render(stages, data)
    assert "http" not in html
    assert not re.search(r"url\((?!#)|@import|srcset", html)
    page = Page(html)
    assert not {"script", "link", "iframe", "object", "embed", "base", "img"} & set(page.tags)
    for name, value in page.attributes:
        assert name not in ("src", "href", "action") and not name.startswith("on")
        assert name != "xlink:href" or value.startswith("#")


def test_a_page_made_from_evil_texts_is_harmless(model, data):
    corpus = {key: Document(EVIL, f"{EVIL} {document.text}") for key, document in data.corpus.items()}
    queries = {key: Query(f"{query.text} {EVIL}") for key, query in data.queries.items()}
    data = type(data)(EVIL, corpus, queries, data.qrels)
    model.said = EVIL
    first = evaluate(model, data, name=EVIL)
    second = evaluate(model, data, baselines=[replace(first.run("bm25"), name=f"{EVIL} $x^2$")])
    html = render(
        (first, second),
        data,
        title=EVIL,
        recipe_text=EVIL,
        environment={EVIL: EVIL},
        stages={EVIL: second.summary, "stage2": first.summary},
    )
    page = Page(html)
    assert not {"script", "img"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert "".join(page.text).count("<script>alert('x')</script>") > 20  # shown as it is, everywhere


def test_examples_are_drawn_once_and_mark_what_is_relevant(stages, data):
    examples = choose_examples(*stages, data, count=4, hits=3)
    assert examples == choose_examples(*stages, data, count=4, hits=3)
    assert examples != choose_examples(*stages, data, count=4, hits=3, seed=1)
    assert len({example["query"] for example in examples}) == 4
    by_text = {query.text: key for key, query in data.queries.items() if key in data.qrels["test"]}
    for example in examples:
        grades = data.qrels["test"][by_text[example["query"]]]
        assert example["relevant"] == [data.corpus[document].title for document in grades]
        for side, results in (("before", stages[0]), ("after", stages[1])):
            hits = results.run("reasoned").hits[by_text[example["query"]]]
            assert [hit["relevant"] for hit in example[side]["hits"]] == [
                hit.document in grades for hit in hits[:3]
            ]
            ranks = [rank for rank, hit in enumerate(hits, 1) if hit.document in grades]
            assert example[side]["rank"] == (ranks[0] if ranks else None)
    assert len(choose_examples(*stages, data, count=1000)) == 40
    assert 'class="relevant"' in render(stages, data)


def test_a_judged_document_that_the_corpus_lacks_is_shown_by_its_id(stages, data):
    for judged in data.qrels["test"].values():
        judged["gone"] = 1
    assert all("gone" in example["relevant"] for example in choose_examples(*stages, data, count=4))


def test_direct_runs_alone_can_be_shown(model, data):
    results = evaluate(model, data, reasoning="off")
    html = render_report("Direct", {"stage1": results.summary}, {}, [], "", {})
    page = Page(html)
    assert page.tags.count("svg") == 1
    assert "What was found" not in html and "Training" not in html and "queries, before" not in html
    example = choose_examples(results, results, data, count=1, run="direct")
    assert (
        "thought"
        not in render_report("", {"stage1": results.summary}, {}, example, "", {}).split("</style>")[1]
    )


def test_what_was_saved_is_enough_for_the_page(stages, data):
    html = render(
        stages,
        data,
        stages=json.loads(json.dumps({f"stage{i + 1}": s.summary for i, s in enumerate(stages)})),
    )
    assert html == render(stages, data)


def test_findings_follow_the_interval(stages, data):
    row = {"a": "stage2 reasoned", "b": "stage1 reasoned", "metric": "ndcg@10", "mean": 0.1, "p": 0.01}
    for interval, words in (
        ([0.05, 0.2], "significantly better"),
        ([-0.2, -0.05], "significantly worse"),
        ([-0.1, 0.2], "no significant difference"),
    ):
        html = render(stages, data, differences=[{**row, "ci95": interval}])
        card = html.split("Did reinforcement improve the thinking?")[1].split("</div>")[0]
        assert words in card


def test_a_curve_needs_a_number():
    assert curve([], "loss", "Loss") is None
    assert (
        curve([{"step": 1, "loss": float("nan")}, {"step": 2}, {"step": 3, "loss": None}], "loss", "Loss")
        is None
    )
    svg = curve([{"step": 1, "loss": float("inf")}, {"step": 2, "loss": -3.0}], "loss", "Loss <of> it")
    assert 'aria-label="Loss &lt;of&gt; it"' in svg
    assert "var(--accent)" in svg and not re.search(r"#0\d0\d0\d", svg)


def test_bars_take_names_as_they_are():
    svg = bars(["$a$ <b>", "c"], [0.5, 0.0], [[0.4, 0.6], [0.0, 0.0]], ["direct", "baseline"])
    assert "$a$ &lt;b&gt;" in svg and "0.500" in svg and "0.000" in svg
    assert "var(--direct)" in svg and "var(--baseline)" in svg
