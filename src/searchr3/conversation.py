"""The conversation around every text: the only room that knows the chat format and the embed token.

A conversation is a concatenation of token ids, `prefix + text + suffix (+ answer)`. The prefix and the suffix
come from the tokenizer's own chat template; the text is tokenized by itself with special tokens disabled, so
that a text that holds `<|embed_token|>` is only text. Whoever renders gets the position of the embed token
with the ids: nobody searches.

    direct query, document   system: embed    user: text   assistant: The embedding is <|embed_token|>
    reasoned query           system: reason   user: text   assistant: {reasoning}<|embed_token|>

Both forms follow the published Search-R3 checkpoints (arXiv 2510.07048): the embedding is the hidden state at
the token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path

import yaml
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from searchr3.errors import ModelError
from searchr3.files import nearest

EMBED_TOKEN = "<|embed_token|>"
_TEXT, _INSTRUCTION = (
    "SEARCHR3TEXT",
    "SEARCHR3INSTRUCTION",
)  # their places while the chat template is taken apart


@dataclass(frozen=True)
class Prompts:
    """The wording of the conversations. It belongs to the checkpoint and is saved with it.

    Attributes:
        embed: system instruction of documents and direct queries.
        reason: system instruction of queries that think first.
        answer: assistant turn of documents and direct queries; holds the embed token exactly once.
    """

    embed: str = "Represent the text."
    reason: str = "Think of key terms, then represent the text."
    answer: str = f"The embedding is {EMBED_TOKEN}."

    def __post_init__(self) -> None:
        _check_answer(self.answer, "prompts")

    @classmethod
    def load(cls, path: str | Path) -> Prompts:
        """Read prompts from a YAML or JSON mapping; the keys are `embed`, `reason`, `answer`, each optional.

        Raises:
            ModelError: the file is missing, no mapping, or holds an unknown key or a value that is no text.
        """
        try:
            loaded = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise ModelError(f"{path}: cannot read the prompts ({error.strerror})") from None
        except (yaml.YAMLError, UnicodeDecodeError):
            raise ModelError(
                f"{path}: not valid YAML or JSON; write embed, reason and answer as text"
            ) from None
        return cls.from_dict(loaded, where=str(path))

    @classmethod
    def from_dict(cls, values: object, where: str = "prompts") -> Prompts:
        """Build prompts from a mapping; `where` names it in errors."""
        known = [field.name for field in fields(cls)]
        if not isinstance(values, dict):
            raise ModelError(f"{where}: expected a mapping with the keys {', '.join(known)}")
        for key, value in values.items():
            if key not in known:
                hint = nearest(str(key), known)
                raise ModelError(
                    f"{where}: unknown key {key!r}" + (f"; did you mean {hint!r}?" if hint else "")
                )
            if not isinstance(value, str):
                raise ModelError(f"{where}: {key!r} must be text, got {type(value).__name__}")
        if "answer" in values:
            _check_answer(values["answer"], where)
        return cls(**values)

    def to_dict(self) -> dict[str, str]:
        return asdict(self)


@dataclass(frozen=True)
class Rendered:
    """Token ids of one conversation, up to and including the embed token.

    Attributes:
        ids: token ids.
        position: index of the embed token in `ids`; the vector is read here.
        answer_start: index of the first assistant token; what comes before it was given, not said.
    """

    ids: list[int]
    position: int
    answer_start: int


class Conversation:
    """Renders queries, documents and rollouts for one tokenizer.

    Args:
        tokenizer: a tokenizer with a chat template that already holds the embed token (see
            `add_embed_token`); the token becomes a special one if it is not.
        prompts: wording of the conversations.
        max_length: most tokens of template and text together; only the user's text is ever cut.
            Reasoning comes on top, so that the same query has the same prompt whatever it thinks.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, prompts: Prompts | None = None, max_length: int = 1024
    ):
        self.tokenizer = tokenizer
        self.prompts = prompts or Prompts()
        self.max_length = max_length
        self.embed_id = embed_token_id(tokenizer)
        _make_special(tokenizer)
        before, after = self.prompts.answer.split(EMBED_TOKEN)
        self._answer = self._template_ids(before) if before else []
        self._after = self._template_ids(after) if after else []
        self._frame = lru_cache(maxsize=64)(self._render_frame)

    @property
    def stop_ids(self) -> list[int]:
        """Ids that end generated reasoning: the embed token, or a chat turn that ends without it."""
        eos = self.tokenizer.eos_token_id
        return [self.embed_id] if eos is None or eos == self.embed_id else [self.embed_id, eos]

    @property
    def answer_ids(self) -> list[int]:
        """The fixed answer of documents and direct queries, up to the embed token."""
        return list(self._answer)

    def documents(self, texts: Sequence[str]) -> list[Rendered]:
        """Documents are never reasoned about."""
        return self._direct(texts, None)

    def queries(self, texts: Sequence[str], instruction: str | None = None) -> list[Rendered]:
        """Direct queries. An `instruction` is put after the system prompt, on a line of its own."""
        return self._direct(texts, instruction)

    def reasoning_prompts(self, texts: Sequence[str], instruction: str | None = None) -> list[list[int]]:
        """Ids from which the model generates its reasoning; independent of what is generated."""
        prefix, suffix = self._frame(self.prompts.reason, instruction)
        room = self._room(len(prefix) + len(suffix))
        return [prefix + ids[:room] + suffix for ids in self._text_ids(texts)]

    def reasoned(
        self, texts: Sequence[str], reasoning: Sequence[Sequence[int]], instruction: str | None = None
    ) -> list[Rendered]:
        """Queries after reasoning, given as token ids without the embed token."""
        prompts = self.reasoning_prompts(texts, instruction)
        return [self.close(prompt, thought) for prompt, thought in zip(prompts, reasoning, strict=True)]

    def close(self, prompt: Sequence[int], thought: Sequence[int]) -> Rendered:
        """Put the embed token after `thought`, whether the model said it or not."""
        ids = [*prompt, *thought, self.embed_id]
        return Rendered(ids, position=len(ids) - 1, answer_start=len(prompt))

    def after_token(self, reasoned: bool) -> list[int]:
        """What the assistant says after the embed token: a full stop, its turn's end (for the SFT loss)."""
        eos = self.tokenizer.eos_token_id
        end = [] if eos is None else [eos]
        return end if reasoned else [*self._after, *end]

    def thought_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of reasoning that was written as text, such as a trace."""
        return self._text_ids(texts)

    def thought_text(self, ids: Sequence[int]) -> str:
        """Reasoning as text, for people: what was said is `ids`."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True)).strip()

    def is_thought(self, ids: Sequence[int], least_tokens: int = 1) -> bool:
        """Whether reasoning is a thought: long enough, and not the fixed answer of the direct form."""
        return len(ids) >= least_tokens and list(ids) != self._answer

    def frame(self, instruction: str | None = None) -> tuple[list[int], list[int]]:
        """Ids before and after the text of a document or direct query; the last is the embed token."""
        prefix, suffix = self._frame(self.prompts.embed, instruction)
        return list(prefix), [*suffix, *self._answer, self.embed_id]

    def chat_prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """General chat prompts without a system turn of ours."""
        prefix, suffix = self._frame(None, None)
        room = self._room(len(prefix) + len(suffix))
        return [prefix + ids[:room] + suffix for ids in self._text_ids(texts)]

    def reasoning_start(self, instruction: str | None = None) -> int:
        """How many ids all reasoning prompts under this instruction begin with, whatever the text."""
        return len(self._frame(self.prompts.reason, instruction)[0])

    def chat(self, turns: Sequence[tuple[str, str]]) -> list[int]:
        """Ids of a chat up to where the assistant speaks next; nothing is cut.

        Args:
            turns: roles and contents, such as ("user", "Hello"); contents are only text.

        Raises:
            ModelError: the chat template does not take these turns.
        """
        marks = [f"{_TEXT}{place}{_TEXT}" for place in range(len(turns))]
        rest = self._template([(role, mark) for (role, _), mark in zip(turns, marks, strict=True)])
        ids: list[int] = []
        contents = self._text_ids([content for _, content in turns])
        for mark, content in zip(marks, contents, strict=True):
            before, found, rest = rest.partition(mark)
            if not found or mark in rest:
                raise ModelError(
                    "the tokenizer's chat template does not take these turns; it must show each once"
                )
            ids += self._template_ids(before) + content
        return ids + self._template_ids(rest)

    def _direct(self, texts: Sequence[str], instruction: str | None) -> list[Rendered]:
        before, after = self.frame(instruction)
        room = self._room(len(before) + len(after))
        said = len(self._answer) + 1
        wholes = [before + ids[:room] + after for ids in self._text_ids(texts)]
        return [Rendered(ids, len(ids) - 1, answer_start=len(ids) - said) for ids in wholes]

    def _room(self, template: int) -> int:
        if template >= self.max_length:
            raise ModelError(
                f"max_length {self.max_length} leaves no room: the conversation alone has {template} tokens"
            )
        return self.max_length - template

    def _render_frame(self, system: str | None, instruction: str | None) -> tuple[list[int], list[int]]:
        """Ids before and after the user's text, from the chat template."""
        content = "\n".join(part for part in (system, _INSTRUCTION if instruction else None) if part)
        turns = [("system", content)] if content else []
        pieces = self._template([*turns, ("user", _TEXT)]).split(_TEXT)
        if len(pieces) != 2:
            raise ModelError(
                "the tokenizer's chat template must hold the user's text exactly once, unchanged"
            )
        return self._frame_ids(pieces[0], instruction), self._frame_ids(pieces[1], instruction)

    def _template(self, turns: Sequence[tuple[str, str]]) -> str:
        """What the chat template makes of turns, up to where the assistant speaks."""
        messages = [{"role": role, "content": content} for role, content in turns]
        try:
            text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # templates raise errors of their own (jinja)
            roles = ", ".join(role for role, _ in turns[:4]) + ", …" * (len(turns) > 4)
            raise ModelError(f"the tokenizer's chat template fails on turns of {roles}: {error}") from None
        return str(text)

    def _frame_ids(self, piece: str, instruction: str | None) -> list[int]:
        """Ids of a piece of the template; the instruction in it is only text, as the user's own."""
        start, *rest = piece.split(_INSTRUCTION)
        ids = self._template_ids(start)
        for part in rest:
            ids += self._text_ids([instruction or ""])[0] + self._template_ids(part)
        return ids

    def _template_ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _text_ids(self, texts: Sequence[str]) -> list[list[int]]:
        if not len(texts):
            return []
        # split_special_tokens: what looks like a special token in a user's text is only text
        return self.tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)["input_ids"]


