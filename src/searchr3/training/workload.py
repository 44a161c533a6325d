"""How many tokens a recipe passes through the model on given data, and how large its largest passes are.

Stage 1 is counted on batches that its own `BatchMaker` makes, stage 2 from the lengths of the data's texts.
What nobody can know before is how long the model's own thoughts will be: as long as the data's traces, and
without traces as long as they may be.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from statistics import fmean

from searchr3.conversation import Conversation
from searchr3.dataset import RetrievalDataset
from searchr3.generation import Reasoning
from searchr3.training.estimate import LOGITS, LOGITS_KL, TILE, Passes, Shape, Work
from searchr3.training.forward import Item
from searchr3.training.mixture import Source, shares, sources_of
from searchr3.training.parallel import share_of
from searchr3.training.pieces import AT_ONCE
from searchr3.training.recipe import Recipe
from searchr3.training.stage1_batch import Batch, BatchMaker

SAMPLE = 500  # texts of each kind, and pairs of stage 1, that lengths are taken from
CHAT = 64  # tokens of a general chat prompt and its reply
ANSWER = 8  # tokens of the fixed answer and its end


@dataclass(frozen=True)
class Lengths:
    """Tokens of texts, the conversation around them included: means, and the longest.

    Attributes:
        direct: a query's direct form; prompt: what it thinks after; thought: what it thinks.
    """

    direct: float
    prompt: float
    document: float
    thought: float
    longest_prompt: int
    longest_document: int

    @classmethod
    def assumed(cls, recipe: Recipe, query: int = 128) -> Lengths:
        """Without data: queries of so many tokens, documents and thoughts as long as the recipe allows."""
        longest, thought = recipe.model.max_length, recipe.model.max_new_tokens
        query = min(query, longest)
        return cls(query, query, longest, thought, query, longest)

    @classmethod
    def greatest(cls, some: Sequence[Lengths]) -> Lengths:
        """Of several data sets, each figure where it is greatest."""
        return cls(*map(max, zip(*map(astuple, some), strict=True)))

    @classmethod
    def measured(cls, dataset: RetrievalDataset, conversation: Conversation, recipe: Recipe) -> Lengths:
        """Of a random sample, by the model's own tokenizer."""
        draw = random.Random(recipe.seed)
        known = [key for name in ("stage1", "stage2") for key in dataset.qrels.get(name, ())]
        asked = [dataset.queries[key] for key in _some(draw, known or list(dataset.queries))]
        texts = [query.text for query in asked]
        prompts = [len(ids) for ids in conversation.reasoning_prompts(texts, dataset.instruction)]
        chosen = _some(draw, list(dataset.training_corpus()))
        documents = [
            len(one.ids) for one in conversation.documents([dataset.corpus[key].content for key in chosen])
        ]
        traces = conversation.thought_ids([query.reasoning for query in asked if query.reasoning])
        most = recipe.model.max_new_tokens
        return cls(
            fmean(len(one.ids) for one in conversation.queries(texts, dataset.instruction)),
            fmean(prompts),
            fmean(documents),
            min(most, fmean(map(len, traces))) if traces else most,
            max(prompts),
            max(documents),
        )


def _some(draw: random.Random, keys: Sequence[str]) -> list[str]:
    return draw.sample(keys, min(SAMPLE, len(keys)))


# Stage 1


def stage1_work(
    dataset: RetrievalDataset,
    conversation: Conversation,
    recipe: Recipe,
    lengths: Lengths,
    processes: int,
    others: Sequence[RetrievalDataset] = (),
    theirs: Sequence[Lengths] = (),
) -> Work:
    """All steps of stage 1, counted on sampled pairs before and after the model's own samples begin.

    Args:
        lengths: of `dataset`.
        others: the data sets of `data.mixture`; each makes its share of the steps.
        theirs: their lengths.

    Raises:
        RecipeError: a batch cannot be divided among the processes.
    """
    total = Work()
    if not recipe.stage1.steps:
        return total
    sources = sources_of(dataset, others, recipe)
    share_of(recipe.stage1.batch_size, processes, sum(len(one.pairs) for one in sources))
    parts = shares(sources, recipe.data.by_size)
    for source, own, share in zip(sources, (lengths, *theirs), parts, strict=True):
        steps = share * recipe.stage1.steps
        total = total.plus(_mean_step(source, conversation, recipe, own, processes).times(steps))
    return total


