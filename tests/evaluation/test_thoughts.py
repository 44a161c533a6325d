"""Cutting a greedy thought is thinking with less."""

import pytest
from hypothesis import given as over
from hypothesis import strategies as st

from searchr3.evaluation.thoughts import GivenThought, cut, given
from searchr3.model import SearchR3

QUERIES = ["parse the date", "sort x", "merge two sorted lists of strings lazily", "count", "load the file"]


class Plain:
    def thought_text(self, ids):
        return " ".join(map(str, ids))


@over(ids=st.lists(st.integers(0, 99), max_size=12), emitted=st.booleans(), small=st.integers(0, 14))
def test_a_cut_thought_is_a_beginning_and_cutting_twice_is_cutting_once(ids, emitted, small):
    whole = given(Plain(), ids, emitted)
    short = cut(Plain(), whole, small)
    assert short.token_ids == whole.token_ids[:small]
    assert short.text == Plain().thought_text(short.token_ids)
    assert short.emitted == (emitted and len(ids) < small)
    for more in range(small, 15):
        assert cut(Plain(), cut(Plain(), whole, more), small) == short


def test_what_is_given_was_not_said():
    assert given(Plain(), [3, 4]) == GivenThought("3 4", (3, 4), False)


@pytest.mark.parametrize("name", ["tiny_model", "qwen2_model"])
def test_cutting_equals_generating_with_less(name, request, monkeypatch):
    search = SearchR3(request.getfixturevalue(name))
    # a head that is as fond of the embed token as of others, so that thoughts end at various lengths
    monkeypatch.setattr(search.conversation, "embed_id", search.generate(QUERIES, 6)[0].token_ids[3])
    longest = search.generate(QUERIES, max_new_tokens=12)
    assert len({len(one.token_ids) for one in longest}) > 1
    assert {one.emitted for one in longest} == {True, False}
    for budget in (0, 1, 2, 3, 4, 8, 12):
        expected = search.generate(QUERIES, max_new_tokens=budget)
        for whole, less in zip(longest, expected, strict=True):
            short = cut(search.conversation, whole, budget)
            assert (short.token_ids, short.emitted) == (less.token_ids, less.emitted)
            assert short.text == less.text