def embed_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Id of the embed token.

    Raises:
        ModelError: the tokenizer does not know it.
    """
    index = tokenizer.get_vocab().get(EMBED_TOKEN)
    if index is None:
        raise ModelError(
            f"{tokenizer.name_or_path}: the tokenizer has no {EMBED_TOKEN}, "
            "so this model gives no embeddings yet; train it first"
        )
    return index


def _make_special(tokenizer: PreTrainedTokenizerBase) -> None:
    """Add the embed token, or make it special: as an ordinary added token, users' texts could spell it."""
    tokenizer.add_special_tokens({"extra_special_tokens": [EMBED_TOKEN]}, replace_extra_special_tokens=False)


def add_embed_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Give a base model the embed token; returns its id.

    A tokenizer that has the token keeps it. Spare embedding rows are used before the matrix grows
    (Qwen2.5-1.5B has 151,936 rows for 151,665 tokens). A new token's row starts at the mean of the others.
    """
    import torch

    known = EMBED_TOKEN in tokenizer.get_vocab()
    _make_special(tokenizer)
    index = embed_token_id(tokenizer)
    rows = model.get_input_embeddings().weight.shape[0]
    if index >= rows:
        model.resize_token_embeddings(index + 1, mean_resizing=False)
    if not known or index >= rows:
        with torch.no_grad():
            for layer in {model.get_input_embeddings(), model.get_output_embeddings()} - {None}:
                layer.weight[index] = layer.weight[:index].mean(dim=0)
    return index


def _check_answer(answer: str, where: str) -> None:
    if answer.count(EMBED_TOKEN) != 1:
        raise ModelError(f"{where}: 'answer' must hold {EMBED_TOKEN} exactly once, got {answer!r}")
