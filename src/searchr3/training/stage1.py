"""Stage 1: the embed token comes to mean something.

    L = a·SFT + b·KL + c·InfoNCE + d·TripletMargin   (arXiv 2510.07048)

Every step takes pairs of a query and a relevant document. A query is trained in both its forms, direct and
after reasoning; the reasoning is a trace, a noisy trace or what the model itself says at that moment, so
that the vector learns to profit from a thought without depending on it. Runs on `transformers.Trainer`.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Sampler
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainingArguments, set_seed
from trl.models import prepare_fsdp

from searchr3.dataset import RetrievalDataset
from searchr3.embedding import TOKENS_PER_BATCH, length_batches, pass_tokens, tokens_per_pass
from searchr3.generation import Reasoning, evaluating, is_dealt, padding_id, reason
from searchr3.group import most, start_group
from searchr3.losses import at_widths, info_nce, triplet_margin
from searchr3.model import SearchR3
from searchr3.training.adapter import add_adapter
from searchr3.training.batches import NeighbourSampler
from searchr3.training.cached import backward
from searchr3.training.checkpoints import StartCounts, resume_point
from searchr3.training.common import DevEvaluation, Tell, arguments, callbacks, curve
from searchr3.training.dev import DevSet
from searchr3.training.false_negatives import may_be_negatives
from searchr3.training.forward import Item, Outputs, run
from searchr3.training.language import TokenLosses
from searchr3.training.mixture import MixedPairs, MixtureSampler, Source, shares, sources_of
from searchr3.training.parallel import gathered, on_one_device, share_of, sum_gradients, unsynced
from searchr3.training.precision import check_held, precision
from searchr3.training.recipe import Recipe
from searchr3.training.stage1_batch import Batch, BatchMaker, TokenCounts, chat_items
from searchr3.training.weights import whole_model


class Stage1Trainer(DevEvaluation, Trainer):
    """`transformers.Trainer` whose loss is stage 1's.

    Args:
        search: the model to train.
        base: what the KL holds on to; None when a LoRA adapter is trained: its base is the model without it.
        others: the data sets of `data.mixture`, in its order.
        start_counts: the model as it comes is a candidate for the best checkpoint, as in stage 2.
    """

    name = "stage1"

    def __init__(
        self,
        search: SearchR3,
        base: PreTrainedModel | None,
        dataset: RetrievalDataset,
        recipe: Recipe,
        folder: Path,
        tell: Tell | None,
        others: Sequence[RetrievalDataset] = (),
        start_counts: bool = False,
    ):
        self.recipe, self.stage = recipe, recipe.stage1
        self.conversation = search.conversation
        self.pad_id = padding_id(search.conversation)
        self.sources = sources_of(dataset, others, recipe)
        self.dataset, self.pairs = dataset, self.sources[0].pairs
        self.mixed = MixedPairs(self.sources)
        self.widths = self.stage.widths(search.dimension)
        data = recipe.data
        self.dev = DevSet.of(dataset, data.dev_queries, data.dev_documents, self.stage.matryoshka)
        self.other_dev = {
            asked.label: DevSet.of(one, asked.dev_queries, data.dev_documents)
            for asked, one in zip(data.mixture, others, strict=True)
            if asked.dev_queries
        }
        self.base = base
        args = on_one_device(
            TrainingArguments(**arguments(recipe, self.stage, folder), dataloader_drop_last=True)
        )
        share = share_of(self.stage.batch_size, args.world_size, len(self.mixed))
        args.per_device_train_batch_size = share
        self.group = start_group()
        super().__init__(
            model=search.model,
            args=args,
            train_dataset=self.mixed,
            eval_dataset=self.mixed,
            data_collator=lambda rows: {"pairs": torch.stack(rows)},
            processing_class=search.tokenizer,
            callbacks=callbacks(self.stage, tell, "stage1"),
        )
        self.loss_is_scaled_for_ga = False
        self.remove_callback(PrinterCallback)
        if start_counts:
            self.add_callback(StartCounts(self))
        chats = chat_items(search, recipe)
        shared = (self.conversation, recipe, self._say, chats, self.group)
        self.makers = [BatchMaker(one.dataset, one.pairs, *shared) for one in self.sources]
        self.maker = self.makers[0]
        if self.base is not None and self.is_fsdp_enabled:  # it is dealt among the processes too
            self.base = prepare_fsdp(self.base, self.accelerator)
        has_thoughts = self.stage.own_samples > 0 or bool(self.maker.trace_pool)
        self.think_on_dev = has_thoughts and self.stage.reasoned_share > 0
        # what stage 2 begins with must think, too: few labels are at their best directly before it can
        self.best_of = ("direct", "reasoned") if self.think_on_dev else ("direct",)
        if self.group.rank:  # its dropout and the thoughts that it samples are not the first one's again
            set_seed(recipe.seed + self.group.rank)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        stage, seed = self.stage, self.recipe.seed
        samplers = [NeighbourSampler(one.contents(), stage.neighbours, seed) for one in self.sources]
        if len(samplers) == 1:
            return samplers[0]
        of_source = shares(self.sources, self.recipe.data.by_size)
        return MixtureSampler(samplers, of_source, stage.batch_size, stage.steps)

    def training_step(
        self, model: PreTrainedModel, inputs: dict[str, Tensor], num_items_in_batch: Any = None
    ) -> Tensor:
        """One optimizer step's gradients: the batch of all processes, in passes that the memory bears."""
        model.train()
        number, rows = self.mixed.of_one(inputs["pairs"].cpu())
        batch = self.makers[number].of(rows, self.state.global_step, self.may_sample)
        items, stage, source = list(batch.items), self.stage, self.sources[number]
        limit = stage.micro_tokens or TOKENS_PER_BATCH // 2
        cache = stage.micro_tokens is not None and len(list(length_batches(items, len(items), limit))) > 1
        self.learnt.count += sum(len(item.ids) for item in items)
        size = pass_tokens(items, min(limit, tokens_per_pass(self.args.device)))
        chunks = list(length_batches(items, len(items), size))
        # DeepSpeed sums gradients at every backward pass, also of weights that are whole (ZeRO-2)
        self.dealt = is_dealt(model) or self.is_deepspeed_enabled
        if self.dealt:  # every process must make as many passes: a token that teaches nothing fills up
            cache = bool(most(self.group, cache))  # which makes more of them
            for _ in range(most(self.group, len(chunks)) - len(chunks)):
                chunks.append([len(items)])
                items.append(Item(items[0].ids[:1], None, answer_start=1))
        of_pass = TokenLosses(stage, self._token_counts(batch), self.conversation.embed_id)
        figures = {"sft": 0.0, "kl": 0.0}

        def run_some(rows: Sequence[int], speak: bool) -> Outputs:
            chosen = [items[row] for row in rows]
            return run(model, chosen, self.pad_id, None if speak else [False] * len(rows))

        def of_tokens(rows: Sequence[int], outputs: Outputs) -> Tensor:
            chosen = [items[row] for row in rows]
            theirs = self._of_base(model, chosen) if stage.kl else None
            total, parts = of_pass(outputs, chosen, [row >= batch.reasoned_from for row in rows], theirs)
            for name, part in parts.items():
                figures[name] += part
            return total

        averaged = self.group.size > 1 and not isinstance(model, DistributedDataParallel)
        passes = iter(range(len(chunks) - 1, -1, -1))

        def accumulate(loss: Tensor) -> None:
            # DeepSpeed makes its step at a backward pass that syncs: the last
            self.accelerator.gradient_state._set_sync_gradients(next(passes) == 0)
            self.accelerator.backward(loss * self.group.size if averaged else loss)

        with unsynced(model):
            backward(
                chunks,
                run_some,
                lambda vectors: self._of_vectors(vectors, batch, source, figures),
                of_tokens,
                accumulate,
                cache,
                self.accelerator.autocast,
            )
        sum_gradients(model)
        for name in ("sft", "kl"):  # of this process's tokens so far, over the number of all
            figures[name] = sum(float(one[0]) for one in self.group.gather(np.array([figures[name]])))
        self.note(**figures)
        if len(self.sources) > 1:
            self.note(**{f"info_nce_{source.name}": figures["info_nce"]})
        weights = {"sft": stage.sft, "kl": stage.kl, "info_nce": stage.info_nce, "triplet": stage.triplet}
        loss = sum(weight * figures[name] for name, weight in weights.items())
        return torch.tensor(loss, device=self.args.device)

    def _of_vectors(
        self, vectors: Tensor, batch: Batch, source: Source, figures: dict[str, float]
    ) -> tuple[float, Tensor]:
        """The contrastive losses over the batch of all processes, and their gradient for our vectors.

        Every process works out the whole: beside the forwards it is next to nothing.
        """
        stage, n, m = self.stage, len(batch.queries), len(batch.documents)
        own = [vectors[:n], vectors[n : n + m], vectors[n + m : n + m + len(batch.reasoned)]]
        leaves = [part.clone().requires_grad_(True) for part in own]
        direct, documents, reasoned = (gathered(leaf, self.group) for leaf in leaves)
        queries, rows, of_reasoned, positive = self._numbers(batch)
        known = source.pairs
        allowed = may_be_negatives(
            source.dataset,
            [known.query_ids[query] for query in queries],
            [known.document_ids[row] for row in rows],
            [known.relevant[query] for query in queries],
        )
        allowed, place = allowed.to(vectors.device), torch.from_numpy(positive).to(vectors.device)
        share = stage.reasoned_share if len(of_reasoned) else 0.0
        pairs = [(1 - share, direct, place, allowed)]
        if len(of_reasoned):
            which = torch.from_numpy(of_reasoned).to(vectors.device)
            pairs.append((share, reasoned, place[which], allowed[which]))
        contrastive, triplet = torch.zeros(2, device=vectors.device)
        for weight, asked, at, may in pairs:
            both = (self.widths, asked, documents, at)
            contrastive = contrastive + weight * at_widths(info_nce, *both, source.temperature, may)
            triplet = triplet + weight * at_widths(triplet_margin, *both, stage.margin, may)
        figures |= {"info_nce": contrastive.item(), "triplet": triplet.item()}
        total = stage.info_nce * contrastive + stage.triplet * triplet
        gradient = torch.zeros_like(vectors)
        if total.requires_grad:
            found = torch.autograd.grad(total, leaves, materialize_grads=True)
            gradient[: n + m + len(batch.reasoned)] = torch.cat(found)
        return total.item(), gradient

    def _numbers(self, batch: Batch) -> tuple[list[int], list[int], np.ndarray, np.ndarray]:
        """Of the batch of all processes: queries, documents, the queries that are reasoned, and the place
        of each query's positive among the documents.
        """
        queries, documents, reasoned = (
            self.group.gather(np.array(rows, dtype=np.int64))
            for rows in (batch.queries, batch.documents, batch.reasoned)
        )
        of_query = np.cumsum([0, *map(len, queries)])
        of_document = np.cumsum([0, *map(len, documents)])
        positive = [start + np.arange(len(own)) for start, own in zip(of_document, queries, strict=False)]
        which = [start + own for start, own in zip(of_query, reasoned, strict=False)]
        return (
            np.concatenate(queries).tolist(),
            np.concatenate(documents).tolist(),
            np.concatenate(which),
            np.concatenate(positive),
        )

    def _token_counts(self, batch: Batch) -> TokenCounts:
        """Tokens that each part of the loss is a mean over, of all processes."""
        plain, thinking, anchored = 0, 0, 0
        for number, item in enumerate(batch.items):
            said = range(item.answer_start, len(item.ids))
            learnt = sum(item.learns(t) for t in said)
            plain, thinking = (
                (plain, thinking + learnt) if number >= batch.reasoned_from else (plain + learnt, thinking)
            )
            anchored += item.anchor * sum(item.ids[t] != self.conversation.embed_id for t in said)
        counts = np.stack(self.group.gather(np.array([[plain, thinking, anchored]])))
        return TokenCounts(*counts.sum(axis=(0, 1)).tolist())

    @property
    def may_sample(self) -> bool:
        """Whether the model has had time to learn to say something."""
        return self.state.global_step >= self.stage.own_samples_after * self.state.max_steps

    def _say(self, prompts: Sequence[Sequence[int]]) -> list[Reasoning]:
        """What the model says now, sampled."""
        model = self.accelerator.unwrap_model(self.model)
        settings, wanted = self.recipe.model, len(prompts)
        if is_dealt(model):  # every process must generate as many batches
            size = settings.batch_size
            least = (most(self.group, -(-wanted // size)) - 1) * size + 1
            prompts = [*prompts, *self.conversation.reasoning_prompts([""] * (least - wanted))]
        with self.accelerator.autocast():
            said = reason(
                model, self.conversation, prompts, settings.max_new_tokens, 1.0, settings.batch_size
            )
        return said[:wanted]

    def _of_base(self, model: PreTrainedModel, items: Sequence[Item]) -> Tensor | None:
        """The base's logits of anchored items, if there are any."""
        anchored = [item for item in items if item.anchor]
        if not anchored and not self.dealt:
            return None
        with torch.no_grad(), self._without_adapter(model) as base, self.accelerator.autocast():
            # other processes have some, and may need this one's part of the weights
            found = run(base, anchored or items[:1], self.pad_id).logits
        return found if anchored else None

    @contextlib.contextmanager
    def _without_adapter(self, model: PreTrainedModel) -> Any:
        if self.base is not None:
            yield self.base
        else:
            inner = self.accelerator.unwrap_model(model)
            with inner.disable_adapter(), evaluating(inner):  # as a model of its own would be
                yield model


def train_stage1(
    search: SearchR3,
    dataset: RetrievalDataset,
    recipe: Recipe,
    folder: Path,
    tell: Tell | None = None,
    others: Sequence[RetrievalDataset] = (),
    start_counts: bool = False,
) -> list[dict[str, float]]:
    """Train `search` in place; it ends as the best checkpoint by dev nDCG@10, direct and reasoned alike.

    Goes on from the newest checkpoint in `folder`, if there is one.

    Args:
        others: the data sets of `data.mixture`, in its order.
        start_counts: the best checkpoint may be the model as it came.

    Returns:
        the curve: one entry a logged step with `loss`, its parts, and the dev figures (`eval_…`).
    """
    check_held(search, recipe)
    set_seed(recipe.seed)
    base = None
    if recipe.model.lora is not None:
        add_adapter(search, recipe)
    elif recipe.stage1.kl:
        base = copy.deepcopy(search.model).eval().requires_grad_(False)
    trainer = Stage1Trainer(search, base, dataset, recipe, folder, tell, others, start_counts)
    trainer.train(resume_from_checkpoint=resume_point(folder, trainer.group))
    search.model = whole_model(trainer.model, trainer.accelerator)
    search.autocast = precision(recipe)
    return curve(trainer.state)
