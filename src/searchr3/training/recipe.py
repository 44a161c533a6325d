"""The recipe: one typed, self-validating object that says everything about a run.

Everything the paper leaves open (arXiv 2510.07048 shows no coefficients) is a field here with its default;
the meaning of each is in its description, from which `docs/recipe.md` is rendered (see `recipe_page`).
"""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from searchr3.errors import RecipeError
from searchr3.training.health import HealthRecipe
from searchr3.training.refresh import EnvironmentRecipe
from searchr3.training.rewards import RewardRecipe
from searchr3.training.rollout_engine import GenerationRecipe
from searchr3.training.section import Count, Counts, Names, Positive, Section, Sentence, Share, Weight

GREATEST_SEED = 4 * 10**9  # numpy takes seeds below 2³², and each process adds its number


class SourceRecipe(Section):
    source: str = Field(
        description="`python` (code installed here), a BEIR folder, a .jsonl of triples, or a Hub data set"
    )
    name: Annotated[str, Field(pattern=r"^\w[\w.-]*$")] | None = Field(
        None, description="its name in the curve and in the run's folder; default: the last part of `source`"
    )
    instruction: Sentence | None = Field(
        None,
        description="the task of its queries in a sentence, put after the system prompt wherever they are "
        "embedded or thought about; default: what the data set's `dataset.json` says",
    )
    weight: Annotated[Positive, Field(le=100_000)] = Field(
        1.0, description="factor of its share of stage 1's batches, see `data.by_size`"
    )
    temperature: Positive | None = Field(
        None, description="τ of InfoNCE in its batches, as `stage1.temperature`, which is the default"
    )
    on_disk: bool | None = Field(
        None,
        description="what is read goes to temporary files, not into memory (not for `python`); `null`: where "
        "it is more than 256 MB",
    )

    @property
    def label(self) -> str:
        """Its name."""
        last = PurePath(self.source).name.removesuffix(".gz").removesuffix(".jsonl")
        return self.name or re.sub(r"[^\w.-]", "-", last).strip(".") or "data"


class MixtureRecipe(SourceRecipe):
    dev_queries: Annotated[int, Field(ge=0)] = Field(
        0, description="its dev queries scored during training (direct); no checkpoint is chosen by them"
    )


class DataRecipe(SourceRecipe):
    source: str = Field("python", description=SourceRecipe.model_fields["source"].description)
    split_by: Literal["hash", "package"] = Field(
        "hash",
        description="for `python`: `hash` splits single functions, `package` holds out whole packages; the "
        "bundled base has seen those, so make one with `python -m searchr3.training.base OUTPUT "
        "--split-by package` and name it in `model.base`",
    )
    max_documents: Count | None = Field(
        None, description="keep at most so many documents (`python` only), chosen by a stable hash"
    )
    stage1_queries: Count | None = Field(
        None,
        description="learn in stage 1 from at most so many labelled queries of `data.source`, chosen by a "
        "stable hash: the first 100 are among the first 300",
    )
    stage2_queries: Count | None = Field(None, description="the same for stage 2")
    trace: Literal["words", "beginning"] = Field(
        "words",
        description="what a built-in reasoning trace is: the most telling words of the relevant document "
        "(`words`), or its first words as they stand there (`beginning`): then the model learns to draft the "
        "document; give `model.max_new_tokens` room for a draft",
    )
    trace_words: Annotated[int, Field(ge=0)] = Field(
        8, description="words in a built-in reasoning trace; 0 makes no traces"
    )
    dev_queries: Count = Field(400, description="dev queries scored during training")
    dev_documents: Count = Field(
        4000, description="documents they are scored against: the relevant ones and others drawn by hash"
    )
    mixture: tuple[MixtureRecipe, ...] = Field(
        (),
        description="further sources for stage 1, besides `data.source`, which alone is searched, measured "
        "and used by stage 2; a batch is of one source. The main source's dev and test queries are left out "
        "of the others",
    )
    by_size: Share = Field(
        1.0,
        description="a source's share of the batches is `weight · pairs^by_size`: at 1 all pairs come "
        "equally often, at 0 the weights alone decide",
    )

    @model_validator(mode="after")
    def _names_differ(self) -> DataRecipe:
        labels = [one.label for one in (self, *self.mixture)]
        if twice := next((label for label in labels if labels.count(label) > 1), None):
            raise ValueError(f"two sources are called {twice!r}; give one of them another name")
        return self


