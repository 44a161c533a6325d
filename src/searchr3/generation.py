"""Thinking: generating the reasoning that comes before the embed token."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from searchr3.conversation import Conversation
from searchr3.errors import ModelError

COLDEST = 1e-4  # a lower temperature samples at this one: scores over less would not be numbers any more


@dataclass(frozen=True)
class Reasoning:
    """What the model said before the embed token.

    Attributes:
        text: for people; decoding is approximate, `token_ids` is what counts.
        token_ids: the reasoning without the embed token.
        emitted: the model said the embed token itself; False means that it was closed by force.
    """

    text: str
    token_ids: tuple[int, ...] = field(repr=False)
    emitted: bool

    def __str__(self) -> str:
        return self.text


def pad_ids(sequences: Sequence[Sequence[int]], pad_id: int, left: bool = False) -> tuple[Tensor, Tensor]:
    """Pad token ids to one length. Returns ids and attention mask, int64 of shape (n, longest)."""
    width = max(map(len, sequences))
    ids = torch.full((len(sequences), width), pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        place = slice(width - len(sequence), width) if left else slice(0, len(sequence))
        ids[row, place] = torch.tensor(sequence, dtype=torch.long)
        mask[row, place] = 1
    return ids, mask


def split_completion(completion: Sequence[int], conversation: Conversation) -> tuple[list[int], bool]:
    """Cut a generated completion at its end. Returns the reasoning ids and whether the embed token was said.

    The first stop token ends it: the embed token (said) or the end of the turn (not said).
    """
    stops = set(conversation.stop_ids)
    for index, token in enumerate(completion):
        if token in stops:
            return list(completion[:index]), token == conversation.embed_id
    return list(completion), False


@torch.no_grad()
def generate_ids(
    model: PreTrainedModel,
    conversation: Conversation,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float = 0.0,
    stop_ids: Sequence[int] | None = None,
) -> list[list[int]]:
    """Completions of `prompts` in one padded batch, stop token included.

    Args:
        temperature: 0 decodes greedily; above 0 samples from the full distribution (no top-k, no top-p, no
            penalty, whatever the checkpoint's own generation config says).
        stop_ids: tokens that end a completion; those of `conversation` by default.
    """
    pad_id = padding_id(conversation)
    ids, mask = pad_ids(prompts, pad_id, left=True)
    device = next(model.parameters()).device
    sampling = (
        {"do_sample": True, "temperature": max(temperature, COLDEST), "top_k": 0, "top_p": 1.0}
        if temperature
        else {"do_sample": False}
    )
    stops = list(stop_ids or conversation.stop_ids)
    config = GenerationConfig(
        max_new_tokens=max_new_tokens, eos_token_id=stops, pad_token_id=pad_id, **sampling
    )
    # What this config leaves open would come from the checkpoint's own, such as the repetition penalty of
    # Qwen2.5-Instruct. A shallow copy bears it; but dealt weights are gathered by the whole model itself.
    inner, dealt = without_wrapper(model), is_dealt(model)
    speaker = model if dealt else copy.copy(inner)
    changed = [(one, one.generation_config) for one in ((model, inner) if dealt else ())]
    for one in (speaker, *(one for one, _ in changed)):
        one.generation_config = config
    try:
        with evaluating(model), drawing():
            output = speaker.generate(
                ids.to(device),
                attention_mask=mask.to(device),
                generation_config=config,
                synced_gpus=dealt,  # who has finished goes on with the others
            )
    finally:
        for one, own in changed:
            one.generation_config = own
    completions = output[:, ids.shape[1] :].tolist()
    return [_until_stop(completion, stops) for completion in completions]


def reason(
    model: PreTrainedModel,
    conversation: Conversation,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: int,
    temperature: float = 0.0,
    batch_size: int = 32,
) -> list[Reasoning]:
    """Reasoning for each prompt (ids of `Conversation.reasoning_prompts`), in the given order."""
    order = sorted(range(len(prompts)), key=lambda row: len(prompts[row]))
    results: list[Reasoning | None] = [None] * len(prompts)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        if max_new_tokens > 0:
            completions = generate_ids(
                model, conversation, [prompts[row] for row in rows], max_new_tokens, temperature
            )
        else:
            completions = [[] for _ in rows]
        for row, completion in zip(rows, completions, strict=True):
            thought, emitted = split_completion(completion, conversation)
            results[row] = Reasoning(conversation.thought_text(thought), tuple(thought), emitted)
    return [result for result in results if result is not None]


def context_length(model: PreTrainedModel) -> int | None:
    """The most tokens that a model was made for; None where it does not say."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """Turn what torch says of chances that are no numbers into one line; on a GPU it ends the process."""
    try:
        yield
    except RuntimeError as error:
        if "probability tensor" not in str(error):
            raise
        raise ModelError(
            "the model says nothing: the chances of its next token are no numbers; it has diverged, or its "
            "weights are damaged: lower the learning rate, or take another checkpoint"
        ) from None


@contextlib.contextmanager
def seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Random numbers of `seed` within, on the CPU and `device`; before and after, those of the process.

    With None nothing is changed.
    """
    if seed is None:
        yield
        return
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


@contextlib.contextmanager
def evaluating(model: torch.nn.Module) -> Iterator[None]:
    """Without dropout; afterwards as before. Each module is told one by one, so none is where all know."""
    if not model.training:
        yield
        return
    model.eval()
    try:
        yield
    finally:
        model.train()


def without_wrapper(model: PreTrainedModel) -> PreTrainedModel:
    """The `transformers` model inside a `peft` one; its adapter stays active."""
    return (
        model.get_base_model()
        if hasattr(model, "peft_config") and hasattr(model, "get_base_model")
        else model
    )


def is_dealt(model: torch.nn.Module) -> bool:
    """Whether the weights are dealt among processes (FSDP, ZeRO-3), all of which must make as many passes."""
    return any(type(weight.data) is not Tensor or hasattr(weight, "ds_id") for weight in model.parameters())


def padding_id(conversation: Conversation) -> int:
    """The tokenizer's padding id, else its end-of-turn id; masked positions never count."""
    pad_id = conversation.tokenizer.pad_token_id
    eos = conversation.tokenizer.eos_token_id
    return pad_id if pad_id is not None else (eos if eos is not None else 0)


def _until_stop(completion: list[int], stops: list[int]) -> list[int]:
    for index, token in enumerate(completion):
        if token in stops:
            return completion[: index + 1]
    return completion
