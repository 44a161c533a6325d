"""What a step of stage 1 learns from: conversations made of pairs, drawn reasoning, negatives and chats.

Everything is drawn by seed, step and pair, whatever else stands in the batch: so a batch comes to the same
in one process or in several. Only what the model itself says is sampled batch by batch.
"""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import resources

from searchr3.conversation import Conversation
from searchr3.dataset import RetrievalDataset
from searchr3.dataset.lazy import Lazy
from searchr3.dataset.traces import noisy_trace
from searchr3.generation import Reasoning, generate_ids
from searchr3.group import ALONE, Group
from searchr3.model import SearchR3
from searchr3.training.forward import Item
from searchr3.training.pairs import Pairs
from searchr3.training.recipe import Recipe

CHAT_REPLY_TOKENS = 24


@dataclass(frozen=True)
class Batch:
    """What a step learns from in one process.

    Attributes:
        items: direct queries (n), documents (m), reasoned queries, true traces to learn that no reasoned
            query holds already, chats.
        queries: numbers of the n queries in `Pairs`.
        documents: numbers of the m documents in `Pairs`, first the n positives.
        reasoned: which of the n queries are reasoned.
    """

    items: list[Item]
    queries: list[int]
    documents: list[int]
    reasoned: list[int]

    @property
    def reasoned_from(self) -> int:
        """Number of the first reasoned item."""
        return len(self.queries) + len(self.documents)


@dataclass(frozen=True)
class TokenCounts:
    """Tokens to be predicted in all processes: of fixed answers, of thoughts, and those the KL is over."""

    plain: int
    thinking: int
    anchored: int


class BatchMaker:
    """Makes batches of a split's pairs.

    Args:
        say: what the model says now, sampled, after prompts of token ids.
        chats: general conversations, of which every step anchors some.
        group: processes; each takes its share of the chats.
    """

    def __init__(
        self,
        dataset: RetrievalDataset,
        pairs: Pairs,
        conversation: Conversation,
        recipe: Recipe,
        say: Callable[[Sequence[Sequence[int]]], Sequence[Reasoning]],
        chats: Sequence[Item] = (),
        group: Group = ALONE,
    ):
        self.dataset, self.pairs, self.conversation = dataset, pairs, conversation
        self.stage, self.seed = recipe.stage1, recipe.seed
        self.say, self.chats, self.group = say, chats, group
        ids = pairs.query_ids
        self.traces = Lazy(len(ids), lambda query: dataset.queries[ids[query]].reasoning)
        traced = array("i", (query for query, trace in enumerate(self.traces) if trace))
        self.trace_pool = Lazy(len(traced), lambda number: self.traces[traced[number]] or "")

    def of(self, pairs: Sequence[Sequence[int]], step: int, own_samples: bool) -> Batch:
        """What this process's pairs come to.

        Args:
            pairs: numbers of query and document.
            own_samples: the model has something to say by now.
        """
        draws = [random.Random(f"{self.seed}:{step}:{query}:{document}") for query, document in pairs]
        queries = [query for query, _ in pairs]
        documents = [document for _, document in pairs]
        for query, draw in zip(queries, draws, strict=True):
            documents += self.hard_negatives(query, draw)
        chat = self.conversation
        texts = [self.dataset.queries[self.pairs.query_ids[query]].text for query in queries]
        anchor = self.stage.kl > 0
        after = chat.after_token(reasoned=False)
        direct = chat.queries(texts, self.dataset.instruction)
        items = [Item.of(one, after, learn=True, anchor=anchor) for one in direct]
        contents = [self.dataset.corpus[self.pairs.document_ids[row]].content for row in documents]
        # a document's answer is the same as a direct query's: learning it once is enough
        items += [Item.of(one, (), learn=False, anchor=False) for one in chat.documents(contents)]
        thoughts = self.thoughts(queries, draws, own_samples) if self.stage.reasoned_share > 0 else {}
        items += self._reasoned(queries, texts, thoughts)
        return Batch(items + self._chats_of(step), queries, documents, sorted(thoughts))

    def _reasoned(
        self, queries: Sequence[int], texts: Sequence[str], thoughts: dict[int, tuple[list[int], bool]]
    ) -> list[Item]:
        chat, anchor = self.conversation, self.stage.kl > 0
        items = []
        rows = sorted(thoughts)
        task = self.dataset.instruction
        rendered = chat.reasoned([texts[row] for row in rows], [thoughts[row][0] for row in rows], task)
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
        for one in chat.reasoned([texts[row] for row in instead], traces, task):
            items.append(Item.of(one, end, learn=True, anchor=anchor))
        return items

    def _chats_of(self, step: int) -> list[Item]:
        """This process's share of the step's chat prompts."""
        if not self.chats:
            return []
        draw = random.Random(f"{self.seed}:{step}:chats")
        chosen = draw.sample(self.chats, min(self.stage.chat_prompts, len(self.chats)))
        return chosen[self.group.rank :: self.group.size]

    def thoughts(
        self, queries: Sequence[int], draws: Sequence[random.Random], own_samples: bool
    ) -> dict[int, tuple[list[int], bool]]:
        """Reasoning ids for rows of the batch, and whether the model should learn to say them."""
        stage = self.stage
        written: dict[int, tuple[str, bool]] = {}
        sampled: list[int] = []
        for row, query in enumerate(queries):
            trace, draw = self.traces[query], draws[row].random()
            if own_samples and stage.own_samples and (draw < stage.own_samples or trace is None):
                sampled.append(row)
            elif trace is not None and draw < stage.own_samples + stage.noisy_traces:
                written[row] = (noisy_trace(trace, self.trace_pool, draws[row]), False)
            elif trace is not None:
                written[row] = (trace, True)
        ids = self.conversation.thought_ids([text for text, _ in written.values()])
        thoughts = {
            row: (list(one), learn) for one, (row, (_, learn)) in zip(ids, written.items(), strict=True)
        }
        if sampled or self.group.size > 1:  # others may have some, and generate together
            texts = [self.dataset.queries[self.pairs.query_ids[queries[row]]].text for row in sampled]
            said = self.say(self.conversation.reasoning_prompts(texts, self.dataset.instruction))
            thoughts |= {row: (list(one.token_ids), False) for row, one in zip(sampled, said, strict=True)}
        return thoughts

    def hard_negatives(self, query: int, draw: random.Random) -> list[int]:
        """Numbers of documents."""
        known = self.dataset.queries[self.pairs.query_ids[query]].negatives
        relevant = self.pairs.relevant[query]
        numbers = (self.pairs.number_of(key) for key in dict.fromkeys(known) if key not in relevant)
        usable = [number for number in numbers if number is not None]
        return draw.sample(usable, min(self.stage.hard_negatives, len(usable)))


def chat_items(search: SearchR3, recipe: Recipe) -> list[Item]:
    """General chat prompts with the base's own replies: the KL holds the model to what it could do."""
    if not (recipe.stage1.kl and recipe.stage1.chat_prompts):
        return []
    chat = search.conversation
    text = resources.files("searchr3").joinpath("chat_prompts.txt").read_text(encoding="utf-8")
    prompts = chat.chat_prompts([line.strip() for line in text.splitlines() if line.strip()])
    eos = [chat.tokenizer.eos_token_id]
    with search.precision():
        replies = generate_ids(search.model, chat, prompts, CHAT_REPLY_TOKENS, stop_ids=eos)
    return [
        Item([*prompt, *reply], None, answer_start=len(prompt), anchor=True)
        for prompt, reply in zip(prompts, replies, strict=True)
    ]
