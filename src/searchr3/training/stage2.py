"""Stage 2: reinforcement. Rollouts think, embed, and are rewarded by how their own vector ranks the corpus.

GRPO by `trl.GRPOTrainer`. Our hold on it is small: prompts go in as token ids (`_tokenize_prompts`), the
reward comes from one reward function, and `_compute_loss` adds the contrastive term to TRL's policy loss
through a hook on the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, PrinterCallback, set_seed
from trl import GRPOConfig, GRPOTrainer

from searchr3.conversation import Rendered
from searchr3.dataset import RetrievalDataset
from searchr3.environment import CorpusEnvironment, Frozen, Full, Neighbourhood, RefreshPolicy
from searchr3.generation import padding_id, split_completion
from searchr3.losses import allowed_negatives
from searchr3.model import SearchR3, backbone
from searchr3.reward import RewardWeights, combine
from searchr3.training.batches import Cycle, GenerationSampler, NeighbourSampler
from searchr3.training.checkpoints import ENVIRONMENT, StartCounts, resume_point, step_of
from searchr3.training.common import (
    DevEvaluation,
    Tell,
    arguments,
    callbacks,
    curve,
    precision,
    relevant_documents,
)
from searchr3.training.contrastive import CachedTerm, by_rollout, cached_term, rollout_key
from searchr3.training.dev import DevSet
from searchr3.training.episodes import EpisodeLog
from searchr3.training.forward import Item, forward
from searchr3.training.recipe import EnvironmentRecipe, Recipe


class Stage2Trainer(DevEvaluation, GRPOTrainer):
    """`trl.GRPOTrainer` with the corpus as its reward.

    Args:
        search: the model to train, after stage 1.
        environment: the corpus; its `encode` must use this trainer's model.
        episodes: where whole episodes are dumped; None for nowhere.
    """

    best_of = ("direct", "reasoned")  # documents and direct queries are served too
    think_on_dev = True

    def __init__(
        self,
        search: SearchR3,
        environment: CorpusEnvironment,
        dataset: RetrievalDataset,
        recipe: Recipe,
        folder: Path,
        episodes: EpisodeLog | None = None,
        tell: Tell | None = None,
    ):
        self.recipe, self.stage = recipe, recipe.stage2
        self.conversation = search.conversation
        self.pad_id = padding_id(search.conversation)
        self.dataset, self.environment, self.episodes = dataset, environment, episodes
        self.qrels = relevant_documents(dataset, "stage2")
        self.dev = DevSet.of(dataset, recipe.data.dev_queries, recipe.data.dev_documents)
        self.query_ids = list(self.qrels)
        self.best = {key: max(judged, key=judged.__getitem__) for key, judged in self.qrels.items()}
        self.more: Cycle | None = None
        if self.stage.contrastive and self.stage.contrastive_pairs:
            texts = [dataset.corpus[self.best[key]].content for key in self.query_ids]
            sampler = NeighbourSampler(texts, recipe.stage1.neighbours, recipe.seed)
            self.more = Cycle(sampler, self.stage.contrastive_pairs)
        self._term: CachedTerm | None = None
        self._hidden: Tensor | None = None
        start = StartCounts()
        search.model.generation_config.eos_token_id = self.conversation.stop_ids
        super().__init__(
            model=search.model,
            reward_funcs=self._reward,
            args=grpo_config(recipe, folder),
            train_dataset=Dataset.from_list(
                [{"prompt": dataset.queries[key].text, "query_id": key} for key in self.qrels]
            ),
            eval_dataset=Dataset.from_list([{"prompt": "", "query_id": ""}]),  # unused: evaluate() is ours
            processing_class=search.tokenizer,
            callbacks=[*callbacks(self.stage, tell, "stage2"), start],
        )
        start.trainer = self
        self.kept_folders[ENVIRONMENT] = environment
        self.remove_callback(PrinterCallback)
        if self.ref_model is not None:  # TRL has loaded it from where the model came from, before stage 1
            self.ref_model.load_state_dict(search.model.state_dict())
        self.hook = backbone(self.accelerator.unwrap_model(self.model)).register_forward_hook(
            self._keep_hidden
        )

    def _get_train_sampler(self, dataset: Any = None) -> GenerationSampler:
        return GenerationSampler.of(len(self.query_ids), self.args)

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return self.conversation.reasoning_prompts(prompts), None, {}

    def _keep_hidden(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        self._hidden = output.last_hidden_state

    def _reward(
        self, prompts: list[str], completion_ids: list[list[int]], query_id: list[str], **_: Any
    ) -> list[float]:
        """Refresh the corpus, rank it by each rollout's own vector, and reward the rollout."""
        step = self.state.global_step
        prompt_ids = self.conversation.reasoning_prompts(prompts)
        split = [split_completion(completion, self.conversation) for completion in completion_ids]
        rendered = [
            self.conversation.close(prompt, thought)
            for prompt, (thought, _) in zip(prompt_ids, split, strict=True)
        ]
        vectors = self.search_model().encode_rendered(rendered)
        relevant = [self.qrels[key] for key in query_id]
        refreshed = self.environment.refresh(vectors, relevant, step)
        scores = self.environment.score(vectors, relevant)

        emitted = torch.tensor([said for _, said in split])
        lengths = torch.tensor([len(thought) for thought, _ in split])
        ndcg = torch.from_numpy(scores.reward).float()
        weights = self.stage.reward
        formed = [
            said and self.conversation.is_thought(thought, weights.least_tokens) for thought, said in split
        ]
        reward = combine(
            ndcg,
            torch.tensor(formed),
            lengths,
            RewardWeights(weights.ndcg, weights.format, weights.length, weights.free_tokens),
        )
        groups = ndcg.view(-1, self.stage.rollouts)
        self.note(
            reward_ndcg=ndcg.mean().item(),
            thinking_tokens=lengths.float().mean().item(),
            emission_rate=emitted.float().mean().item(),
            groups_with_variance=(groups.std(dim=1) > 1e-4).float().mean().item(),
            groups_saturated=(groups.min(dim=1).values > 0.99).float().mean().item(),
            distinct_rollouts=len(
                {rollout_key(p, c) for p, c in zip(prompt_ids, completion_ids, strict=True)}
            )
            / len(split),
            rank_median=float(np.median(scores.rank)),
            **{f"environment_{name}": value for name, value in refreshed.metrics().items()},
        )
        if self.stage.contrastive:
            said_it = [row for row, (_, said) in enumerate(split) if said]
            self._term = self._contrastive_term(
                vectors, said_it, prompt_ids, completion_ids, query_id, scores.hits, step
            )
        if self.episodes and step % self.stage.episodes_every < self.stage.updates:
            thoughts = self.conversation.tokenizer.batch_decode(
                [thought for thought, _ in split], skip_special_tokens=True
            )
            self.episodes.write(
                step, query_id, thoughts, emitted.tolist(), reward.tolist(), scores, self.environment
            )
        return reward.tolist()

    def _contrastive_term(
        self,
        vectors: np.ndarray,
        counted: Sequence[int],
        prompt_ids: Sequence[Sequence[int]],
        completion_ids: Sequence[Sequence[int]],
        query_id: Sequence[str],
        hits: np.ndarray,
        step: int,
    ) -> CachedTerm:
        """Encode this batch's queries and documents at one age, and cache the gradients of their InfoNCE."""
        queries = list(dict.fromkeys([*query_id, *self._more_pairs(step // self.stage.updates)]))
        number = {key: row for row, key in enumerate(queries)}
        first = [self.best[key] for key in queries]
        documents = list(dict.fromkeys([*first, *self._negatives(query_id, hits)]))
        search = self.search_model()
        direct = self.conversation.queries([self.dataset.queries[key].text for key in queries])
        contents = self.conversation.documents([self.dataset.corpus[key].content for key in documents])
        fresh = self._fresh(search, documents, contents, step)
        place = {key: row for row, key in enumerate(documents)}
        loss, of_rollouts, of_direct, of_documents = cached_term(
            torch.from_numpy(vectors[list(counted)]),
            torch.from_numpy(search.encode_rendered(direct)),
            torch.from_numpy(fresh),
            torch.tensor([number[query_id[row]] for row in counted], dtype=torch.long),
            torch.tensor([place[key] for key in first]),
            allowed_negatives(documents, [set(self.qrels[key]) for key in queries]),
            self.stage.contrastive_temperature,
        )
        self.note(contrastive=loss)
        keys = [rollout_key(prompt_ids[row], completion_ids[row]) for row in counted]
        device = self.accelerator.device
        return CachedTerm(
            loss,
            by_rollout(keys, of_rollouts.to(device)),
            [*direct, *contents],
            torch.cat([of_direct, of_documents]).to(device),
        )

    def _fresh(
        self, search: SearchR3, documents: Sequence[str], contents: Sequence[Rendered], step: int
    ) -> np.ndarray:
        """Vectors of this step; the environment gets none of them: what it refreshes its policy decides."""
        store, rows = self.environment.store, self.environment.rows_of(documents)
        vectors = store.take(rows).copy()
        old = np.flatnonzero(store.version[rows] != step)
        vectors[old] = search.encode_rendered([contents[int(row)] for row in old])
        return vectors

    def _more_pairs(self, generation: int) -> list[str]:
        """Further queries: few pairs give easy negatives, from which the direct vectors would forget."""
        return [self.query_ids[row] for row in self.more.batch(generation)] if self.more else []

    def _negatives(self, query_id: Sequence[str], hits: np.ndarray) -> list[str]:
        """For each query the best hits of its first rollout that are not relevant to it."""
        chosen: list[str] = []
        for row in range(0, len(query_id), self.stage.rollouts):
            ids = [self.environment.ids[hit] for hit in hits[row]]
            wrong = [key for key in ids if key not in self.qrels[query_id[row]]]
            chosen += wrong[: self.stage.contrastive_negatives]
        return chosen

    def _compute_loss(self, model: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
        loss = self.stage.policy_gradient * super()._compute_loss(model, inputs)
        hidden, self._hidden = self._hidden, None
        assert hidden is not None
        if self._term is None or not self.model.training:
            return loss
        return loss + self.stage.contrastive * self._cached_loss(model, inputs, hidden, self._term)

    def _cached_loss(
        self, model: PreTrainedModel, inputs: dict[str, Tensor], hidden: Tensor, term: CachedTerm
    ) -> Tensor:
        """A share of the term, see `contrastive`: its gradient is that of `Σ gradient · vector`."""
        prompts, completions = inputs["prompt_ids"], inputs["completion_ids"]
        total = hidden.new_zeros((), dtype=torch.float32)
        for row in range(len(prompts)):
            prompt = prompts[row][inputs["prompt_mask"][row].bool()].tolist()
            length = int(inputs["completion_mask"][row].sum())
            gradient = term.rollouts.get(rollout_key(prompt, completions[row, :length].tolist()))
            if gradient is not None:  # its last token is the embed token
                vector = hidden[row, prompts.shape[1] + length - 1].float()
                total = total + gradient @ torch.nn.functional.normalize(vector, dim=-1)
        parts = self.args.steps_per_generation
        texts, gradients = term.share(self._step % parts, parts)
        if texts:
            items = [Item.of(one, (), learn=False, anchor=False) for one in texts]
            with self.accelerator.autocast():
                vectors = forward(self.accelerator.unwrap_model(model), items, self.pad_id).vectors
            total = total + (gradients * vectors).sum()
            self._hidden = None
        return self.stage.updates * (total - total.detach() + term.loss / parts)


def refresh_policy(recipe: EnvironmentRecipe) -> RefreshPolicy:
    if recipe.policy == "full":
        return Full()
    if recipe.policy == "frozen":
        return Frozen()
    budget = recipe.budget if recipe.budget is None or recipe.budget < 1 else int(recipe.budget)
    return Neighbourhood(recipe.neighbours, budget)


def grpo_config(recipe: Recipe, folder: Path) -> GRPOConfig:
    """Ours to TRL's: one generation for `updates` optimizer steps; with one the policy loss is on-policy."""
    stage = recipe.stage2
    parts = stage.accumulation * stage.updates
    return GRPOConfig(
        **arguments(recipe, stage, folder),
        per_device_train_batch_size=stage.queries * stage.rollouts // parts,
        steps_per_generation=parts,
        num_generations=stage.rollouts,
        max_completion_length=recipe.model.max_new_tokens,
        temperature=stage.sampling_temperature,
        top_k=0,
        top_p=1.0,
        beta=stage.beta,
        epsilon=stage.epsilon,
        loss_type=stage.loss_type,
        scale_rewards=stage.scale_rewards,
        gradient_checkpointing=False,
        disable_dropout=True,
    )


def train_stage2(
    search: SearchR3,
    dataset: RetrievalDataset,
    recipe: Recipe,
    folder: Path,
    episodes: Path | None = None,
    vectors: np.ndarray | None = None,
    tell: Tell | None = None,
) -> list[dict[str, float]]:
    """Train `search` in place; it ends as the best checkpoint by dev nDCG@10, the start included.

    What counts is the mean of direct and reasoned.

    Args:
        vectors: of the training corpus under the model as it is now, if known; else they are encoded first.
        episodes: JSONL file that gets whole episodes every `episodes_every` steps.

    Returns:
        the curve: a row a logged step with `reward`, `thinking_tokens`, `emission_rate`, … and dev figures.
    """
    set_seed(recipe.seed)
    search.autocast = precision(recipe)
    corpus = {key: document.content for key, document in dataset.training_corpus().items()}
    settings = recipe.stage2
    environment = CorpusEnvironment(
        corpus,
        search.encode_document,
        refresh_policy(settings.environment),
        settings.environment.candidates,
        settings.reward.temperature,
        vectors,
    )
    log = EpisodeLog(episodes, dataset) if episodes else None
    if recipe.model.lora is not None and not hasattr(search.model, "peft_config"):
        from searchr3.training.stage1 import add_adapter

        add_adapter(search, recipe)
    trainer = Stage2Trainer(search, environment, dataset, recipe, folder, log, tell)
    environment.encode = lambda texts: trainer.search_model().encode_document(texts)
    checkpoint = resume_point(folder)
    if log:
        log.start(step_of(checkpoint) if checkpoint else 0)
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.hook.remove()
    search.model = trainer.accelerator.unwrap_model(trainer.model).eval()
    return curve(trainer.state)
