"""The page of results: whole, harmless, needing nothing, and saying what the figures say."""

import itertools
import json
import re
import shutil
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from saved_sets import CONTROLS, enriched, results, save, save_suite

from searchr3.errors import DataError
from searchr3.evaluation.collection import read_collection
from searchr3.evaluation.page import render_page
from searchr3.evaluation.pages import p_value, signed
from searchr3.evaluation.statistics import pooled_differences

EVIL = '<script>alert(\'x\')</script>"><img src=x onerror=alert(1)> $x^2$ {{ 7 * 7 }} id="set-1"'
VOID = {"meta", "br", "img", "link", "input", "hr"}


class Page(HTMLParser):
    """Checks that the tags are balanced; keeps tags, attributes and text."""

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.attributes, self.pieces, self.parts = [], [], [], [], []
        self.feed(html)
        self.close()
        assert not self.open, self.open
        self.text = " ".join(" ".join(self.pieces).split())

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attributes]
        self.parts.append((tag, dict(attributes), tuple(self.open)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attributes]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.pieces.append(data)

    def values(self, name):
        return [value for _, key, value in self.attributes if key == name]


def page(*paths):
    return Page(render_page(read_collection(paths)))


@pytest.fixture
def suite(tmp_path):
    return save_suite(tmp_path / "suite", {"One": results(0.1, "a"), "Two": results(0.05, "b", queries=9)})


def test_every_figure_of_an_evaluation_is_there(tmp_path):
    found = results()
    shown = page(save(tmp_path, "r", found))
    for run in found.summary["runs"]:
        assert f"{run['ndcg@10']:.3f}" in shown.text
        low, high = run["ci95"]["ndcg@10"]
        assert f"{low:.3f} – {high:.3f}" in shown.text
    for name in ("direct", "reasoned", "another query's thought", "filler tokens", "BM25"):
        assert name in shown.text
    for row in found.summary["differences"]:
        if row["metric"] == "ndcg@10" and row["a"] == "reasoned":
            assert signed(row["mean"]) in shown.text and p_value(row["p"]) in shown.text
    for part in ("The model", "Controls", "Baselines", "0.12", "77.0", "100.0 %", "Helped most", "Hurt most"):
        assert part in shown.text, part
    for part in ("9.8.7", "settings max new tokens 99", "agreement mean 0.875", "threshold 0.125", "−0.500"):
        assert part.replace("−", "-") in shown.text.replace("−", "-"), part
    assert "thought a red thing" in shown.text and "0.25 → 0.75" in shown.text
    labels = " ".join(shown.values("aria-label"))
    for part in ("most thinking tokens", "128: 0.628", "thoughts whose mean", "seconds a query", "BM25"):
        assert part in labels, part
    assert "direct: " in labels  # the line that a curve is compared with
    assert "corrected for 3 points: significantly above direct at 0, 4, 128." in shown.text


def test_a_suite_is_pooled_with_every_data_set_counted_the_same(suite):
    shown = page(suite)
    one, two = results(0.1, "a"), results(0.05, "b", queries=9)
    gains = [
        np.array(
            [
                [r.run("reasoned").values["ndcg@10"][q] - r.run("direct").values["ndcg@10"][q]]
                for q in r.query_ids
            ]
        )
        for r in (one, two)
    ]
    (pooled,) = pooled_differences(gains)
    assert f"mean of 2 {signed(pooled.mean)}" in shown.text
    assert f"{signed(pooled.ci95[0])} to {signed(pooled.ci95[1])}" in shown.text
    assert f"mean of 2 {signed(pooled.mean)}" in " ".join(shown.values("aria-label"))
    assert "0.432" in shown.text and "p, Holm" in shown.text
    assert "gone a red thing" in shown.text and "no network a red thing" in shown.text
    mean = (one.summary["runs"][0]["ndcg@10"] + two.summary["runs"][0]["ndcg@10"]) / 2
    assert f"mean {mean:.3f}" in shown.text
    assert shown.text.count("Reasoned − each control") == 1


def test_without_the_values_beside_there_is_no_mean_and_it_says_so(suite):
    for place in suite.glob("*.parquet"):
        place.unlink()
    text = page(suite).text
    assert "mean of 2" not in text and "it takes different data sets" in text
    assert "2 of 2" in text or "0 of 2" in text or "1 of 2" in text


def test_data_sets_are_counted_by_their_corrected_p(suite):
    """Both intervals leave 0 out, but for two tests at once no p is small enough."""
    for file in suite.glob("*.parquet"):
        file.unlink()
    assert "0 of 2 data sets: significantly better than direct; on 0" in page(suite).text
    assert "significantly worse (corrected for their number)" in page(suite).text
    alone = page(suite / "task0.json", suite / "task1.json").text
    assert "2 of 2 data sets: significantly better than direct" in alone
    assert "significantly worse (not corrected for their number)" in alone


def test_what_thinking_is_held_against_is_the_control_that_it_may_not_be_above(tmp_path):
    """The mean of one difference is smaller, but the other's interval reaches below 0."""
    path = save(tmp_path, "r", results())
    content = json.loads(path.read_text())
    told = {"other_trace": (0.1, [0.05, 0.15]), "filler": (0.12, [-0.01, 0.25])}
    for row in content["differences"]:
        if row["a"] == "reasoned" and row["b"] in told:
            row["mean"], row["ci95"] = told[row["b"]]
    path.write_text(json.dumps(content))
    assert "filler tokens; no significant difference" in page(path).text


def test_bm25_over_query_and_thought_does_not_tell_whether_it_is_the_thinking(tmp_path):
    """It may be above everything; what it answers is whether the model is needed."""
    path = save(tmp_path, "r", results(controls=("other_trace", "bm25+trace")))
    content = json.loads(path.read_text())
    for row in content["differences"]:
        if row["b"] == "bm25+trace":
            row["mean"], row["ci95"] = -0.3, [-0.4, -0.2]
    path.write_text(json.dumps(content))
    text = page(path).text
    assert "another query's thought; significantly better" in text
    assert "BM25, query + thought; significantly worse" not in text and "−0.300" in text


def test_groups_and_their_own_metrics_are_shown(suite):
    content = json.loads((suite / "suite.json").read_text())
    content["tasks"][0]["group"] = "forums"
    (suite / "suite.json").write_text(json.dumps(content))
    one = json.loads((suite / "task0.json").read_text())
    one["runs"][1]["p-mrr"] = -0.0375
    one["runs"][1]["ci95"]["p-mrr"] = [-0.0811, 0.0123]
    one["runs"][0]["p-mrr"] = 0.5  # of files that are older than its interval
    (suite / "task0.json").write_text(json.dumps(one))
    text = page(suite).text
    assert "those of a group" in text and text.count("p-MRR") == 1
    assert "−0.037 −0.081 to +0.012" in " ".join(text.split())


def test_two_models_are_not_pooled_with_each_other(tmp_path):
    paths = [save(tmp_path, m, results(model=m, data="same"), False) for m in ("left", "right")]
    shown = page(*paths)
    assert "mean of" not in shown.text and "it takes different data sets" not in shown.text
    assert "same · left" in shown.text and "same · right" in shown.text


def test_the_same_data_twice_is_not_pooled(tmp_path):
    shown = page(save(tmp_path, "first", results(), False), save(tmp_path, "second", results(0.2), False))
    assert "mean of" not in shown.text and "second.json" in shown.text


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (
            [(0.1, 0.001), (-0.1, 0.001), (0.1, 0.2)],
            "significantly above direct at 1; significantly below direct at 2.",
        ),
        ([(0.1, 0.06)], "Query by query: nowhere significantly apart from direct."),
    ],
)
def test_a_curve_says_where_it_is_apart_from_direct(tmp_path, rows, words):
    """By the corrected p, whatever the interval says alone."""
    path = save(tmp_path, "r", results())
    content = json.loads(path.read_text())
    content["curves"] = {
        "samples": [
            {
                "samples": k,
                "ndcg@10": 0.5,
                "minus_direct": {"mean": mean, "ci95": sorted([mean / 2, 2 * mean]), "p": p, "p_holm": p},
            }
            for k, (mean, p) in enumerate(rows, start=1)
        ]
    }
    path.write_text(json.dumps(content))
    assert words in page(path).text


