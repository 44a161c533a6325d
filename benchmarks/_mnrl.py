"""The same base trained by sentence-transformers: MultipleNegativesRankingLoss, its trainer, its batches."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from _rival import as_text, cut, rival_of, rival_trainer, settings_like
from sentence_transformers.base.sampler import BatchSamplers
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from transformers import set_seed

from searchr3.dataset import RetrievalDataset
from searchr3.model import SearchR3
from searchr3.training.dev import DevSet
from searchr3.training.pairs import Pairs
from searchr3.training.recipe import Recipe


def train_mnrl(base: Path, dataset: RetrievalDataset, recipe: Recipe, rate: float) -> SearchR3:
    """Train the base by their loss on as many pairs, steps and batches as stage 1 of `recipe` has.

    They see our conversations, cut as ours, and pool the last token, which is the embed token; schedule and
    temperature are the same. Batches are theirs: shuffled, none with a text twice. The last step counts.

    Args:
        base: a saved model of ours.
        dataset: with the training queries that the recipe wants.
        rate: peak learning rate.
    """
    set_seed(recipe.seed)
    search = SearchR3(base, batch_size=recipe.model.batch_size, dtype="float32")
    pairs = Pairs(dataset, "stage1")
    queries = [dataset.queries[pairs.query_ids[query]].text for query, _ in pairs.pairs]
    documents = [dataset.corpus[pairs.document_ids[row]].content for _, row in pairs.pairs]
    anchors, positives = (
        as_text(search.conversation, cut(search.conversation, texts)) for texts in (queries, documents)
    )
    model = rival_of(base, search.dimension)
    model.max_seq_length = recipe.model.max_length
    loss = MultipleNegativesRankingLoss(model, scale=1 / recipe.stage1.temperature)
    with tempfile.TemporaryDirectory() as folder:
        settings = settings_like(recipe, Path(folder)) | {"learning_rate": rate}
        trainer = rival_trainer(
            model, loss, anchors, positives, settings, sampler=BatchSamplers.NO_DUPLICATES
        )
        trainer.train()
    search.model.base_model.load_state_dict(model[0].auto_model.state_dict())
    return search


def best_rate(
    base: Path, dataset: RetrievalDataset, recipe: Recipe, rates: Sequence[float]
) -> dict[str, float]:
    """nDCG@10 on the recipe's dev queries at each rate, and `best`, the rate of the highest."""
    dev = DevSet.of(dataset, recipe.data.dev_queries, recipe.data.dev_documents)
    found = {rate: dev.score(train_mnrl(base, dataset, recipe, rate))["direct"] for rate in rates}
    return {"best": max(found, key=found.__getitem__)} | {str(rate): score for rate, score in found.items()}
