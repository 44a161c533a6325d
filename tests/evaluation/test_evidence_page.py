"""Evidence shown: the page is self-contained, and table and page tell the figures of `evidence.json`."""

import re
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from searchr3.evaluation.evidence import OWN, STAGES, TO_BEAT, label_point, weigh
from searchr3.evaluation.evidence_page import evidence_page, evidence_tables


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    values = {name: rng.uniform(0, 1, (3, 25)) for name in dict.fromkeys([*STAGES, *TO_BEAT, OWN])}
    points = [
        {"labels": number, "seeds": 1, **label_point({name: values[name] for name in STAGES})}
        for number in (100, 3000)
    ]
    sizes = {"data": "toy & <more>", "split": "test", "documents": 1500, "queries": 25}
    costs = {"thinking_tokens": 4.25, "emission_rate": 0.5, "gradient_tokens_stage2": 9000.0}
    costs |= {"gradient_tokens_direct_only": 9100.0, "direct1_given_up": 0.0}
    return {"recipe": "mine", "complete": True, "seeds": [0, 1, 2], **sizes, **weigh(values), **costs} | {
        "labels": points
    }


def test_the_page_is_one_file_that_tells_the_figures(found: dict[str, Any]) -> None:
    page = evidence_page(found)

    assert "toy &amp; &lt;more&gt;" in page and "<more>" not in page
    assert not re.search(r"<script|<link|https?://(?!www\.w3\.org)", page)
    for run in found["runs"]:
        assert run["title"] in page.replace("&#39;", "'") and f"{run['ndcg@10']:.3f}" in page
    for sentence in found["verdict"]["sentences"]:
        assert sentence in page.replace("&#39;", "'")
    assert page.count("<svg ") == 2
    assert "9,000" in page and "9,100" in page


def test_one_number_of_labels_is_no_curve(found: dict[str, Any]) -> None:
    for few in ([], found["labels"][:1]):
        assert evidence_page({**found, "labels": few}).count("<svg ") == 1
        assert len(evidence_tables({**found, "labels": few})) == 1


def test_what_is_still_to_be_done_is_said(found: dict[str, Any]) -> None:
    page = evidence_page({**found, "complete": False})
    assert "not complete yet" in page and "not complete yet" not in evidence_page(found)


def test_the_terminal_shows_runs_and_labels(found: dict[str, Any]) -> None:
    console = Console(width=160, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
    for table in evidence_tables(found):
        console.print(table)
    text = console.export_text()
    for run in found["runs"]:
        assert run["title"] in text
    assert "3,000" in text and "stage 1 (95 %)" in text
