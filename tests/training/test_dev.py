"""Dev scores during training: a fixed, honest sample, scored as an evaluation scores."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from searchr3.dataset import RetrievalDataset
from searchr3.errors import DataError
from searchr3.training.dev import DevSet
from searchr3.training.rewards import RewardRecipe


@dataclass
class Perfect:
    """Embeds a text as the set of its words, and thinks what it is told to."""

    thought: str = ""
    seen: list[str] = field(default_factory=list)

    def encode_document(self, documents: Sequence[str]) -> np.ndarray:
        self.seen += documents
        return self.vectors(documents)

    def encode_query(self, queries: Sequence[str], reasoning: Any = False) -> np.ndarray:
        said = [one.text for one in reasoning] if reasoning else [""] * len(queries)
        return self.vectors([f"{query} {thought}" for query, thought in zip(queries, said, strict=True)])

    def generate(self, batch: Sequence[str], max_new_tokens: int) -> list[SimpleNamespace]:
        ids = tuple(range(max_new_tokens))
        return [
            SimpleNamespace(text=self.thought, token_ids=ids[: row + 1], emitted=row > 0)
            for row, _ in enumerate(batch)
        ]

    def vectors(self, texts: Sequence[str]) -> np.ndarray:
        words = "parse sort merge split count load date string list file number lazily place line return"
        counts = np.array(
            [[float(word in text) for word in words.split()] for text in texts], dtype=np.float32
        )
        return counts / np.linalg.norm(counts, axis=1, keepdims=True)


def test_the_sample_holds_every_relevant_document_and_no_more_than_asked(toy: RetrievalDataset) -> None:
    dev = DevSet.of(toy, queries=10, documents=40)

    assert len(dev.query_ids) == len(dev.queries) == 10
    assert len(set(dev.document_ids)) == len(dev.documents) == 40
    assert set(dev.qrels) == set(dev.query_ids) <= set(toy.split("dev"))
    assert {one for grades in dev.qrels.values() for one in grades} <= set(dev.document_ids)
    assert dev.documents == [toy.corpus[key].content for key in dev.document_ids]


def test_relevant_documents_stay_where_fewer_are_asked_for(toy: RetrievalDataset) -> None:
    assert len(DevSet.of(toy, queries=10, documents=3).document_ids) == 10


def test_more_than_there_are_is_all(toy: RetrievalDataset) -> None:
    dev = DevSet.of(toy, queries=1000, documents=1000)

    assert set(dev.query_ids) == set(toy.split("dev"))
    assert set(dev.document_ids) == set(toy.corpus)


def test_the_sample_hangs_on_the_ids_not_on_their_order(toy: RetrievalDataset) -> None:
    turned = replace(
        toy,
        corpus=dict(reversed(toy.corpus.items())),
        qrels={split: dict(reversed(qrels.items())) for split, qrels in toy.qrels.items()},
    )

    assert DevSet.of(turned, 5, 20) == DevSet.of(toy, 5, 20)


def test_a_data_set_without_dev_is_refused(toy: RetrievalDataset) -> None:
    with pytest.raises(DataError, match="dev"):
        DevSet.of(replace(toy, qrels={"stage1": toy.qrels["stage1"]}), 5, 20)


def test_a_perfect_model_scores_one(toy: RetrievalDataset) -> None:
    model = Perfect()

    assert DevSet.of(toy, 10, 40).score(model) == {"direct": pytest.approx(1.0)}  # type: ignore[arg-type]
    assert len(model.seen) == 40


def test_shorter_widths_are_scored_as_shortened_vectors_are(toy: RetrievalDataset) -> None:
    figures = DevSet.of(toy, 10, 40, widths=(6, 11)).score(Perfect())  # type: ignore[arg-type]

    assert list(figures) == ["direct", "direct_at_6", "direct_at_11"]
    assert figures["direct_at_6"] < figures["direct_at_11"] < figures["direct"]  # verbs, and things, of ways


def test_the_model_is_told_the_instruction(toy: RetrievalDataset) -> None:
    told: list[str | None] = []

    class Told(Perfect):
        def encode_query(self, queries: Any, reasoning: Any = False, instruction: Any = None) -> np.ndarray:
            told.append(instruction)
            return super().encode_query(queries, reasoning)

        def generate(self, batch: Any, max_new_tokens: int, instruction: Any = None) -> Any:
            told.append(instruction)
            return super().generate(batch, max_new_tokens)

    DevSet.of(replace(toy, instruction="Find."), 10, 40).score(Told("date"), 4)  # type: ignore[arg-type]

    assert told == ["Find."] * 3


@pytest.mark.parametrize("free", [0, 2, 9])
def test_each_query_pays_for_its_own_thought(toy: RetrievalDataset, free: int) -> None:
    """With free tokens the mean of the costs is more than the cost of the mean length."""
    reward = RewardRecipe(length=0.01, free_tokens=free)

    figures = DevSet.of(toy, 10, 40).score(Perfect(), 5, reward.cost)  # type: ignore[arg-type]

    lengths = [1, 2, 3, 4, *[5] * 6]  # as `Perfect` thinks
    assert figures["thinking_tokens"] == pytest.approx(sum(lengths) / 10)
    owed = sum(max(0, length - free) for length in lengths)
    assert figures["thinking_cost"] == pytest.approx(0.01 * owed / 10)
    assert (figures["thinking_cost"] > reward.cost(figures["thinking_tokens"]) + 1e-9) == (free == 2)


def test_thoughts_count_in_the_reasoned_score_only(toy: RetrievalDataset) -> None:
    model = Perfect(thought="parse sort merge split count load date string list file number")

    figures = DevSet.of(toy, 10, 40).score(model, max_new_tokens=4)  # type: ignore[arg-type]

    assert figures["direct"] == pytest.approx(1.0)
    assert figures["reasoned"] < 0.9
    assert figures["thinking_tokens"] == pytest.approx((1 + 2 + 3 + 4 * 7) / 10)
    assert figures["emission_rate"] == pytest.approx(0.9)
