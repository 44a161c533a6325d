"""Several processes that encode and think together get what one gets."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from searchr3.group import ALONE, Group
from searchr3.model import SearchR3
from searchr3.shared_search import SharedSearch

TEXTS = ["parse the date", "x", "", "merge two sorted lists lazily", "größe ☃", "count lines", "sort"]
OnRanks = Callable[[int, Callable[[Group], Any]], list[Any]]


def own(search: SearchR3) -> SearchR3:
    """A copy for a rank of its own: ranks are threads here, and a tokenizer is not made for that."""
    return SearchR3(search.tokenizer.name_or_path)


@pytest.mark.parametrize("size", [2, 3, 9])
def test_vectors_are_those_of_one_process(search: SearchR3, on_ranks: OnRanks, size: int) -> None:
    told: list[tuple[int, int]] = []
    copies = [own(search) for _ in range(size)]

    def work(group: Group) -> tuple[np.ndarray, ...]:
        shared = SharedSearch.over(copies[group.rank], group)
        return (
            shared.encode_document(TEXTS, progress=lambda done, total: told.append((done, total))),
            shared.encode_query(TEXTS),
            shared.encode_query(TEXTS, reasoning=True, max_new_tokens=3),
        )

    expected = (
        search.encode_document(TEXTS),
        search.encode_query(TEXTS),
        search.encode_query(TEXTS, reasoning=True, max_new_tokens=3),
    )
    for found in on_ranks(size, work):
        for one, alone in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, alone, atol=1e-5)
    assert told == [(len(TEXTS), len(TEXTS))] * size


@pytest.mark.parametrize("texts", [TEXTS, TEXTS[:1], []])
def test_thoughts_are_those_of_one_process_in_its_order(
    search: SearchR3, on_ranks: OnRanks, texts: Sequence[str]
) -> None:
    alone, copies = search.generate(texts, max_new_tokens=4), [own(search) for _ in range(3)]
    for found in on_ranks(3, lambda group: SharedSearch.over(copies[group.rank], group).generate(texts, 4)):
        assert found == alone


def test_each_thinks_for_its_part(
    search: SearchR3, on_ranks: OnRanks, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    copies = [own(search), own(search)]
    generate = SearchR3.generate

    def counted(self: SearchR3, batch: Sequence[str], *rest: Any) -> Any:
        asked.append(len(batch))
        return generate(self, batch, *rest)

    monkeypatch.setattr(SearchR3, "generate", counted)
    on_ranks(2, lambda group: SharedSearch.over(copies[group.rank], group).generate(TEXTS, 2))
    assert sorted(asked) == [3, 4]


def test_where_weights_are_dealt_all_think_as_often(
    search: SearchR3, on_ranks: OnRanks, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    copies = [own(search) for _ in range(3)]
    alone, generate = search.generate(TEXTS, 2), SearchR3.generate

    def counted(self: SearchR3, batch: Sequence[str], *rest: Any) -> Any:
        asked.append(len(batch))
        return generate(self, batch, *rest)

    monkeypatch.setattr(SearchR3, "generate", counted)
    monkeypatch.setattr("searchr3.shared_search.is_dealt", lambda model: True)
    found = on_ranks(3, lambda group: SharedSearch.over(copies[group.rank], group).generate(TEXTS, 2))
    assert asked == [3, 3, 3]
    assert found == [alone] * 3


def test_each_rank_has_a_seed_of_its_own(
    search: SearchR3, on_ranks: OnRanks, monkeypatch: pytest.MonkeyPatch
) -> None:
    seeds: list[int | None] = []
    copies = [own(search) for _ in range(3)]
    generate = SearchR3.generate

    def noted(
        self: SearchR3, batch: Any, tokens: int, temperature: float, instruction: Any, seed: Any
    ) -> Any:
        seeds.append(seed)
        return generate(self, batch, tokens, 0.0, instruction)

    monkeypatch.setattr(SearchR3, "generate", noted)

    def think(seed: int | None) -> None:
        on_ranks(
            3, lambda group: SharedSearch.over(copies[group.rank], group).generate(TEXTS, 2, 1.0, seed=seed)
        )

    think(1)
    think(2)
    assert len({*seeds}) == 6
    think(None)
    assert seeds[6:] == [None] * 3


def test_alone_it_is_the_model_itself(search: SearchR3) -> None:
    shared = SharedSearch.over(search, ALONE)
    assert np.array_equal(shared.encode_document(TEXTS), search.encode_document(TEXTS))
    assert shared.generate(TEXTS, 3) == search.generate(TEXTS, 3)
