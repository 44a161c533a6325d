"""A model whose work is dealt among the processes of a run: each does a part, and all get the whole."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from searchr3.conversation import Rendered
from searchr3.generation import Reasoning, is_dealt
from searchr3.group import Group, joined
from searchr3.model import Progress, SearchR3
from searchr3.sharing import encode_shared


class SharedSearch(SearchR3):
    """`SearchR3` over the processes of a group. Every call is collective: all ranks pass the same texts.

    Example:
        `SharedSearch.over(search, group).encode_document(texts)` is `search.encode_document(texts)` but for
        rounding, in less time.
    """

    group: Group

    @classmethod
    def over(cls, search: SearchR3, group: Group) -> SharedSearch:
        """A view of `search`, with its weights; every rank has them whole."""
        chat = search.conversation
        self = cls.from_parts(
            search.model, search.tokenizer, chat.prompts, chat.max_length, search.batch_size, search.autocast
        )
        assert isinstance(self, cls)
        self.group, self.adaptive = group, search.adaptive
        return self

    def encode_rendered(
        self,
        rendered: Sequence[Rendered],
        progress: Progress | None = None,
        batches: Iterable[list[int]] | None = None,
    ) -> np.ndarray:
        """As of `SearchR3`; `batches` are a rank's own, and its vectors remain so."""
        if batches is not None or self.group.size == 1:
            return super().encode_rendered(rendered, progress, batches)
        vectors = encode_shared(self, rendered, self.group)
        if progress:
            progress(len(rendered), len(rendered))
        return vectors

    @property
    def reads_once(self) -> bool:
        return self.group.size == 1 and super().reads_once

    def generate(
        self,
        batch: Sequence[str],
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        instruction: str | None = None,
        seed: int | None = None,
    ) -> list[Reasoning]:
        """As of `SearchR3`; each rank thinks about every `size`-th text, with a seed of its own."""
        group, texts = self.group, list(batch)
        seed = None if seed is None else seed * group.size + group.rank
        part = texts[group.rank :: group.size]
        # dealt weights are gathered in every forward: all make as many, and a repeated text fills up
        missing = -(-len(texts) // group.size) - len(part) if is_dealt(self.model) else 0
        asked = part + texts[-1:] * missing
        own = super().generate(asked, max_new_tokens, temperature, instruction, seed)[: len(part)]
        # as bytes: what is gathered has one dtype, and a text may hold any character
        said = [np.frombuffer(one.text.encode(), dtype=np.uint8) for one in own]
        ids = [np.array(one.token_ids, dtype=np.int64) for one in own]
        table = [(len(i), len(t), one.emitted) for i, t, one in zip(ids, said, own, strict=True)]
        rows = joined(group, np.array(table, dtype=np.int64).reshape(-1, 3))
        all_ids = joined(group, np.concatenate([*ids, np.empty(0, dtype=np.int64)]))
        all_said = joined(group, np.concatenate([*said, np.empty(0, dtype=np.uint8)]))
        id_ends, said_ends = np.cumsum(rows[:, 0])[:-1], np.cumsum(rows[:, 1])[:-1]
        thoughts = [
            Reasoning(bytes(text).decode(), tuple(some.tolist()), bool(emitted))
            for some, text, emitted in zip(
                np.split(all_ids, id_ends), np.split(all_said, said_ends), rows[:, 2], strict=False
            )
        ]
        order = [row for rank in range(group.size) for row in range(rank, len(texts), group.size)]
        return [thoughts[place] for place in np.argsort(order)]