def test_older_results_give_a_page_too(tmp_path):
    found = results()
    place = save(tmp_path, "r", found, rich=False)
    summary = json.loads(place.read_text())
    for run in summary["runs"]:
        run.pop("kind", None), run.pop("cost", None)
    place.write_text(json.dumps(summary))
    shown = page(place)
    assert "0.12" in shown.text  # 1.5 seconds over 12 queries
    for part in ("thinking budget", "Helped most", "Thinking only", "p, Holm corrected"):
        assert part not in shown.text, part


def test_runs_that_did_not_think_are_shown_alone(tmp_path):
    found = results()
    summary = enriched(found.summary)
    for key in ("curves", "examples", "adaptive", "uncertainty"):
        summary.pop(key)
    summary["runs"] = [run for run in summary["runs"] if run["name"] in ("direct", "bm25")]
    summary["differences"] = [
        row for row in summary["differences"] if {row["a"], row["b"]} == {"direct", "bm25"}
    ]
    (tmp_path / "r.json").write_text(json.dumps(summary))
    text = page(tmp_path / "r.json").text
    assert "direct − BM25" in text and "What thinking adds" not in text and "Does thinking help" not in text


def test_relevant_hits_are_marked_where_the_results_say_so(tmp_path):
    place = save(tmp_path, "r", results())
    content = json.loads(place.read_text())
    (one,) = content["examples"]["helped"]
    one |= {"reasoned_hits": ["main", "main"], "reasoned_relevant": [False, True], "reasoned_rank": 2}
    one |= {"direct_hits": ["main"], "direct_relevant": [False], "direct_rank": None, "relevant": ["main"]}
    content["examples"]["hurt"] = []
    place.write_text(json.dumps(content))
    shown = page(place)
    assert [about.get("class") for tag, about, _ in shown.parts if tag == "li"] == [None, None, "relevant"]
    assert "nothing relevant found" in shown.text and "first relevant at 2" in shown.text