class LoraRecipe(Section):
    r: Count = Field(16, description="rank of each update: more can learn more, and takes more memory")
    alpha: Positive = Field(32, description="each update is multiplied by `alpha / r`")
    dropout: Annotated[float, Field(ge=0, lt=1)] = Field(0.0, description="share of its inputs set to 0")
    target_modules: str | tuple[str, ...] = Field(
        "all-linear",
        description="layers that get an adapter: `all-linear` (all but the output head), or names such as "
        "[q_proj, v_proj]",
    )


class ModelRecipe(Section):
    base: str = Field("bundled", description="`bundled` (the tiny base), or folder or Hub id of a chat model")
    prompts: str | None = Field(
        None, description="YAML or JSON file with the prompts; default: those of the base, else ours"
    )
    max_length: Count = Field(1024, description="most tokens of template and text; reasoning comes on top")
    max_new_tokens: Count = Field(
        128, description="most tokens of reasoning; what has not ended by then is closed by force"
    )
    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto",
        description="of forward passes (weights that learn and the optimizer stay float32; linear layers "
        "that `model.lora` leaves frozen are held in bf16 then); `auto`: `bf16` where the processor computes "
        "in it, else `fp32`",
    )
    lora: LoraRecipe | None = Field(None, description="train adapters instead of all weights")
    gradient_checkpointing: bool = Field(
        False,
        description="keep only the input of each layer for the backward pass and compute the rest again: "
        "much less memory, a third more work",
    )
    batch_size: Count = Field(
        64, description="most texts in one forward without gradient: of encoding, and of thinking on dev"
    )


class OptimizerRecipe(Section):
    learning_rate: Positive = Field(1e-4, description="learning rate of AdamW at its peak, after the warm-up")
    warmup_share: Share = Field(0.05, description="share of the steps with rising learning rate")
    schedule: Literal["constant_with_warmup", "linear", "cosine"] = Field(
        "linear",
        description="of the learning rate after the warm-up: it stays, or falls to 0 on a line or a cosine",
    )
    weight_decay: Weight = Field(
        0.01, description="of AdamW: a step shrinks weights by it × the learning rate"
    )
    max_grad_norm: Positive = Field(1.0, description="norm that longer gradients are scaled down to")


class SelectionRecipe(OptimizerRecipe):
    steps: Annotated[int, Field(ge=0)] = Field(1000, description="optimizer steps; 0 skips the stage")
    evaluate_every: Count = Field(
        100, description="steps between dev evaluations, each with a checkpoint; the best is kept"
    )
    patience: Count | None = Field(None, description="stop after so many dev evaluations without a new best")
    log_every: Count = Field(10, description="steps between lines of the log, each their mean")


