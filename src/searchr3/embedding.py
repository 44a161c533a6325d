"""From conversations to unit vectors: the passes through the transformer, with or without gradients."""

from __future__ import annotations

import contextlib
import sys
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from searchr3.conversation import Rendered
from searchr3.generation import is_dealt, pad_ids, without_wrapper

# Part of `model_digest`. Whoever changes which vector, or which greedy thought, a model gives for a text
# (here, in conversation.py or in generation.py) raises it: else a cache would give those of before.
ENCODING = 1
TOKENS_PER_BATCH = 8192  # padded tokens in one encoding forward: bounds memory whatever the batch size
TOKENS_ON_CPU = 2048  # on a CPU: what a layer makes of them stays in its caches
WORTH_SHARING = 1 / 8  # share of a batch's length from which on the texts' shared beginning saves work
KNOWN = ("llama", "qwen2", "qwen3")  # architectures whose layers `Embedder` can take apart
OF_LENGTH = ("dynamic", "longrope")  # kinds of RoPE that turn a token by the length of the pass too


def backbone(model: PreTrainedModel) -> torch.nn.Module:
    """The transformer without the language head; a LoRA adapter, if any, stays active."""
    inner = without_wrapper(model)
    return getattr(inner, inner.base_model_prefix)


@contextlib.contextmanager
def seen_by_head(
    model: PreTrainedModel, at: tuple[Tensor, Tensor] | slice = slice(0)
) -> Iterator[list[Tensor]]:
    """Lists the last hidden states, (n, length, d), of passes through `model`, wrapped or not.

    The head is the largest matrix of a small model, so it gets only the places `at`: none by default.
    """
    seen: list[Tensor] = []

    def choose(head: torch.nn.Module, inputs: tuple[Any, ...]) -> tuple[Tensor]:
        seen.append(inputs[0])
        return (inputs[0][at],)

    hook = without_wrapper(model).get_output_embeddings().register_forward_pre_hook(choose)
    try:
        yield seen
    finally:
        hook.remove()


def embed(model: PreTrainedModel, rendered: Sequence[Rendered], pad_id: int) -> Tensor:
    """Unit vectors of one padded batch of conversations, shape (n, d), float32, differentiable.

    The vector is the last hidden state, after the final norm, at each conversation's own position. Weights
    that are dealt among processes are gathered by the whole model only, so the pass goes through that.
    """
    ids, mask = pad_ids([item.ids for item in rendered], pad_id)
    device = next(model.parameters()).device
    texts = {"input_ids": ids.to(device), "attention_mask": mask.to(device), "use_cache": False}
    if is_dealt(model):
        with seen_by_head(model) as seen:
            model(**texts)
        (hidden,) = seen
    else:
        hidden = backbone(model)(**texts).last_hidden_state
    positions = torch.tensor([item.position for item in rendered], device=device)
    return F.normalize(hidden[torch.arange(len(rendered), device=device), positions].float(), dim=-1)


def shorten(vectors: np.ndarray, dim: int | None) -> np.ndarray:
    """The first `dim` dimensions (all when None), scaled to unit length."""
    if dim is not None and not 1 <= dim <= vectors.shape[1]:
        raise ValueError(f"dim must be between 1 and {vectors.shape[1]}, got {dim}")
    cut = vectors[:, :dim].astype(np.float32)
    return cut / np.maximum(np.linalg.norm(cut, axis=1, keepdims=True), 1e-12)


class HasIds(Protocol):
    """What can be batched by length: a rendered conversation, or an item to train on."""

    @property
    def ids(self) -> list[int]: ...


