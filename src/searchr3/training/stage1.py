"""Stage 1: the embed token comes to mean something.

    L = a·SFT + b·KL + c·InfoNCE + d·TripletMargin   (arXiv 2510.07048)

Every step takes pairs of a query and a relevant document. A query is trained in both its forms, direct and
after reasoning; the reasoning is a trace, a noisy trace or what the model itself says at that moment, so
that the vector learns to profit from a thought without depending on it. Runs on `transformers.Trainer`.
"""

from __future__ import annotations

import contextlib
import copy
import random
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PrinterCallback, Trainer, TrainingArguments, set_seed

from searchr3.dataset import RetrievalDataset
from searchr3.dataset.traces import noisy_trace
from searchr3.errors import DataError
from searchr3.generation import generate_ids, padding_id, reason
from searchr3.losses import allowed_negatives, info_nce, kl_to_base, sft, triplet_margin
from searchr3.model import SearchR3
from searchr3.training.batches import NeighbourSampler
from searchr3.training.checkpoints import resume_point
from searchr3.training.common import (
    DevEvaluation,
    Tell,
    arguments,
    callbacks,
    curve,
)
from searchr3.training.dev import DevSet
from searchr3.training.forward import Item, Outputs, forward
from searchr3.training.precision import precision
from searchr3.training.recipe import Recipe

CHAT_REPLY_TOKENS = 24


class Pairs(torch.utils.data.Dataset):
    """Judged pairs of a split as row numbers: (number of the query, number of the document)."""

    def __init__(self, dataset: RetrievalDataset, split: str):
        self.query_ids = list(dataset.split(split))
        self.document_ids = list(dataset.training_corpus())
        number = {key: row for row, key in enumerate(self.document_ids)}
        self.relevant = [
            {document for document, grade in dataset.split(split)[key].items() if grade > 0}
            for key in self.query_ids
        ]
        self.pairs = [
            (row, number[document])
            for row, known in enumerate(self.relevant)
            for document in sorted(known)
            if document in number
        ]
        if not self.pairs:
            raise DataError(f"{dataset.name}: split {split!r} has no relevant document to train on")

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor(self.pairs[index])


