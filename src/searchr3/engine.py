"""Thinking and embedding in one pass: many requests share a batch that they join and leave as they come.

The keys and values of a request's prompt are computed once (those of a beginning that many prompts share, the
system prompt, once for all of them) and stay in a row of the cache. A step gives every row its next token.
Where a row says the embed token, or must end, that token goes through the cache like any other, and its last
hidden state is the vector: neither prompt nor reasoning is read a second time.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import AbstractContextManager
from itertools import count
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from searchr3.conversation import Conversation
from searchr3.embedding import WORTH_SHARING, Beginning, Embedder, backbone, tokens_per_pass
from searchr3.errors import ModelError
from searchr3.generation import COLDEST, drawing, pad_ids, padding_id, without_wrapper
from searchr3.tasks import Runner, Task

_BLOCK = 64  # the cache grows by so many tokens a row
_KEPT = 16  # beginnings whose keys and values are kept


class Thinker(Protocol):
    """What the engine needs of a `SearchR3`."""

    model: PreTrainedModel
    conversation: Conversation
    batch_size: int

    @property
    def device(self) -> torch.device: ...

    @property
    def dimension(self) -> int: ...

    def precision(self) -> AbstractContextManager[Any]: ...


class Engine(Runner):
    """Runs tasks of one model, each step giving every row a token.

    Args:
        search: the model, of an architecture that `embedding.Embedder` can take apart.
        rows: most requests in one step; further ones wait, first come, first served.
        apart: each task that has no seed draws random numbers of its own, whatever others ask; else all draw
            those of the process, of which a checkpoint knows.

    Raises:
        ModelError: the architecture is another; `SearchR3.generate` and `encode_query` serve it.
    """

    def __init__(self, search: Thinker, rows: int = 32, apart: bool = True):
        super().__init__(rows)
        self.search, self.apart = search, apart
        self.conversation = search.conversation
        self.embedder = Embedder(search.model, padding_id(self.conversation))
        if not self.embedder.known:
            kind = search.model.config.model_type
            raise ModelError(f"one pass: cannot take a {kind!r} model apart; use generate and encode_query")
        self.head = without_wrapper(search.model).get_output_embeddings()
        self.cache = _Rows(rows)  # task i of the active ones owns its row i
        self.beginnings: OrderedDict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = OrderedDict()
        self._seeds = count(secrets.randbits(62))  # the random numbers of the process stay its own

    @torch.no_grad()
    def step(self) -> list[Task]:
        """Let new tasks in and give every row a token. Returns the tasks that were in it."""
        with self.search.precision():
            self._admit()
            took_part = list(self.active)
            self._let_go()
            if self.active:
                self._decode()
                self._let_go()
        return took_part

    # joining and leaving

    def _admit(self) -> None:
        """Read the prompts of those who wait: as many as there are rows for, and one pass bears."""
        chosen: list[Task] = []
        prompts: set[tuple[int, ...]] = set()
        room, longest = tokens_per_pass(self.search.device), 0
        while self.waiting and len(self.active) + len(chosen) < self.rows:
            prompts.add(tuple(self.waiting[0].prompt))
            longest = max(longest, len(self.waiting[0].prompt))
            if chosen and longest * len(prompts) > room:
                break
            chosen.append(self.waiting.popleft())
            self._seed(chosen[-1])
        alike: dict[tuple[int, ...], list[Task]] = {}
        for task in chosen:
            alike.setdefault(tuple(task.prompt[: min(task.beginning, len(task.prompt) - 1)]), []).append(task)
        for start, tasks in alike.items():
            self._read(tasks, start)

    def _seed(self, task: Task) -> None:
        if task.temperature and (self.apart or task.seed is not None):
            seed = next(self._seeds) if task.seed is None else task.seed
            task._draw = torch.Generator(self.search.device).manual_seed(seed % 2**63)

    def _read(self, tasks: list[Task], start: tuple[int, ...]) -> None:
        """Give tasks, whose prompts begin with `start`, their rows and their first token.

        A prompt that several have is read once.
        """
        places: dict[tuple[int, ...], int] = {}
        rows = [places.setdefault(tuple(task.prompt), len(places)) for task in tasks]
        longest = max(map(len, places))
        made: list[tuple[Tensor, Tensor]] = []
        before = Beginning(self._kept(start) if len(start) >= WORTH_SHARING * longest else (), made)
        ids, _ = pad_ids([prompt[before.length :] for prompt in places], self.embedder.pad_id)
        last = torch.tensor([len(prompt) - 1 - before.length for prompt in places])
        hidden = self.embedder.hidden(ids, before, last)
        if len(places) < len(tasks):
            made[:] = [(keys[rows], values[rows]) for keys, values in made]
            hidden = hidden[rows]
        self.cache.join(before, made, [len(task.prompt) for task in tasks], max(task.most for task in tasks))
        self.active += tasks
        self._choose(tasks, hidden)

    def _kept(self, start: tuple[int, ...]) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of a beginning, computed when it is met first."""
        if start not in self.beginnings:
            self.beginnings[start] = self.embedder.keep(start)
            if len(self.beginnings) > _KEPT:
                self.beginnings.popitem(last=False)
        self.beginnings.move_to_end(start)
        return self.beginnings[start]

    def _let_go(self) -> None:
        for row in reversed(range(len(self.active))):
            if self.active[row].done:
                self._leave(row)

    def _leave(self, row: int) -> None:
        self.cache.leave(row)
        last = self.active.pop()
        if row < len(self.active):
            self.active[row] = last

    # a step

    def _decode(self) -> None:
        """Read each row's next token; choose the one after it, or take the vector.

        A thought that was cut off is closed by force: its last token and the embed token are read together.
        """
        embed_id = self.conversation.embed_id
        cut = [row for row, task in enumerate(self.active) if task._closes and task._next != embed_id]
        if cut:
            said = [[self.active[row]._next, embed_id] for row in cut]
            self._take_vectors(cut, self._hidden(said, cut))
        rows = [row for row, task in enumerate(self.active) if not task.done]
        if not rows:
            return
        hidden = self._hidden([[self.active[row]._next] for row in rows], rows)
        closing = [place for place, row in enumerate(rows) if self.active[row]._closes]
        if closing:
            self._take_vectors([rows[place] for place in closing], hidden[closing])
        choosing = [place for place, row in enumerate(rows) if not self.active[row]._closes]
        if choosing:
            tasks = [self.active[rows[place]] for place in choosing]
            self._choose(tasks, hidden if len(choosing) == len(hidden) else hidden[choosing])

    def _hidden(self, ids: list[list[int]], rows: list[int]) -> Tensor:
        """The last hidden states, (n, d), of tokens (n, t) that are read behind those of these rows."""
        inner: Any = backbone(self.search.model)
        hidden = inner.embed_tokens(torch.tensor(ids, device=self.search.device))
        places, mask = self.cache.open(hidden, rows)
        turn = inner.rotary_emb(hidden, places)
        for layer in inner.layers[: inner.config.num_hidden_layers]:
            hidden = layer(hidden, attention_mask=mask, position_embeddings=turn, past_key_values=self.cache)
        self.cache.close()
        return inner.norm(hidden[:, -1])

    def _take_vectors(self, rows: list[int], hidden: Tensor) -> None:
        for row, vector in zip(rows, F.normalize(hidden.float(), dim=-1).cpu().numpy(), strict=True):
            self.active[row].vector, self.active[row].done = vector, True

    def _choose(self, tasks: list[Task], hidden: Tensor) -> None:
        """The next token of each task, from its last hidden state, (n, d)."""
        stops = self.conversation.stop_ids
        if all(task.max_new_tokens == 0 for task in tasks):
            tokens = [-1] * len(tasks)
        else:
            logits = self.head(hidden).float()
            tokens = logits.argmax(dim=-1).tolist()
            together = [row for row, task in enumerate(tasks) if task.temperature and task._draw is None]
            for rows in (together, *([row] for row, task in enumerate(tasks) if task._draw is not None)):
                if rows:
                    heat = [max(tasks[row].temperature, COLDEST) for row in rows]
                    chances = (logits[rows] / logits.new_tensor(heat)[:, None]).softmax(dim=-1)
                    with drawing():
                        drawn = torch.multinomial(chances, 1, generator=tasks[rows[0]]._draw)[:, 0].tolist()
                    for row, token in zip(rows, drawn, strict=True):
                        tokens[row] = token
        for task, token in zip(tasks, tokens, strict=True):
            self._take(task, token, stops)

    def _take(self, task: Task, token: int, stops: Sequence[int]) -> None:
        """What a chosen token makes of a task."""
        embed_id = self.conversation.embed_id
        over = task.max_new_tokens == 0
        if not over and token not in stops:
            task.said.append(token)
            task._next = token
            if len(task.said) == task.max_new_tokens:
                task._closes, task.done = task.embeds, not task.embeds
            return
        task.stop = None if over else token
        task.ended = not over and (token == embed_id or not task.embeds)
        if task.embeds:
            task._next, task._closes = embed_id, True
        else:
            task.done = True