def _mean_step(
    source: Source, conversation: Conversation, recipe: Recipe, lengths: Lengths, processes: int
) -> Work:
    """A step on batches of one source."""
    dataset, pairs, stage = source.dataset, source.pairs, recipe.stage1
    thought = Reasoning("", (conversation.embed_id,) * round(lengths.thought), True)
    maker = BatchMaker(dataset, pairs, conversation, recipe, lambda prompts: [thought] * len(prompts))
    rows = random.Random(recipe.seed).sample(range(len(pairs)), min(SAMPLE, len(pairs)))
    per_step, scale = Work(), min(stage.batch_size, len(pairs)) / len(rows)
    before = stage.own_samples_after
    for step, share in ((0, before), (1, 1 - before)):
        batch = maker.of([pairs.pairs[row] for row in rows], step, own_samples=step == 1)
        part = _stage1_step(batch, recipe, scale, processes)
        if step and stage.own_samples and stage.reasoned_share:
            unseen = [pairs.query_ids[query] for query in batch.queries]
            asked = [key for key in unseen if dataset.queries[key].reasoning is None]
            some = len(asked) + stage.own_samples * (len(unseen) - len(asked))
            part = part.plus(_asked(scale * some, lengths, embedded=False))
        per_step = per_step.plus(part.times(share))
    return per_step


def _stage1_step(batch: Batch, recipe: Recipe, scale: float, processes: int) -> Work:
    """A step's passes, of a batch that is `1 / scale` of the logical one."""
    stage, items = recipe.stage1, batch.items
    chats = stage.chat_prompts if stage.kl else 0
    tokens = scale * _tokens(items) + CHAT * chats
    spoken = scale * sum(len(one.ids) - one.answer_start for one in items if one.speaks)
    spoken += CHAT / 2 * chats
    read = scale * _tokens([one for one in items if one.anchor]) + CHAT * chats if stage.kl else 0.0
    cached = stage.micro_tokens is not None and tokens / processes > stage.micro_tokens
    context = sum(len(one.ids) ** 2 for one in items) / _tokens(items)
    return Work.of(context, tokens, read + cached * tokens, spoken)


def _tokens(items: Sequence[Item]) -> int:
    return sum(len(one.ids) for one in items)


