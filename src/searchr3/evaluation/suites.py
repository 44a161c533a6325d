"""Named sets of tasks that the field measures on, all of them tasks of MTEB.

`paper` is what Search-R3 (arXiv 2510.07048) reports; of MKQA the questions in English. `bright` are the
twelve tasks of BRIGHT (arXiv 2407.12883) with short documents. `followir` (arXiv 2403.15246) is measured by
p-MRR as well. `beir` are the fifteen public data sets of BEIR (arXiv 2104.08663); the twelve forums of
CQADupStack count as one.
"""

from __future__ import annotations

from searchr3.dataset.mteb_task import MTEB

_FORUMS = (
    *("Android", "English", "Gaming", "Gis", "Mathematica", "Physics", "Programmers", "Stats", "Tex"),
    *("Unix", "Webmasters", "Wordpress"),
)
_BRIGHT = (
    *("Biology", "EarthScience", "Economics", "Psychology", "Robotics", "Stackoverflow"),
    *("SustainableLiving", "Leetcode", "Pony", "Aops", "TheoremQAQuestions", "TheoremQATheorems"),
)
_CQADUPSTACK = tuple(f"CQADupstack{forum}Retrieval" for forum in _FORUMS)

_NAMES: dict[str, tuple[str, ...]] = {
    "paper": ("CosQA", "LitSearchRetrieval", "MedicalQARetrieval", "MKQARetrieval/en", "SciFact"),
    "bright": tuple(f"Bright{domain}Retrieval" for domain in _BRIGHT),
    "followir": ("Core17InstructionRetrieval", "News21InstructionRetrieval", "Robust04InstructionRetrieval"),
    "beir": (
        *("TRECCOVID", "NFCorpus", "NQ", "HotpotQA", "FiQA2018", "ArguAna", "Touche2020"),
        *_CQADUPSTACK,
        *("QuoraRetrieval", "DBPedia", "SCIDOCS", "FEVER", "ClimateFEVER", "SciFact", "MSMARCO"),
    ),
}

SUITES: dict[str, tuple[str, ...]] = {
    suite: tuple(MTEB + name for name in names) for suite, names in _NAMES.items()
}
"""Name of a suite → its data, as `--data` takes them."""

GROUPS: dict[str, str] = {MTEB + name: "CQADupstackRetrieval" for name in _CQADUPSTACK}
"""Data → what it counts as a part of, in the mean over a suite."""