class _Rows:
    """Keys and values of the active rows; in the place of transformers' cache while a step reads a token.

    Each layer has two tensors, (rows, heads, capacity, width); row i holds `lengths[i]` tokens.
    """

    def __init__(self, rows: int):
        self.rows = rows
        self.lengths: list[int] = []
        self.layers: list[tuple[Tensor, Tensor]] = []
        self._at: tuple[list[int], Tensor, Tensor, int] | None = None

    @property
    def capacity(self) -> int:
        """Tokens that a row has room for."""
        return self.layers[0][0].shape[2] if self.layers else 0

    def join(
        self, before: Beginning, made: list[tuple[Tensor, Tensor]], lengths: Sequence[int], most: int
    ) -> None:
        """New rows, behind the others.

        Args:
            before: the beginning that they share.
            made: of each layer, what follows it: (n, heads, longest, width) keys and values.
            lengths: tokens of each, the beginning included.
            most: tokens that one of them may come to hold.
        """
        self._grow(made, most)
        first, skip = len(self.lengths), before.length
        rows = slice(first, first + len(lengths))
        for number, (own, new) in enumerate(zip(self.layers, made, strict=True)):
            for mine, part in zip(own, new, strict=True):
                mine[rows, :, skip : skip + part.shape[2]] = part
            for mine, part in zip(own, before.shared[number] if skip else (), strict=False):
                mine[rows, :, :skip] = part
        self.lengths += lengths

    def _grow(self, made: list[tuple[Tensor, Tensor]], most: int) -> None:
        if most <= self.capacity:
            return
        capacity = -(-most // _BLOCK) * _BLOCK
        old, self.layers = self.layers, []
        for number, parts in enumerate(made):
            keys, values = (
                part.new_zeros(self.rows, part.shape[1], capacity, part.shape[3]) for part in parts
            )
            if old:
                n = len(self.lengths)
                for mine, kept in zip((keys, values), old[number], strict=True):
                    mine[:n, :, : kept.shape[2]] = kept[:n]
                old[number] = (keys, values)  # the smaller ones are free before the next layer's are made
            self.layers.append((keys, values))

    def leave(self, row: int) -> None:
        """The last row takes the place of `row`; when none is left, the memory is given back."""
        length = self.lengths.pop()
        if row < len(self.lengths):
            for parts in self.layers:
                for part in parts:
                    part[row, :, :length] = part[len(self.lengths), :, :length]
            self.lengths[row] = length
        if not self.lengths:
            self.layers = []

    def open(self, hidden: Tensor, rows: list[int]) -> tuple[Tensor, Tensor]:
        """Before tokens (n, t, d) are read, behind those of these rows, which ascend.

        Returns:
            their places, (n, t), and what each sees, (n, 1, t, length).
        """
        device, size = hidden.device, hidden.shape[1]
        lengths = [self.lengths[row] for row in rows]
        places = torch.tensor(lengths, device=device)[:, None] + torch.arange(size, device=device)
        longest = max(lengths) + size
        self._at = rows, torch.tensor(rows, device=device), places, longest
        return places, (torch.arange(longest, device=device) <= places[..., None])[:, None]

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any) -> tuple[Tensor, Tensor]:
        """Put the tokens' keys and values, (n, heads, t, width), behind those of each row; all of them."""
        assert self._at is not None
        _rows, index, places, longest = self._at
        both = self.layers[layer]
        for mine, new in zip(both, (keys, values), strict=True):
            mine[index[:, None], :, places] = new.transpose(1, 2)
        # all rows are a view, some a copy
        n: Any = slice(len(index)) if len(index) == len(self.lengths) else index
        return both[0][n, :, :longest], both[1][n, :, :longest]

    def close(self) -> None:
        """After the tokens were read."""
        assert self._at is not None
        rows, _index, places, _longest = self._at
        for row in rows:
            self.lengths[row] += places.shape[1]