class Stage1Recipe(SelectionRecipe):
    batch_size: Count = Field(64, description="query-document pairs in one optimizer step, of all processes")
    micro_tokens: Count | None = Field(
        None,
        description="most tokens, padding included, in one pass with gradient: a batch that needs several is "
        "learnt with cached gradients, in memory that does not grow with it; `null` keeps the whole batch",
    )
    neighbours: Count = Field(
        8, description="pairs in a group of like documents; batches are made of groups, 1 is a plain shuffle"
    )
    hard_negatives: Annotated[int, Field(ge=0)] = Field(
        0, description="explicit negatives a query, where the data set has them"
    )
    sft: Weight = Field(
        1.0, description="weight of the language loss on assistant tokens (traces, answer, embed token)"
    )
    sft_reasoning: Share = Field(
        0.9, description="share of reasoning in the language loss; the rest is the fixed direct answer"
    )
    kl: Weight = Field(
        0.01,
        description="weight of KL(policy || base) on assistant tokens but the embed token, and chat replies",
    )
    info_nce: Weight = Field(1.0, description="weight of InfoNCE, the contrastive loss over the batch")
    triplet: Weight = Field(0.1, description="weight of the triplet margin loss, see `margin`")
    temperature: Positive = Field(0.05, description="τ of InfoNCE: cosines are divided by it")
    margin: Weight = Field(0.1, description="θ: how far a positive's cosine is to exceed a negative's")
    matryoshka: Counts = Field(
        (),
        description="shorter widths at which the contrastive losses, of stage 2 too, are taken besides the "
        "model's own, such as [64, 256]: then the first so many dimensions of a vector are a vector too",
    )
    matryoshka_weights: tuple[Positive, ...] = Field(
        (), description="their weights, that of the model's own width being 1; default: all equal"
    )
    reasoned_share: Share = Field(
        0.5,
        description="weight of the queries' reasoned form in the contrastive losses; the rest is direct",
    )
    noisy_traces: Share = Field(
        0.0, description="share of reasoned queries that get a trace with words dropped and swapped"
    )
    own_samples: Share = Field(
        1.0,
        description="share of reasoned queries that get the model's own sampled reasoning; "
        "unless 0, also all queries without a trace",
    )
    own_samples_after: Share = Field(
        0.3, description="share of the steps before own samples are used; noisy traces stand in"
    )
    chat_prompts: Annotated[int, Field(ge=0)] = Field(
        8, description="general chat prompts, with a reply, in each step's KL, so that the model still chats"
    )

    @model_validator(mode="after")
    def _sources_fit(self) -> Stage1Recipe:
        if self.noisy_traces + self.own_samples > 1:
            raise ValueError("noisy_traces + own_samples must not exceed 1: the rest are true traces")
        return self

    @model_validator(mode="after")
    def _widths_fit(self) -> Stage1Recipe:
        if len(set(self.matryoshka)) < len(self.matryoshka):
            raise ValueError("matryoshka names a width twice")
        if self.matryoshka_weights and len(self.matryoshka_weights) != len(self.matryoshka):
            raise ValueError("matryoshka_weights must be as many as the widths in matryoshka")
        return self

    def widths(self, own: int) -> dict[int, float]:
        """Widths at which the contrastive losses are taken → weights, for a model of `own` dimensions.

        Raises:
            RecipeError: one is more than the model has.
        """
        if too_much := [width for width in self.matryoshka if width > own]:
            raise RecipeError(
                f"stage1.matryoshka: the model has {own} dimensions, {too_much[0]} are asked for; "
                f"name widths up to {own}"
            )
        weights = self.matryoshka_weights or (1.0,) * len(self.matryoshka)
        return {own: 1.0} | dict(zip(self.matryoshka, weights, strict=True))


