"""What becomes a negative: never what is known, out of the window or too near; and always all that may."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from searchr3.errors import SearchR3Error
from searchr3.mining.selection import Rule, ceiling, select

# powers of two times whole numbers, so that scaling and adding are exact
numbers = st.integers(-64, 64).map(lambda number: number / 16)
shares = st.none() | st.sampled_from([0.5, 0.75, 0.875, 1.0, 1.25])
margins = st.none() | st.sampled_from([0.0, 0.25, 1.0])


@st.composite
def rules(draw) -> Rule:
    first, negatives = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    return Rule(
        negatives,
        first,
        first + negatives - 1 + draw(st.integers(0, 10)),
        draw(shares),
        draw(margins),
        draw(st.sampled_from(["weakest", "strongest"])),
        draw(st.sampled_from(["top", "random"])),
        draw(st.integers(0, 3)),
    )


@st.composite
def searches(draw) -> dict:
    """What a search of one query gives: hits, scores of the relevant documents, rows that are known."""
    size = draw(st.integers(0, 25))
    scores = sorted(draw(st.lists(numbers, min_size=size, max_size=size)), reverse=True)
    rows = draw(st.permutations(range(size)))
    return {
        "rows": np.array(rows, dtype=np.int64),
        "scores": np.array(scores, dtype=np.float32),
        "positives": np.array(draw(st.lists(numbers, min_size=1, max_size=3)), dtype=np.float32),
        "known": draw(st.frozensets(st.integers(0, 25), max_size=4)),
    }


copy_sets = st.frozensets(st.integers(0, 25), max_size=4)


def below(score: float, positive: float, rule: Rule) -> bool:
    """The margins as they are said in words."""
    share = rule.max_share is None or positive - score >= (1 - rule.max_share) * abs(positive)
    return share and (rule.margin is None or positive - score >= rule.margin)


@given(searches(), rules(), copy_sets)
def test_a_negative_is_new_in_the_window_and_below_the_relevant(found, rule, copies):
    choice = select(**found, rule=rule, is_copy=copies.__contains__, query="q")
    candidates = [row for row in found["rows"].tolist() if row not in found["known"]]
    score_of = dict(zip(found["rows"].tolist(), found["scores"].tolist(), strict=True))
    positive = (min if rule.against == "weakest" else max)(found["positives"].tolist())

    assert len(set(choice.rows)) == len(choice.rows) <= rule.negatives
    for row, rank, gap in zip(choice.rows, choice.ranks, choice.gaps, strict=True):
        assert row not in found["known"] and row not in copies
        assert rule.from_rank <= rank <= rule.to_rank and candidates[rank - 1] == row
        assert below(score_of[row], positive, rule) and gap == positive - score_of[row]
    assert choice.ranks == sorted(choice.ranks)

    window = candidates[rule.from_rank - 1 : rule.to_rank]
    admissible = [row for row in window if below(score_of[row], positive, rule)]
    free = [row for row in admissible if row not in copies]
    assert (choice.window, choice.dropped) == (len(window), len(window) - len(admissible))
    assert len(choice.rows) == min(rule.negatives, len(free)), "none is left out that was wanted"
    assert choice.copies <= len(admissible) - len(free)
    if rule.sampling == "top":
        assert choice.rows == free[: rule.negatives]


@given(searches(), rules(), st.sampled_from([0.25, 0.5, 2.0, 8.0]))
def test_the_relative_margin_does_not_feel_the_scale_of_the_scores(found, rule, scale):
    """So it means the same for BM25, whose sums grow with the query, and for cosines."""
    rule = replace(rule, margin=None)
    scaled = found | {"scores": found["scores"] * scale, "positives": found["positives"] * scale}
    assert select(**scaled, rule=rule).rows == select(**found, rule=rule).rows


@given(searches(), rules(), numbers)
def test_the_absolute_margin_does_not_feel_a_shift_of_the_scores(found, rule, shift):
    rule = replace(rule, max_share=None)
    shifted = found | {"scores": found["scores"] + shift, "positives": found["positives"] + shift}
    assert select(**shifted, rule=rule).rows == select(**found, rule=rule).rows


@given(searches(), rules())
def test_a_narrower_margin_drops_no_more(found, rule):
    loose = replace(rule, max_share=None, margin=None)
    assert select(**found, rule=loose).dropped == 0
    weakest, strongest = (
        select(**found, rule=replace(rule, against=one)) for one in ("weakest", "strongest")
    )
    assert strongest.dropped <= weakest.dropped


@given(numbers, shares.filter(bool), margins)
def test_the_ceiling_is_not_above_the_relevant_document(positive, share, margin):
    rule = Rule(max_share=min(share, 1.0), margin=margin)
    assert ceiling(positive, rule) <= positive
    assert ceiling(positive, replace(rule, max_share=None, margin=None)) == math.inf


def hits(count: int, **more) -> dict:
    """So many documents from the best to the worst, all of them below the relevant one."""
    scores = np.linspace(1, 0, count, dtype=np.float32)
    return {"rows": np.arange(count), "scores": scores, "positives": np.full(1, 2, np.float32), **more}


def test_random_draws_by_seed_and_query_alone_and_reaches_the_whole_window():
    rule = Rule(3, 5, 24, sampling="random")
    assert select(**hits(40), rule=rule, query="a") == select(**hits(40), rule=rule, query="a")
    drawn = [select(**hits(40), rule=rule, query=f"q{number}").rows for number in range(200)]
    assert {row for rows in drawn for row in rows} == set(range(4, 24))
    assert drawn != [select(**hits(40), rule=replace(rule, seed=1), query=f"q{n}").rows for n in range(200)]


def test_copies_are_looked_for_only_until_there_are_enough():
    asked = []
    choice = select(
        **hits(100), rule=Rule(3, 10, 90), is_copy=lambda row: not asked.append(row) and row == 10
    )
    assert (choice.rows, choice.ranks, choice.copies) == ([9, 11, 12], [10, 12, 13], 1)
    assert asked == [9, 10, 11, 12]


def test_places_without_a_document_are_no_candidates():
    choice = select(**hits(4, rows=np.array([2, 0, -1, -1])), rule=Rule(2, 1, 4, max_share=None))
    assert (choice.rows, choice.window) == ([2, 0], 2)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"negatives": 0}, "1 or more"),
        ({"from_rank": 0}, "1 or more"),
        ({"to_rank": 9}, r"8 negatives do not fit into the ranks 10 to 9 \(no rank\); raise the last rank"),
        ({"to_rank": 12}, r"the ranks 10 to 12 \(3 ranks\)"),
        ({"max_share": 0.0}, "share of the score must be above 0"),
        ({"max_share": math.nan}, "share of the score must be above 0"),
        ({"margin": math.nan}, "margin must be a number"),
        ({"margin": math.inf}, "margin must be a number"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused(values, words):
    with pytest.raises(SearchR3Error, match=words):
        Rule(**values)
