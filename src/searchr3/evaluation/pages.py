"""What our HTML pages share: one style, templates that escape every text, figures whose ids are apart.

A page is one file: style and figures are inside it, nothing is loaded, no script runs.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

from searchr3.evaluation.baselines import REWRITE
from searchr3.evaluation.statistics import direction
from searchr3.words import shortened

if TYPE_CHECKING:
    from jinja2 import Environment

_NAMES = {
    "bm25": "BM25",
    "other_trace": "another query's thought",
    "filler": "filler tokens",
    "repeated": "query repeated",
    "bm25+trace": "BM25, query + thought",
}


def render(template: str, **content: Any) -> str:
    """The page that a template of this folder makes of `content`. Every text is escaped.

    Args:
        template: its file name, such as "report.html.j2".
        content: what the template names; figures are SVG texts of ours.
    """
    page = _environment().get_template(template).render(**content)
    return _ids_apart(page).encode("utf-8", "replace").decode()  # a lone surrogate is no text


def run_name(name: str) -> str:
    """A run as people read it: a control in words, a baseline by the last part of its path or address.

    >>> run_name("models/minilm/"), run_name("bm25"), run_name("rewrite:http://localhost:8000/v1#org/bge-m3")
    ('minilm', 'BM25', 'rewrite, then bge-m3')
    """
    if name.startswith(REWRITE):
        return f"rewrite, then {run_name(name.removeprefix(REWRITE))}"
    place = name.partition("#")[2] if "://" in name else name
    return _NAMES.get(name) or place.rstrip("/").rsplit("/", 1)[-1] or name


def model_name(name: str) -> str:
    """A model as people read it: its path or id; of a long path the end.

    >>> model_name("runs/mine/stage2"), model_name("/a/place/far/away/with/many/folders/runs/mine/stage2")
    ('runs/mine/stage2', '…/mine/stage2')
    """
    return name if len(name) <= 40 else "…/" + "/".join(name.rstrip("/").rsplit("/", 2)[-2:])


def signed(value: float) -> str:
    """A difference with its sign.

    >>> signed(-0.01234)
    '−0.012'
    """
    return f"{value:+.3f}".replace("-", "−")


def p_value(value: float) -> str:
    """
    >>> p_value(0.0001), p_value(0.25)
    ('< 0.001', '0.250')
    """
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def verdict(ci95: Sequence[float], p: float) -> str:
    """What a difference comes to: "better" or "worse" where it is significant, else nothing."""
    return ("", "better", "worse")[direction(ci95, p)]


def _ids_apart(page: str) -> str:
    """Ids are unique on a page: each figure's own get its number, those that nothing refers to go."""
    figures = iter(range(1, page.count("<svg ") + 1))

    def figure(found: re.Match[str]) -> str:
        svg, number = found[0], next(figures)
        used = set(re.findall(r'(?:url\(|href=")#([\w-]+)', svg))

        def tag(found: re.Match[str]) -> str:
            text = re.sub(
                r' id="([^"]*)"', lambda one: f' id="f{number}-{one[1]}"' if one[1] in used else "", found[0]
            )
            return re.sub(r'(url\(|href=")#', rf"\1#f{number}-", text)

        return re.sub(r"<[^>]*>", tag, svg)

    return re.sub(r"<svg .*?</svg>", figure, page, flags=re.DOTALL)


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    here = resources.files("searchr3.evaluation")
    environment = Environment(
        loader=FunctionLoader(lambda name: here.joinpath(name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "svg": Markup,  # our own figures, in which every name is escaped already
        "signed": signed,
        "p": p_value,
        "verdict": verdict,
        "shortened": shortened,
        "run_name": run_name,
    }
    return environment