class Stage2Recipe(SelectionRecipe):
    queries: Count = Field(16, description="queries in one generation, by default one optimizer step")
    rollouts: Annotated[int, Field(ge=2)] = Field(
        8, description="G: rollouts a query, compared with each other"
    )
    accumulation: Count = Field(
        1, description="micro-batches of a step in each process; more take less memory"
    )
    updates: Count = Field(
        1, description="optimizer steps on one generation, a share of it each; `epsilon` clips the later ones"
    )
    sampling_temperature: Positive = Field(1.0, description="of the rollouts: logits are divided by it")
    direct_rollout: bool = Field(
        False,
        description="one of the G rollouts is not sampled but the direct form's fixed answer (with "
        "`stage2.reward.length` the embed token at once), after the reasoning prompt: not thinking is always "
        "among what is compared",
    )
    loss_type: Literal["grpo", "dapo", "dr_grpo", "bnpo"] = Field(
        "dapo",
        description="what TRL divides the sum over tokens by: a rollout's tokens (`grpo`), the step's "
        "(`dapo`), the micro-batch's (`bnpo`), or the most there may be (`dr_grpo`)",
    )
    scale_rewards: Literal["group", "batch", "none"] = Field(
        "group",
        description="divide advantages by the standard deviation in a query's group, in the batch, or not",
    )
    beta: Weight = Field(
        0.0, description="weight of KL to the model at the start of the stage (GRPO's reference)"
    )
    epsilon: Positive = Field(
        0.2, description="the policy's ratio to that which sampled counts from 1 − ε to 1 + ε; see `updates`"
    )
    policy_gradient: Weight = Field(
        1.0, description="weight of GRPO's loss; 0 leaves the contrastive term alone, as a control"
    )
    contrastive: Weight = Field(
        0.0, description="weight of InfoNCE through the rollouts' embeddings and the direct queries"
    )
    contrastive_temperature: Positive = Field(0.05, description="its τ: cosines are divided by it")
    contrastive_pairs: Annotated[int, Field(ge=0)] = Field(
        48, description="further pairs in its batch, direct only, grouped by `stage1.neighbours`"
    )
    contrastive_negatives: Annotated[int, Field(ge=0)] = Field(
        0, description="its hard negatives a query, from the environment; they are often right but unjudged"
    )
    generation: GenerationRecipe = GenerationRecipe()
    reward: RewardRecipe = RewardRecipe()
    environment: EnvironmentRecipe = EnvironmentRecipe()
    health: HealthRecipe = HealthRecipe()
    episodes_every: Count = Field(10, description="steps between dumps of whole episodes to episodes.jsonl")

    @model_validator(mode="after")
    def _parts_fit(self) -> Stage2Recipe:
        if self.queries * self.rollouts % (self.accumulation * self.updates):
            raise ValueError("queries × rollouts must be a multiple of accumulation × updates")
        if self.steps % self.updates or self.evaluate_every % self.updates:
            raise ValueError("steps and evaluate_every must be multiples of updates: generations stay whole")
        if self.reward.length and self.scale_rewards == "group":
            raise ValueError(
                "reward.length with scale_rewards=group: where length alone tells rollouts apart, any cost "
                "would be blown up to one size; set scale_rewards=batch"
            )
        return self


class EvaluationRecipe(Section):
    baselines: Names = Field(
        ("bm25",), description="as `--baseline`: a model's folder or Hub id, `rewrite:MODEL`, `URL#MODEL`"
    )
    depth: Annotated[int, Field(ge=100)] = Field(100, description="documents ranked a query, when measured")
    chat_tokens: Annotated[int, Field(ge=0)] = Field(
        48,
        description="most tokens of a reply when the trained model is held against its base on general chat "
        "prompts; 0 leaves that out",
    )


class Recipe(Section):
    name: str = Field("run", description="name of the run, in its report and in trackers")
    seed: Annotated[int, Field(ge=0, le=GREATEST_SEED)] = Field(0, description="seed of everything random")
    data: DataRecipe = DataRecipe()
    model: ModelRecipe = ModelRecipe()
    stage1: Stage1Recipe = Stage1Recipe()
    stage2: Stage2Recipe = Stage2Recipe()
    evaluation: EvaluationRecipe = EvaluationRecipe()
    report_to: Names = Field((), description="trackers of transformers: `tensorboard`, `wandb`, `mlflow`, …")

    def dump(self) -> dict[str, Any]:
        """The recipe as plain values, ready for YAML."""
        return self.model_dump(mode="json")

    def trains_as(self, other: Recipe) -> bool:
        """Whether both make the same models: they differ at most in how a run is measured and followed."""
        return self.model_copy(update={"evaluation": other.evaluation, "report_to": other.report_to}) == other