def test_a_run_shows_both_stages_and_what_lies_between(tmp_path):
    found = results().summary
    across = [{**row, "a": "stage2 reasoned", "b": "stage1 direct"} for row in found["differences"][:1]]
    metrics = {
        "seconds": {},
        "stages": {"stage1": found, "stage2": found},
        "differences": across,
        "curves": {},
    }
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    for place in (tmp_path, tmp_path / "metrics.json"):
        text = page(place).text
        assert "colours · stage 1" in text and "colours · stage 2" in text
        assert "stage2 reasoned − stage1 direct" in text
        assert " mean 0." not in text  # over the stages of one data set it would say nothing


def test_nothing_at_all_but_missing_tasks(tmp_path):
    suite = {"suite": "paper", "model": "m", "tasks": [], "missing": [{"task": "x", "why": "no network"}]}
    (tmp_path / "suite.json").write_text(json.dumps(suite))
    text = page(tmp_path).text
    assert "m on paper" in text and "0 evaluations, 0 queries" in text and "no network" in text


def test_the_page_is_in_order(suite):
    shown = page(suite)
    ids = shown.values("id")
    assert len(ids) == len({*ids}) > 5
    targets = [v[1:] for v in shown.values("href") + shown.values("xlink:href")]
    targets += re.findall(r"url\(#([^)]*)\)", " ".join(filter(None, (v for _, _, v in shown.attributes))))
    assert targets and {*targets} <= {*ids}
    headings = [int(tag[1]) for tag in shown.tags if re.fullmatch(r"h[1-6]", tag)]
    assert headings[0] == 1 and headings.count(1) == 1
    assert all(b - a <= 1 for a, b in itertools.pairwise(headings))
    assert shown.tags.count("table") == shown.tags.count("caption")
    assert shown.tags.count("svg") == shown.values("role").count("img") > 6
    assert all("scope" in found for tag, found, _ in shown.parts if tag == "th")
    assert all(label for label in shown.values("aria-label"))