def stage1_passes(recipe: Recipe, lengths: Lengths, shape: Shape, processes: int) -> Passes:
    """The largest passes of stage 1: a whole share of the batch, or `micro_tokens` of it.

    Counted as if a pass were all reasoned queries, whose logits are many.
    """
    stage, most = recipe.stage1, recipe.model.max_new_tokens
    pairs = -(-stage.batch_size // processes)
    thoughts = stage.reasoned_share > 0
    reasoned = lengths.prompt + most + 2
    # a thought that is not to be learnt, a noisy or the model's own, brings the true trace besides
    forms = thoughts * (1 + stage.noisy_traces + stage.own_samples)
    learnt = pairs * (lengths.direct + (1 + stage.hard_negatives) * lengths.document + forms * reasoned)
    learnt += CHAT * stage.chat_prompts / processes if stage.kl else 0
    spoken = pairs * (ANSWER + forms * (most + 2))
    if stage.micro_tokens is not None:
        longest = max(lengths.longest_document, lengths.longest_prompt + thoughts * (most + 2))
        learnt = min(learnt, max(stage.micro_tokens, longest))
        share = (most + 2) / reasoned if thoughts else ANSWER / lengths.direct
        spoken = min(spoken, learnt * share)
    kept, at_work = LOGITS_KL if stage.kl else LOGITS
    logits = spoken * shape.vocabulary
    vectors = pairs * (3 + stage.hard_negatives)
    own = min(pairs, recipe.model.batch_size) if stage.own_samples and thoughts else 0
    scores = stage.batch_size**2 * (1 + stage.hard_negatives) * 2  # of both forms of the queries
    return Passes(
        learnt=round(learnt),
        logits=round(kept * logits + at_work * min(logits, AT_ONCE)),
        vectors=4 * (2 * vectors * shape.hidden + 4 * scores),
        spoken_to=own * (lengths.longest_prompt + most),
    )


# Stage 2


def stage2_work(recipe: Recipe, lengths: Lengths, documents: int, reads_once: bool = False) -> Work:
    """All steps of stage 2 but what is measured on the way.

    Args:
        documents: of the training corpus.
        reads_once: transformers may read each prompt once, and take the rollouts' vectors from the pass that
            samples them; of a known architecture whose weights are not dealt.
    """
    stage = recipe.stage2
    rollouts, generations = stage.queries * stage.rollouts, stage.steps // stage.updates
    whole = lengths.prompt + lengths.thought + 1
    spoken = rollouts * (lengths.thought + 1)
    elsewhere = stage.generation.engine == "vllm"
    once = reads_once and not elsewhere
    old = stage.updates > 1 or (elsewhere and stage.generation.correct)
    passes = (not once) + old + (stage.beta > 0)  # for the reward, old log-probabilities, reference
    prompts = 0 if elsewhere else stage.queries if once else rollouts
    read = prompts * lengths.prompt + rollouts * passes * whole + stage.queries * lengths.direct
    read += refreshed(recipe, documents) * lengths.document
    learnt = rollouts * whole
    if stage.contrastive:
        pairs = stage.queries + stage.contrastive_pairs
        texts = pairs * lengths.direct
        texts += (pairs + stage.queries * stage.contrastive_negatives) * lengths.document
        read, learnt = read + texts, learnt + texts
    if audits := stage.environment.audit_every:
        read += (stage.environment.audit_documents or documents) * lengths.document * stage.updates / audits
    return Work.of(whole, learnt, read, spoken, rollouts * lengths.thought).times(generations)


def refreshed(recipe: Recipe, documents: int) -> float:
    """Documents that are encoded again for each generation, at most."""
    settings = recipe.stage2.environment
    if settings.policy == "frozen":
        return 0
    if settings.policy == "full" or settings.limit is None:
        return documents
    limit = settings.limit
    return min(documents, limit * documents if isinstance(limit, float) else limit)


def stage2_passes(recipe: Recipe, lengths: Lengths, shape: Shape, processes: int) -> Passes:
    """The largest passes of stage 2: a micro-batch of rollouts, with its share of the contrastive term.

    The matrix that makes logits has a float32 gradient, for the embed token's row at least. Where vLLM
    generates the rollouts, the trainer generates for the dev queries alone.
    """
    stage, most = recipe.stage2, recipe.model.max_new_tokens
    rows = -(-stage.queries * stage.rollouts // processes)
    parts = stage.accumulation * stage.updates
    learnt = -(-rows // parts) * (lengths.longest_prompt + most)
    vectors = 0
    if stage.contrastive:
        pairs = -(-stage.queries // processes) + stage.contrastive_pairs
        negatives = pairs + stage.queries * stage.contrastive_negatives
        learnt += round((pairs * lengths.direct + negatives * lengths.document) / parts)
        vectors = 4 * (2 * (rows + pairs + negatives) * shape.hidden + 4 * (rows + pairs) * negatives)
    dev = min(recipe.model.batch_size, -(-recipe.data.dev_queries // processes))
    own = dev if stage.generation.engine == "vllm" else max(dev, rows)
    return Passes(
        learnt=learnt,
        logits=4 * min(learnt, TILE[0]) * TILE[1] + 4 * shape.head,
        vectors=vectors,
        spoken_to=own * (lengths.longest_prompt + most),
    )


# Beside the steps


def measuring_work(dataset: RetrievalDataset, recipe: Recipe, lengths: Lengths) -> Work:
    """Dev evaluations of both stages, and the whole corpus and the test queries after each."""
    data = recipe.data
    dev = min(data.dev_queries, len(dataset.qrels["dev"]))
    corpus = min(data.dev_documents, len(dataset.corpus)) * lengths.document
    rounds = sum(
        stage.steps // stage.evaluate_every + start if stage.steps else 0
        for stage, start in ((recipe.stage1, 0), (recipe.stage2, 1))
    )
    after = _asked(len(dataset.qrels["test"]), lengths)
    after = after.plus(Work.of(lengths.document, read=len(dataset.corpus) * lengths.document))
    on_the_way = _asked(dev, lengths).plus(Work.of(lengths.document, read=corpus))
    return on_the_way.times(rounds).plus(after.times(2))


def _asked(queries: float, lengths: Lengths, embedded: bool = True) -> Work:
    """Queries that the model thinks about, and if so embeds directly and after thinking."""
    read = lengths.prompt + embedded * (lengths.direct + lengths.prompt + lengths.thought)
    return Work.of(lengths.prompt, read=queries * read, sampled=queries * lengths.thought)


def environment_bytes(recipe: Recipe, documents: int, hidden: int, processes: int) -> int:
    """Main memory of one process for the corpus's vectors; every process knows all versions."""
    wide = 4 if recipe.stage2.environment.dtype == "float32" else 2
    return documents * hidden * wide // processes + 16 * documents