class Stage1Trainer(DevEvaluation, Trainer):
    """`transformers.Trainer` whose loss is stage 1's.

    Args:
        search: the model to train.
        base: what the KL holds on to; None when a LoRA adapter is trained: its base is the model without it.
    """

    best_of = ("direct",)

    def __init__(
        self,
        search: SearchR3,
        base: PreTrainedModel | None,
        dataset: RetrievalDataset,
        recipe: Recipe,
        folder: Path,
        tell: Tell | None,
    ):
        self.recipe, self.stage = recipe, recipe.stage1
        self.conversation = search.conversation
        self.pad_id = padding_id(search.conversation)
        self.dataset, self.pairs = dataset, Pairs(dataset, "stage1")
        self.dev = DevSet.of(dataset, recipe.data.dev_queries, recipe.data.dev_documents)
        self.traces = [dataset.queries[key].reasoning for key in self.pairs.query_ids]
        self.trace_pool = [trace for trace in self.traces if trace]
        self.think_on_dev = bool(self.trace_pool) and self.stage.reasoned_share > 0
        self.base = base
        super().__init__(
            model=search.model,
            args=TrainingArguments(
                **arguments(recipe, self.stage, folder),
                per_device_train_batch_size=max(1, self.stage.batch_size // self.stage.accumulation),
                dataloader_drop_last=len(self.pairs) >= self.stage.batch_size,
            ),
            train_dataset=self.pairs,
            eval_dataset=self.pairs,
            data_collator=lambda rows: {"pairs": torch.stack(rows)},
            processing_class=search.tokenizer,
            callbacks=callbacks(self.stage, tell, "stage1"),
        )
        self.loss_is_scaled_for_ga = False
        self.remove_callback(PrinterCallback)
        self.chats = self._chat_items()

    def _get_train_sampler(self, train_dataset: Any = None) -> NeighbourSampler:
        ids = [self.pairs.document_ids[document] for _, document in self.pairs.pairs]
        texts = [self.dataset.corpus[key].content for key in ids]
        return NeighbourSampler(texts, self.stage.neighbours, self.recipe.seed)

    def compute_loss(
        self,
        model: PreTrainedModel,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Tensor:
        pairs = inputs["pairs"].tolist()
        rng = random.Random(f"{self.recipe.seed}:{self.state.global_step}:{pairs}")
        stage = self.stage
        queries = [query for query, _ in pairs]
        documents = [self.pairs.document_ids[document] for _, document in pairs] + self._hard_negatives(
            queries, rng
        )
        items, reasoned_rows = self._items(queries, documents, rng)
        with self.accelerator.autocast():
            outputs = forward(model, items, self.pad_id)
        n, m = len(queries), len(documents)
        direct, document_vectors = outputs.vectors[:n], outputs.vectors[n : n + m]
        reasoned = outputs.vectors[n + m : n + m + len(reasoned_rows)]
        positive = torch.arange(n, device=direct.device)
        allowed = allowed_negatives(documents, [self.pairs.relevant[query] for query in queries]).to(
            direct.device
        )

        share = stage.reasoned_share if reasoned_rows else 0.0
        contrastive = (1 - share) * info_nce(direct, document_vectors, positive, stage.temperature, allowed)
        triplet = (1 - share) * triplet_margin(direct, document_vectors, positive, stage.margin, allowed)
        if reasoned_rows:
            rows = torch.tensor(reasoned_rows, device=direct.device)
            own = (reasoned, document_vectors, positive[rows])
            contrastive = contrastive + share * info_nce(*own, stage.temperature, allowed[rows])
            triplet = triplet + share * triplet_margin(*own, stage.margin, allowed[rows])
        language = self._language(outputs, len(items) if not reasoned_rows else n + m)
        kl = (
            self._kl(model, items, outputs.logits, outputs.labels, outputs.item)
            if stage.kl
            else language.detach() * 0
        )
        self.note(sft=language.item(), kl=kl.item(), info_nce=contrastive.item(), triplet=triplet.item())
        return stage.sft * language + stage.kl * kl + stage.info_nce * contrastive + stage.triplet * triplet

    def _language(self, outputs: Outputs, reasoned_from: int) -> Tensor:
        """SFT, direct answers and reasoning weighed apart: thoughts must not drown in the fixed answer."""
        thinking = outputs.learn & (outputs.item >= reasoned_from)
        reasoning = self.stage.sft_reasoning if thinking.any() else 0.0
        total = outputs.logits.sum() * 0.0
        for share, rows in ((1 - reasoning, outputs.learn & ~thinking), (reasoning, thinking)):
            if rows.any():
                total = total + share * sft(outputs.logits[rows], outputs.labels[rows])
        return total

    def _items(
        self, queries: Sequence[int], documents: Sequence[str], rng: random.Random
    ) -> tuple[list[Item], list[int]]:
        """Direct queries, documents, reasoned queries, true traces to learn that no reasoned query holds
        already, chats; and which of `queries` are reasoned.
        """
        chat, texts = (
            self.conversation,
            [self.dataset.queries[self.pairs.query_ids[query]].text for query in queries],
        )
        anchor = self.stage.kl > 0
        after = chat.after_token(reasoned=False)
        items = [Item.of(one, after, learn=True, anchor=anchor) for one in chat.queries(texts)]
        contents = [self.dataset.corpus[key].content for key in documents]
        # a document's answer is the same as a direct query's: learning it once is enough
        items += [Item.of(one, (), learn=False, anchor=False) for one in chat.documents(contents)]
        thoughts = self._thoughts(queries, texts, rng) if self.stage.reasoned_share > 0 else {}
        rows = sorted(thoughts)
        rendered = chat.reasoned([texts[row] for row in rows], [thoughts[row][0] for row in rows])
        end = chat.after_token(reasoned=True)
        # a thought that is not to be learnt counts as given: learnt is to end it with the embed token, and
        # in its stead the true trace, where there is one
        instead = [row for row in rows if not thoughts[row][1] and self.traces[queries[row]]]
        for row, one in zip(rows, rendered, strict=True):
            if row in instead:
                items.append(Item.of(replace(one, answer_start=one.position), end, learn=True, anchor=False))
            else:
                start = one.answer_start if thoughts[row][1] else one.position
                items.append(Item.of(one, end, learn=True, anchor=anchor, learn_from=start))
        traces = chat.thought_ids([self.traces[queries[row]] or "" for row in instead])
        for one in chat.reasoned([texts[row] for row in instead], traces):
            items.append(Item.of(one, end, learn=True, anchor=anchor))
        if anchor and self.chats:
            items += rng.sample(self.chats, min(self.stage.chat_prompts, len(self.chats)))
        return items, rows

    def _thoughts(
        self, queries: Sequence[int], texts: Sequence[str], rng: random.Random
    ) -> dict[int, tuple[list[int], bool]]:
        """Reasoning ids for rows of the batch, and whether the model should learn to say them."""
        stage = self.stage
        may_sample = self.state.global_step >= stage.own_samples_after * self.state.max_steps
        written: dict[int, tuple[str, bool]] = {}
        sampled: list[int] = []
        for row, query in enumerate(queries):
            trace, draw = self.traces[query], rng.random()
            if may_sample and stage.own_samples and (draw < stage.own_samples or trace is None):
                sampled.append(row)
            elif trace is not None and draw < stage.own_samples + stage.noisy_traces:
                written[row] = (noisy_trace(trace, self.trace_pool, rng), False)
            elif trace is not None:
                written[row] = (trace, True)
        ids = self.conversation.thought_ids([text for text, _ in written.values()])
        thoughts = {
            row: (list(one), learn) for one, (row, (_, learn)) in zip(ids, written.items(), strict=True)
        }
        if sampled:
            prompts = self.conversation.reasoning_prompts([texts[row] for row in sampled])
            model = self.accelerator.unwrap_model(self.model)
            with self.accelerator.autocast():
                said = reason(
                    model, self.conversation, prompts, self.recipe.model.max_new_tokens, 1.0, len(prompts)
                )
            thoughts |= {row: (list(one.token_ids), False) for row, one in zip(sampled, said, strict=True)}
        return thoughts

    def _hard_negatives(self, queries: Sequence[int], rng: random.Random) -> list[str]:
        chosen: list[str] = []
        for query in queries:
            known = self.dataset.queries[self.pairs.query_ids[query]].negatives
            usable = [
                key
                for key in known
                if key not in self.pairs.relevant[query] and key not in self.dataset.held_out
            ]
            chosen += rng.sample(usable, min(self.stage.hard_negatives, len(usable)))
        return chosen

    def _kl(
        self, model: PreTrainedModel, items: list[Item], logits: Tensor, labels: Tensor, item: Tensor
    ) -> Tensor:
        anchored = [row for row, one in enumerate(items) if one.anchor]
        with torch.no_grad(), self._without_adapter(model) as base, self.accelerator.autocast():
            base_outputs = forward(base, [items[row] for row in anchored], self.pad_id)
        anchor = torch.tensor([one.anchor for one in items], device=item.device)[item]
        ours, theirs = logits[anchor], base_outputs.logits
        keep = labels[anchor] != self.conversation.embed_id
        return kl_to_base(ours[keep], theirs[keep])

    @contextlib.contextmanager
    def _without_adapter(self, model: PreTrainedModel) -> Any:
        if self.base is not None:
            yield self.base
        else:
            inner = self.accelerator.unwrap_model(model)
            with inner.disable_adapter():
                yield inner

    def _chat_items(self) -> list[Item]:
        """General chat prompts with the base's own replies: the KL holds the model to what it could do."""
        if not (self.stage.kl and self.stage.chat_prompts):
            return []
        text = resources.files("searchr3").joinpath("chat_prompts.txt").read_text(encoding="utf-8")
        prompts = self.conversation.chat_prompts([line.strip() for line in text.splitlines() if line.strip()])
        model = self.accelerator.unwrap_model(self.model)
        eos = [self.conversation.tokenizer.eos_token_id]
        replies = generate_ids(model, self.conversation, prompts, CHAT_REPLY_TOKENS, stop_ids=eos)
        return [
            Item([*prompt, *reply], None, answer_start=len(prompt), anchor=True)
            for prompt, reply in zip(prompts, replies, strict=True)
        ]


def train_stage1(
    search: SearchR3, dataset: RetrievalDataset, recipe: Recipe, folder: Path, tell: Tell | None = None
) -> list[dict[str, float]]:
    """Train `search` in place; it ends as the best checkpoint by dev nDCG@10.

    Goes on from the newest checkpoint in `folder`, if there is one.

    Returns:
        the curve: one entry a logged step with `loss`, its parts, and the dev figures (`eval_…`).
    """
    set_seed(recipe.seed)
    base = None
    if recipe.model.lora is not None:
        add_adapter(search, recipe)
    elif recipe.stage1.kl:
        base = copy.deepcopy(search.model).eval().requires_grad_(False)
    trainer = Stage1Trainer(search, base, dataset, recipe, folder, tell)
    trainer.train(resume_from_checkpoint=resume_point(folder))
    search.model = trainer.accelerator.unwrap_model(trainer.model).eval()
    search.autocast = precision(recipe)
    return curve(trainer.state)


def add_adapter(search: SearchR3, recipe: Recipe) -> None:
    """Put a LoRA adapter on the model; the embed token's rows of embedding and output head learn too."""
    from peft import LoraConfig, get_peft_model

    lora = recipe.model.lora
    assert lora is not None
    targets = lora.target_modules if isinstance(lora.target_modules, str) else list(lora.target_modules)
    ends = (search.model.get_input_embeddings(), search.model.get_output_embeddings())
    untied = ends[0].weight is not ends[1].weight  # PEFT itself follows a tied head
    names = [name.rpartition(".")[2] for name, module in search.model.named_modules() if module in ends]
    config = LoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=targets,
        trainable_token_indices={name: [search.conversation.embed_id] for name in names[: 1 + untied]},
        task_type="CAUSAL_LM",
    )
    search.model = get_peft_model(search.model, config)
    head = search.model.get_output_embeddings()
    if not hasattr(head, "bias"):  # PEFT wraps a tied head, and TRL's loss asks for its bias
        head.register_parameter("bias", getattr(head.original_module, "bias", None))