def length_batches(
    rendered: Sequence[HasIds], batch_size: int, tokens: int = TOKENS_PER_BATCH, ranks: int = 1
) -> Iterator[list[int]]:
    """Row numbers in batches of like length, longest first.

    A batch has at most `batch_size` rows and, unless it is a single row, `tokens` tokens with padding, for
    each of the `ranks` processes that share it.
    """
    order = sorted(range(len(rendered)), key=lambda row: (-len(rendered[row].ids), row))
    start = 0
    while start < len(order):
        rows = ranks * max(1, min(batch_size, tokens // len(rendered[order[start]].ids)))
        yield order[start : start + rows]
        start += rows


def pass_tokens(rendered: Sequence[HasIds], tokens: int) -> int:
    """The fewest tokens to a batch, at most `tokens`, that make no more of `length_batches` than `tokens` do.

    With them batches are of like size: with `tokens` the last may be a small remainder.
    """
    lengths = sorted((len(one.ids) for one in rendered), reverse=True)

    def batches(most: int) -> int:
        count = start = 0
        while start < len(lengths):
            start += max(1, most // lengths[start])
            count += 1
        return count

    return bisect_left(range(tokens), -batches(tokens), key=lambda most: -batches(most))


def tokens_per_pass(device: torch.device) -> int:
    """Padded tokens of one encoding forward that a device does fastest per token, or bears."""
    return TOKENS_ON_CPU if device.type == "cpu" else TOKENS_PER_BATCH


class Embedder:
    """`embed` without gradients, at less cost: the same vectors but for the rounding of sums.

    Two things need no computing. What all texts begin with (the system prompt) has the same keys and values
    everywhere: they are made once. And in the last layer only the embed position is asked for: the others
    give it their keys and values, and are spared the query, the attention and the feed-forward block.
    Behind a beginning attention needs a mask, and computes what it hides; so long texts make theirs anew.

    Other architectures, other attention than `sdpa`, positions whose turn hangs on the length of the pass
    (dynamic RoPE) and weights dealt among processes go through `embed`.

    Args:
        texts: what the shared beginning is taken from; every text embedded later must begin with it.
    """

    def __init__(self, model: PreTrainedModel, pad_id: int, texts: Sequence[Rendered] = ()):
        self.model, self.pad_id = model, pad_id
        self.known = _known(model)
        self.prefix: list[int] = []
        self.shared: list[tuple[Tensor, Tensor]] = []
        if self.known and (prefix := _beginning(texts)):
            self.prefix, self.shared = prefix, self.keep(prefix)

    @torch.no_grad()
    def __call__(self, rendered: Sequence[Rendered]) -> Tensor:
        """Unit vectors of one batch, shape (n, d), float32."""
        if not self.known:
            return embed(self.model, rendered, self.pad_id)
        longest = max(len(item.ids) for item in rendered)
        cache = Beginning(self.shared if len(self.prefix) >= WORTH_SHARING * longest else ())
        ids, _ = pad_ids([item.ids[cache.length :] for item in rendered], self.pad_id)
        at = torch.tensor([item.position - cache.length for item in rendered])
        return F.normalize(self.hidden(ids, cache, at).float(), dim=-1)

    @torch.no_grad()
    def keep(self, ids: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
        """Keys and values of each layer, (1, heads, len(ids), width), of what other texts begin with."""
        made: list[tuple[Tensor, Tensor]] = []
        self.hidden(torch.tensor([list(ids)]), Beginning(made=made))
        return made

    @torch.no_grad()
    def hidden(self, ids: Tensor, cache: Beginning, at: Tensor | None = None) -> Tensor:
        """Last hidden states of `ids`, (n, length), which stand behind the beginning in `cache`.

        (n, d) after the final norm at the positions `at` of each row; without them, all of them before it.
        """
        inner: Any = backbone(self.model)
        hidden = inner.embed_tokens(ids.to(inner.device))
        n, length, _ = hidden.shape
        skip = cache.length
        places = torch.arange(skip + length, device=hidden.device)
        turn = inner.rotary_emb(hidden, places[None, skip:])
        # Padding stands on the right, where no token of the text looks: the causal mask is mask enough.
        mask = (places <= places[skip:, None])[None, None] if skip else None
        *layers, last = inner.layers[: inner.config.num_hidden_layers]
        for layer in layers:
            hidden = layer(hidden, attention_mask=mask, position_embeddings=turn, past_key_values=cache)
        if at is None:
            return last(hidden, attention_mask=mask, position_embeddings=turn, past_key_values=cache)
        at = at.to(hidden.device)
        made = cache.update(*_keys_and_values(last, hidden, turn), len(layers))
        hidden = last(
            hidden[torch.arange(n, device=hidden.device), at][:, None],
            attention_mask=(places <= skip + at[:, None])[:, None, None],
            position_embeddings=tuple(part[0, at][:, None] for part in turn),
            past_key_values=_Given(made),
        )
        return inner.norm(hidden)[:, 0]


class Beginning:
    """In the place of transformers' cache: puts the shared beginning before each row's keys and values."""

    def __init__(
        self, shared: Sequence[tuple[Tensor, Tensor]] = (), made: list[tuple[Tensor, Tensor]] | None = None
    ):
        self.shared = shared
        self.made = made  # gets what each layer computes

    @property
    def length(self) -> int:
        """Tokens of the shared beginning."""
        return self.shared[0][0].shape[2] if self.shared else 0

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any) -> tuple[Tensor, Tensor]:
        if self.made is not None:
            self.made.append((keys, values))
        if not self.shared:
            return keys, values
        before = [part.expand(len(keys), -1, -1, -1) for part in self.shared[layer]]
        return torch.cat([before[0], keys], dim=2), torch.cat([before[1], values], dim=2)


class _Given:
    """In the place of transformers' cache: the keys and values of all positions, already computed."""

    def __init__(self, made: tuple[Tensor, Tensor]):
        self.made = made

    def update(self, *_: Any) -> tuple[Tensor, Tensor]:
        return self.made


def _keys_and_values(layer: Any, hidden: Tensor, turn: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """What a decoder layer's attention computes for each position, (n, heads, length, width)."""
    attention = layer.self_attn
    normed = layer.input_layernorm(hidden)
    shape = (*hidden.shape[:2], -1, attention.head_dim)
    keys = attention.k_proj(normed).view(shape)
    if hasattr(attention, "k_norm"):
        keys = attention.k_norm(keys)
    keys = keys.transpose(1, 2)
    rotate = sys.modules[type(attention).__module__].apply_rotary_pos_emb
    return rotate(keys[:, :0], keys, *turn)[1], attention.v_proj(normed).view(shape).transpose(1, 2)


def _beginning(texts: Sequence[Rendered]) -> list[int]:
    """The token ids that all texts begin with; they end before the first embed position."""
    if not texts:
        return []
    least, greatest = min(text.ids for text in texts), max(text.ids for text in texts)
    most = min(len(least), *(text.position for text in texts))
    same = (n for n in range(most) if least[n] != greatest[n])
    return least[: next(same, most)]


def _known(model: PreTrainedModel) -> bool:
    config = model.config
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    rope = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    return (
        config.model_type in KNOWN
        and kinds == {"full_attention"}
        and rope not in OF_LENGTH
        and config._attn_implementation == "sdpa"
        and not is_dealt(model)
    )
