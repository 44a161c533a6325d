"""What a backend reads, as token ids within its limits, and what it shows of what was said."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np

from searchr3.conversation import Conversation, Rendered
from searchr3.errors import SearchR3Error
from searchr3.serving.backend import Ask, Kind, Refused, Said


class Reading:
    """One thread at a time may use it, for it uses a tokenizer.

    Args:
        text_tokens: most tokens of a text, or of a chat so far; a longer one is refused.
        context: most tokens of a chat and its reply, where the model has such a bound.
    """

    def __init__(self, conversation: Conversation, text_tokens: int, context: int | None) -> None:
        self.conversation, self.text_tokens, self.context = conversation, text_tokens, context

    def texts(
        self, texts: Sequence[str], kind: Kind, instruction: str | None, first: int = 0
    ) -> list[Rendered]:
        """Conversations of texts, of which the first is number `first` of its request.

        Raises:
            Refused: one is too long, or the instruction leaves no room for any.
        """
        for place, text in enumerate(texts, first):
            self._check_length(text, f"input[{place}]")
        with _refusing():
            if kind == "document":
                return self.conversation.documents(texts)
            return self.conversation.queries(texts, instruction)

    def prompt(self, ask: Ask) -> tuple[list[int], int]:
        """What is read before the model speaks, and how many tokens it may say then.

        Raises:
            Refused: it is too long, or no chat that the model's template takes.
        """
        with _refusing():
            if isinstance(ask.what, str):
                self._check_length(ask.what, "the query")
                return self.conversation.reasoning_prompts([ask.what], ask.instruction)[0], ask.max_new_tokens
            prompt = self.conversation.chat(ask.what)
        return prompt, self._room(len(prompt), ask)

    def beginning(self, ask: Ask) -> int:
        """How many ids of the prompt others begin with too."""
        return self.conversation.reasoning_start(ask.instruction) if ask.embeds else 0

    def said(
        self, ask: Ask, prompt: Sequence[int], ids: Sequence[int], ended: bool, vector: np.ndarray | None
    ) -> Said:
        """What came of an ask, of which `ids` were said; `ended` as in `Said`."""
        if ask.embeds:
            text = self.conversation.thought_text(ids)
        else:
            text = str(self.conversation.tokenizer.decode(list(ids), skip_special_tokens=True))
        return Said(text, len(ids), len(prompt), ended, vector)

    def _check_length(self, text: str, name: str) -> None:
        if len(text.encode()) <= self.text_tokens:  # no token is less than a byte
            return
        (ids,) = self.conversation.thought_ids([text])
        if len(ids) > self.text_tokens:
            raise Refused(f"{name} has {len(ids)} tokens, the most is {self.text_tokens}; split it")

    def _room(self, prompt: int, ask: Ask) -> int:
        """Tokens that may be said after the prompt of a chat."""
        if prompt > self.text_tokens:
            raise Refused(
                f"the chat has {prompt} tokens, the most is {self.text_tokens}; leave out old turns"
            )
        most, least = ask.max_new_tokens, 1 if ask.fewer else ask.max_new_tokens
        if self.context and prompt + least > self.context:
            raise Refused(
                f"{prompt} tokens of the chat and {least} of the reply are more than the model's "
                f"{self.context}; ask for less, or leave out old turns"
            )
        return min(most, self.context - prompt) if self.context else most


@contextmanager
def _refusing() -> Iterator[None]:
    """What the conversation cannot do is refused."""
    try:
        yield
    except Refused:
        raise
    except SearchR3Error as error:
        raise Refused(str(error)) from None
