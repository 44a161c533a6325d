"""Stage 2: reinforcement. Rollouts think, embed, and are rewarded by how their own vector ranks the corpus.

GRPO by `trl.GRPOTrainer`. Our hold on it is small: prompts go in as token ids (`_tokenize_prompts`), the
reward comes from one reward function, and `_compute_loss` adds the contrastive term to TRL's policy loss
through a hook on the network.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict
from functools import cached_property
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, PrinterCallback, set_seed
from trl import GRPOTrainer

from searchr3.dataset import RetrievalDataset
from searchr3.dataset.lazy import Mapped
from searchr3.embedding import backbone
from searchr3.environment import CorpusEnvironment, RefreshPolicy, audit
from searchr3.files import write_json
from searchr3.generation import is_dealt, padding_id, without_wrapper
from searchr3.group import on_first, start_group
from searchr3.model import SearchR3
from searchr3.sharing import document_lengths, encode_own, encode_shared
from searchr3.training.adapter import add_adapter, copy_token_rows
from searchr3.training.batches import GenerationSampler
from searchr3.training.checkpoints import ENVIRONMENT, StartCounts, resume_point, step_of
from searchr3.training.common import (
    DevEvaluation,
    Tell,
    WatchHealth,
    callbacks,
    curve,
    relevant_documents,
)
from searchr3.training.contrastive import CachedTerm, ContrastiveTerm
from searchr3.training.dev import DevSet
from searchr3.training.episodes import EpisodeLog
from searchr3.training.forward import Item, run
from searchr3.training.groups import Rollouts, of_all, with_direct
from searchr3.training.grpo import completions_alone, grpo_config
from searchr3.training.health import HealthMonitor
from searchr3.training.one_pass import OnePass
from searchr3.training.precision import check_held, precision
from searchr3.training.recipe import Recipe
from searchr3.training.refresh import refresh_policy
from searchr3.training.rewards import rewards
from searchr3.training.rollout_engine import check_installed, check_server
from searchr3.training.weights import give_weights, merged_weights, whole_model


class Stage2Trainer(DevEvaluation, GRPOTrainer):
    """`trl.GRPOTrainer` with the corpus as its reward.

    Args:
        search: the model to train, after stage 1.
        environment: the corpus; its `encode` must use this trainer's model.
        episodes: where whole episodes are dumped; None for nowhere.
    """

    name = "stage2"
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
        self.cost_on_dev = self.stage.reward.cost if self.stage.reward.length else None
        self.conversation = search.conversation
        self.pad_id = padding_id(search.conversation)
        self.dataset, self.environment, self.episodes = dataset, environment, episodes
        self.group = environment.group
        self.qrels = relevant_documents(dataset, "stage2")
        data = recipe.data
        self.dev = DevSet.of(dataset, data.dev_queries, data.dev_documents, recipe.stage1.matryoshka)
        self.contrastive = (
            ContrastiveTerm(dataset, environment, self.conversation, self.qrels, recipe)
            if self.stage.contrastive
            else None
        )
        self.health = HealthMonitor(self.stage.health, quiet=bool(self.stage.reward.length))
        self._term: CachedTerm | None = None
        self._hidden: Tensor | None = None
        start = StartCounts()
        search.model.generation_config.eos_token_id = self.conversation.stop_ids
        super().__init__(
            model=search.model,
            reward_funcs=self._reward,
            args=grpo_config(recipe, folder, search.conversation.stop_ids),
            train_dataset=Dataset.from_list(
                [{"prompt": dataset.queries[key].text, "query_id": key} for key in self.qrels]
            ),
            eval_dataset=Dataset.from_list([{"prompt": "", "query_id": ""}]),  # unused: evaluate() is ours
            processing_class=search.tokenizer,
            callbacks=[
                *callbacks(self.stage, tell, "stage2"),
                WatchHealth(self.health, tell),
                start,
            ],
        )
        start.trainer = self
        self.kept["health"] = self.health
        self.kept_folders[ENVIRONMENT] = environment
        self.remove_callback(PrinterCallback)
        if self.ref_model is not None:  # TRL has loaded it from where the model came from, before stage 1
            give_weights(self.accelerator.unwrap_model(self.ref_model), dict(search.model.named_parameters()))
        if "ref" in getattr(search.model, "peft_config", {}):
            copy_token_rows(search.model)
        if self.use_vllm and hasattr(self.model, "peft_config"):
            self.vllm_generation._iter_named_params = lambda: merged_weights(self.model, self.accelerator)
        self.hook = backbone(self.accelerator.unwrap_model(self.model)).register_forward_hook(
            self._keep_hidden
        )

    def dev_score(self, figures: Mapping[str, float]) -> float:
        """Half of what thinking tokens cost is taken off: of the two forms one thinks."""
        return super().dev_score(figures) - figures.get("thinking_cost", 0.0) / len(self.best_of)

    def _get_train_sampler(self, dataset: Any = None) -> GenerationSampler:
        return GenerationSampler.of(len(self.qrels), self.args)

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return self.conversation.reasoning_prompts(prompts, self.dataset.instruction), None, {}

    def _generate_single_turn(self, *arguments: Any, **named: Any) -> tuple[list[list[int]], Any]:
        """With `direct_rollout` the last rollout of each group is the direct form's fixed answer.

        With a length cost it is the embed token at once: a policy that always thinks would not sample it, and
        so never find out where that is enough.

        It stands after the reasoning prompt and is embedded and rewarded like any rollout of the same tokens:
        credit goes to what the policy would get if it said so, and the reward, the log-probabilities and the
        contrastive term are all of one sequence. (The direct query vector is that of another conversation;
        its reward is `reward_direct` in the curve.) It anchors the group's mean to what no thinking is worth.
        But the policy did not sample it, and TRL takes its probability ratio as 1: a phrase however unlikely
        is pushed away, or drawn near where it ranks best, harder than learning from one's own samples would.
        """
        if is_dealt(self.model):  # accelerate does not tell `generate` that all must make as many passes
            without_wrapper(self.model)._is_fsdp_managed_module = True
        # `generate` of an adapter's model goes past what accelerate wraps; vLLM's merged weights are float32
        bare = hasattr(self.model, "peft_config") and not self.use_vllm
        if self.one_pass:
            completions, logprobs = self.one_pass.sample(self.search_model(), arguments[0]), None
        else:
            with self.accelerator.autocast() if bare else nullcontext():
                completions, logprobs = super()._generate_single_turn(*arguments, **named)
        if self.stage.direct_rollout:
            answer = [] if self.stage.reward.length else self.conversation.answer_ids
            embed_id = self.conversation.embed_id
            sampled, size = completions, self.stage.rollouts
            completions = with_direct(sampled, size, answer, embed_id)
            if logprobs is not None:  # of vLLM; None: it has none, and TRL corrects nothing
                logprobs = [
                    [None] * len(completion) if row % size == size - 1 else logprobs[row]
                    for row, completion in enumerate(completions)
                ]
        return completions, logprobs

    @cached_property
    def one_pass(self) -> OnePass | None:
        """Of a known architecture whose weights are whole on each process; not vLLM's rollouts."""
        if self.use_vllm or is_dealt(self.model) or not self.search_model().reads_once:
            return None
        limits = self.recipe.model.max_new_tokens, self.stage.sampling_temperature
        return OnePass(*limits, self.dataset.instruction)

    def _keep_hidden(self, module: torch.nn.Module, args: Any, output: Any) -> None:
        self._hidden = output.last_hidden_state

    def _reward(
        self, prompts: list[str], completion_ids: list[list[int]], query_id: list[str], **_: Any
    ) -> list[float]:
        """Refresh the corpus, rank it by each rollout's own vector, and reward the rollout."""
        step = self.state.global_step
        rollouts = Rollouts(
            query_id,
            self.conversation.reasoning_prompts(prompts, self.dataset.instruction),
            completion_ids,
            self.stage.rollouts,
            self.conversation,
            self.stage.direct_rollout,
        )
        search, group = self.search_model(), self.environment.group
        if self.one_pass:
            vectors = self.one_pass.vectors(search, rollouts)
        else:
            vectors = encode_own(search, rollouts.rendered(), group)
        relevant = [self.qrels[key] for key in query_id]
        refreshed = self.environment.refresh(vectors, relevant, step)
        scores = self.environment.score(vectors, relevant)

        texts = [self.dataset.queries[key].text for key in rollouts.asked]
        asked = self.conversation.queries(texts, self.dataset.instruction)
        plain = encode_own(search, asked, group)
        without = self.environment.score(plain, relevant[:: rollouts.size])

        ndcg = torch.from_numpy(scores.reward).float()
        reward = rewards(ndcg, rollouts, self.stage.reward)
        figures = rollouts.figures(
            ndcg,
            torch.from_numpy(scores.rank),
            torch.from_numpy(without.reward).float(),
            self.environment.candidates,
        )
        figures = of_all(figures, group)
        self.note(**figures, **{f"environment_{name}": value for name, value in refreshed.metrics().items()})
        self._audit(vectors, relevant, step)
        self.health.observe(step + 1, figures)
        self.note(**{f"alarm_{name}": 1.0 for name in self.health.active})
        if self.contrastive:
            self._term = self.contrastive.of(search, rollouts, vectors, plain, scores.hits, step)
            encoded = self.environment.share_of_tokens(self._term.encoded)
            self.note(contrastive=self._term.loss, contrastive_share_tokens=encoded)
        if self.episodes and step % self.stage.episodes_every < self.stage.updates:
            thoughts = self.conversation.tokenizer.batch_decode(rollouts.thoughts, skip_special_tokens=True)
            self.episodes.write(
                step, query_id, thoughts, rollouts.emitted.tolist(), reward.tolist(), scores, self.environment
            )
        return reward.tolist()

    def _audit(self, vectors: np.ndarray, relevant: list[dict[str, float]], step: int) -> None:
        """At the recipe's steps, hold the rewards against those of fresh vectors. The first is step 0's."""
        settings, updates = self.stage.environment, self.stage.updates
        if settings.audit_every and step % settings.audit_every < updates:
            seed, sample = self.recipe.seed, settings.audit_documents
            found = audit(self.environment, vectors, relevant, step, self.stage.rollouts, sample, seed)
            figures = of_all(asdict(found), self.environment.group)
            self.note(**{f"audit_{name}": value for name, value in figures.items() if isfinite(value)})

    def _get_per_token_logps_and_entropies(self, *arguments: Any, **named: Any) -> tuple[Any, ...]:
        with completions_alone():
            return tuple(super()._get_per_token_logps_and_entropies(*arguments, **named))

    def _compute_loss(self, model: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
        if self.model.training:
            self.learnt.count += int(inputs["prompt_mask"].sum() + inputs["completion_mask"].sum())
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
        total = term.through_rollouts(inputs, hidden)
        parts = self.args.steps_per_generation
        for texts, gradients in term.passes(self._step % parts, parts):
            items = [Item.of(one, (), learn=False, anchor=False) for one in texts]
            self.learnt.count += sum(len(item.ids) for item in items)
            with self.accelerator.autocast():
                vectors = run(self.accelerator.unwrap_model(model), items, self.pad_id).vectors
            total = total + (gradients * vectors).sum()
        self._hidden = None
        total = term.group.size * total  # the mean over the processes is taken of what is a sum
        return self.stage.updates * (total - total.detach() + term.loss / parts)


def train_stage2(
    search: SearchR3,
    dataset: RetrievalDataset,
    recipe: Recipe,
    folder: Path,
    episodes: Path | None = None,
    vectors: np.ndarray | None = None,
    tell: Tell | None = None,
    alarms: Path | None = None,
    policy: RefreshPolicy | None = None,
) -> list[dict[str, float]]:
    """Train `search` in place; it ends as the best checkpoint by dev nDCG@10, the start included.

    What counts is the mean of direct and reasoned, the latter less what its tokens cost in the reward.

    Args:
        vectors: of the training corpus under the model as it is now, if known; else they are encoded first.
        episodes: JSONL file that gets whole episodes every `episodes_every` steps.
        policy: refresh policy; default: the recipe's.
        alarms: JSON file that gets the alarms of the health monitor, `searchr3.training.health.Alarm`.

    Returns:
        the curve: a row a logged step with `reward`, `thinking_tokens`, `emission_rate`, … and dev figures.
    """
    check_held(search, recipe)
    set_seed(recipe.seed)
    group = start_group()
    check_installed(recipe.stage2.generation)
    on_first(group, lambda: check_server(recipe.stage2.generation))
    search.autocast = precision(recipe)
    corpus = Mapped(dataset.training_corpus(), lambda document: document.content)  # it may lie on disk
    settings = recipe.stage2
    environment = CorpusEnvironment(
        corpus,
        search.encode_document,
        policy or refresh_policy(settings.environment, settings.reward.temperature, recipe.seed),
        settings.environment.candidates,
        settings.reward.temperature,
        vectors,
        dtype=settings.environment.dtype,
        group=group,
        lengths=document_lengths(search.conversation, list(corpus), corpus, group),
    )
    log = EpisodeLog(episodes, dataset, group) if episodes else None
    if recipe.model.lora is not None and not hasattr(search.model, "peft_config"):
        add_adapter(search, recipe)
    trainer = Stage2Trainer(search, environment, dataset, recipe, folder, log, tell)
    environment.encode = lambda texts: encode_shared(
        trainer.search_model(), search.conversation.documents(texts), group
    )
    checkpoint = resume_point(folder, group)
    if log:
        log.start(step_of(checkpoint) if checkpoint else 0)
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.hook.remove()
    if alarms:
        raised = [alarm.as_dict() for alarm in trainer.health.alarms]
        on_first(group, lambda: write_json(alarms, raised))
    search.model = whole_model(trainer.model, trainer.accelerator)
    return curve(trainer.state)
