"""Thoughts that a model did not say in this form: cut, or put in the place of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from searchr3.evaluation.bench import Words
    from searchr3.evaluation.results import Thought


@dataclass(frozen=True)
class GivenThought:
    """A thought that was given to the model, not said by it; what counts is `token_ids`."""

    text: str
    token_ids: tuple[int, ...]
    emitted: bool = False


def given(words: Words, token_ids: Sequence[int], emitted: bool = False) -> GivenThought:
    """The thought of these token ids; by default the embed token follows by force."""
    return GivenThought(words.thought_text(token_ids), tuple(token_ids), emitted)


def cut(words: Words, thought: Thought, budget: int) -> Thought:
    """What greedy thinking gives with at most `budget` new tokens, from what it gave with more.

    Greedy decoding says the same tokens whatever the limit, so the shorter thought is a beginning of the
    longer. The embed token is a token too: a thought of n tokens is closed by the model from a budget of
    n + 1 on, and by force below.
    """
    emitted = thought.emitted and len(thought.token_ids) < budget
    if len(thought.token_ids) <= budget and emitted == thought.emitted:
        return thought
    return given(words, thought.token_ids[:budget], emitted)