def test_the_page_needs_nothing_outside_itself(suite):
    html = render_page(read_collection([suite]))
    assert html == render_page(read_collection([suite]))  # nothing of it depends on the time or on chance
    assert "http" not in html and not re.search(r"url\((?!#)|@import|srcset", html)
    shown = Page(html)
    assert not {"script", "link", "iframe", "object", "embed", "base", "img"} & {*shown.tags}
    for _, name, value in shown.attributes:
        assert name not in ("src", "action") and not name.startswith("on")
        assert name not in ("href", "xlink:href") or value.startswith("#")


def test_a_page_made_from_evil_texts_is_harmless(tmp_path):
    names = {"model": EVIL, "controls": ("other_trace", f"control {EVIL}"), "baseline": EVIL}
    tasks = {EVIL: results(0.1, EVIL, **names), f"2 {EVIL}": results(0.2, f"b {EVIL}", **names)}
    folder = save_suite(tmp_path / "suite", tasks, text=EVIL)
    shown = page(folder)
    assert not {"script", "img"} & {*shown.tags}
    assert not [name for _, name, _ in shown.attributes if name.startswith("on")]
    ids = shown.values("id")
    assert len(ids) == len({*ids})
    for what in ("text", "thought", "first", "second", "id", "set to", "gone", "no network", "margin", "s"):
        assert f"{what} <script>alert('x')</script>" in shown.text, what
    assert shown.text.count("<script>") > 40 and shown.text.count("{{ 7 * 7 }}") > 40


def test_a_model_that_was_trained_further_has_a_mean_of_its_own(tmp_path):
    sets = {"a": "1234567890", "b": "1234567890", "c": "abcdefghij", "d": "abcdefghij"}
    found = [replace(results(data=name), extras={"files": files}) for name, files in sets.items()]
    shown = page(*(save(tmp_path, one.data, one, rich=False) for one in found))
    for files in ("12345678", "abcdefgh"):
        assert f"mean of 2, m/stage2 · files {files}" in shown.text
    assert "mean of 4" not in shown.text


def test_values_of_another_evaluation_are_refused(suite):
    shutil.copy(suite / "task1.queries.parquet", suite / "task0.queries.parquet")
    with pytest.raises(DataError, match=r"task0\.queries\.parquet: holds the values of other results"):
        page(suite)


def test_controls_are_told_apart_from_runs_and_baselines(tmp_path):
    shown = page(save(tmp_path, "r", results()))
    dots = [value for value in shown.values("class") if value and value.startswith("dot ")]
    assert dots == ["dot direct", "dot reasoned", *["dot control"] * len(CONTROLS), "dot baseline"]


def luminance(colour):
    channels = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_colours_can_be_told_apart_and_seen_in_both_themes(tmp_path):
    html = render_page(read_collection([save(tmp_path, "r", results())]))
    themes = re.findall(r":root \{(.*?)\}", html, flags=re.DOTALL)
    assert len(themes) == 2
    for theme in themes:
        colours = dict(re.findall(r"--([\w-]+): (#\w{6})", theme))
        light = {name: luminance(colour) for name, colour in colours.items()}

        def contrast(a, b, light=light):
            low, high = sorted((light[a], light[b]))
            return (high + 0.05) / (low + 0.05)

        for name in ("direct", "reasoned", "control", "baseline", "accent"):
            assert contrast(name, "card") >= 3, name
        assert contrast("direct", "reasoned") >= 1.5 and contrast("control", "baseline") >= 1.5
        assert contrast("ink", "card") >= 7 and contrast("muted", "card") >= 4.5
