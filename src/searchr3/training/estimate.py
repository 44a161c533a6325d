"""What a run needs: memory of a process, operations, hours. Pure formulas, no torch.

They are those of a decoder of the Llama kind (Llama, Qwen2, Qwen3): RMSNorm, rotary positions, grouped
queries, a gated feed-forward block. Weights, gradients and optimizer are float32, as the trainers keep them,
but linear layers that an adapter leaves as they are may be bf16; with bf16 the matrix products run under
autocast. Attention is fused (`sdpa`) and keeps no scores.
"""

from __future__ import annotations

from dataclasses import astuple, dataclass
from typing import Any

GIB = 2**30
LOGITS = 8, 10  # bytes for each logit of stage 1's language loss, and more while it is in a piece; measured
LOGITS_KL = 12, 28  # with the KL to the base
TILE = (
    4096,
    32768,
)  # tokens × vocabulary of the piece of logits that TRL's head works on at a time, on a GPU


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder.

    Attributes:
        queries, keys: heads × width of a head, of the queries and of the keys.
        head_norms: queries and keys are normed (Qwen3).
        tied: the matrix that makes logits is the embedding.
    """

    layers: int
    hidden: int
    heads: int
    queries: int
    keys: int
    intermediate: int
    vocabulary: int
    head_norms: bool = False
    tied: bool = False

    @classmethod
    def of(cls, config: Any) -> Shape:
        """The sizes that a configuration of transformers names; of another kind of model they are a guess."""
        text = config.get_text_config()
        heads, hidden = text.num_attention_heads, text.hidden_size
        width = getattr(text, "head_dim", None) or hidden // heads
        keys = width * (getattr(text, "num_key_value_heads", None) or heads)
        intermediate = getattr(text, "intermediate_size", None) or 4 * hidden
        norms = text.model_type == "qwen3"
        layers, rows = text.num_hidden_layers, text.vocab_size
        tied = bool(getattr(text, "tie_word_embeddings", False))
        return cls(layers, hidden, heads, width * heads, keys, intermediate, rows, norms, tied)

    @property
    def layer(self) -> int:
        """Numbers in the matrices of one layer."""
        return 2 * self.hidden * (self.queries + self.keys) + 3 * self.hidden * self.intermediate

    @property
    def head(self) -> int:
        """Numbers in the matrix that makes logits."""
        return self.hidden * self.vocabulary

    @property
    def linear(self) -> int:
        """Numbers in the matrices that nothing but products uses."""
        return self.layers * self.layer + (0 if self.tied else self.head)


@dataclass(frozen=True)
class Setting:
    """How a stage trains.

    Attributes:
        parameters: all; trained: those that learn, of a LoRA adapter few.
        bf16: of matrix products; else float32.
        checkpointing: each layer keeps its input only.
        copies: further models held whole: the base of stage 1's KL, GRPO's reference.
        processes: data parallel.
        shard: weights, also of copies, gradients and optimizer states are dealt among the processes (FSDP,
            ZeRO-3).
        held: linear layers, frozen, are held in bf16.
        base: a pass of the base is made while a graph is kept (stage 1's KL).
    """

    parameters: int
    trained: int
    bf16: bool
    checkpointing: bool
    copies: int = 0
    processes: int = 1
    shard: bool = False
    held: bool = False
    base: bool = False

    @property
    def adapter(self) -> bool:
        return self.trained < self.parameters


@dataclass(frozen=True)
class Passes:
    """The largest passes of one process.

    Attributes:
        learnt: tokens, padding included, whose graph is held at once.
        logits: bytes for logits, and what is made of them.
        vectors: bytes for cached embeddings, their gradients and similarities.
        spoken_to: tokens that keys and values are kept of while the model generates.
    """

    learnt: int
    logits: int
    vectors: int
    spoken_to: int


@dataclass(frozen=True)
class Memory:
    """Bytes of one process, on the device that trains."""

    weights: int
    copies: int
    gradients: int
    optimizer: int
    buckets: int
    bf16_weights: int
    rows: int
    activations: int
    logits: int
    vectors: int
    generation: int
    saving: int

    @property
    def held(self) -> int:
        """What is there whatever it does."""
        return self.weights + self.copies + self.gradients + self.optimizer + self.buckets

    @property
    def total(self) -> int:
        """The peak: it learns, or generates, or saves."""
        learning = self.bf16_weights + self.rows + self.activations + self.logits + self.vectors
        return self.held + max(learning, self.rows + self.generation, self.saving)


def checkpoint_bytes(setting: Setting, vectors: int = 0) -> int:
    """Bytes of a checkpoint on the disk: what learns, its two moments, the corpus's `vectors` in bytes.

    Dealt weights are written twice: as accelerate reads them, and whole.
    """
    weights = setting.trained if setting.adapter else setting.parameters
    return 4 * weights * (1 + setting.shard) + 8 * setting.trained + vectors


def memory(shape: Shape, setting: Setting, passes: Passes) -> Memory:
    """What one process needs, without the device's own overhead (CUDA: 1 to 2 GiB).

    AdamW keeps two numbers a trained weight; DDP a second copy of the gradients in its buckets. Sharded
    weights, those of `copies` too, are gathered layer by layer, and when a stage has ended a whole model is
    made beside them. A model that is not dealt is made whole in main memory.
    """
    share = setting.processes if setting.shard else 1
    gathered = 4 * max(shape.layer, shape.head) if setting.shard else 0
    buckets = 4 * setting.trained if setting.processes > 1 and not setting.shard else 0
    wide = 4 if not setting.bf16 else 3  # keys are float32 in the cache, values bf16
    return Memory(
        weights=(4 * setting.parameters - 2 * shape.linear * setting.held) // share + gathered,
        copies=4 * setting.copies * setting.parameters // share,
        gradients=4 * setting.trained // share,
        optimizer=8 * setting.trained // share,
        buckets=buckets,
        bf16_weights=_bf16_weights(shape, setting),
        rows=_rows(shape, setting),
        activations=passes.learnt * (activations(shape, setting) + at_work(shape, setting)),
        logits=passes.logits,
        vectors=passes.vectors,
        generation=passes.spoken_to * shape.layers * 2 * shape.keys * wide,
        saving=4 * setting.parameters * setting.shard,
    )


def _bf16_weights(shape: Shape, setting: Setting) -> int:
    """Autocast keeps a copy of each matrix that a graph needs; of frozen ones only as long as that lasts."""
    if not setting.bf16 or setting.held:
        return 0
    few = setting.shard or (setting.adapter and setting.checkpointing)
    return 2 * (shape.layer * (1 if few else shape.layers) + shape.head * (not setting.adapter))


def _rows(shape: Shape, setting: Setting) -> int:
    """The embed token's row learns with an adapter: PEFT puts it into a copy of the head, or the embedding.

    The copy has a gradient as large; under autocast that of a float32 head is made in bf16 too.
    """
    if not setting.adapter:
        return 0
    if setting.held and not shape.tied:
        return (2 + 2) * shape.head
    return (2 + 4 if setting.bf16 else 4 + 4) * shape.head


def saved_by_layer(shape: Shape, setting: Setting) -> int:
    """Bytes that one layer keeps of a token for the backward pass.

    The count of Korthikanti et al. (2022, arXiv 2205.05198, section 4) made anew for this architecture. With
    hidden size h, queries q (keys and values are repeated to that size where there is padding) and
    intermediate size f a layer keeps, in numbers:

    - each of two norms: input h, normed h (if the norm learns), weighted h, the input of the products after;
    - attention: queries, keys, values and result, 4 q;
    - feed-forward: gate, its activation, the other half, and their product, 4 f.

    In bf16 the norms stay float32, and every product keeps its own rounded copy of its input: three after the
    first norm, two after the second, and with a LoRA adapter another after attention.
    """
    h, q, f = shape.hidden, shape.queries, shape.intermediate
    normed = 0 if setting.adapter else 1
    if setting.bf16:
        own = 8 * h * (1 + normed) + 10 * h + 8 * q + 8 * f + (2 * q if setting.adapter else 0)
        of_heads = 4 + 2 * normed
    else:
        own = 4 * (2 * h * (2 + normed) + 4 * q + 4 * f)
        of_heads = 4 * (1 + normed)
    return own + (of_heads * (q + shape.keys) if shape.head_norms else 0) + 4 * shape.heads


def activations(shape: Shape, setting: Setting) -> int:
    """Bytes that all layers keep of a token; with checkpointing every input, and one layer's at a time."""
    one, ends = saved_by_layer(shape, setting), 16 * shape.hidden  # the last norm, and what the head is given
    if setting.checkpointing:
        return 4 * shape.hidden * shape.layers + one + ends
    return one * shape.layers + ends


def at_work(shape: Shape, setting: Setting) -> int:
    """Bytes of a token that come and go while the graph is kept; the shares are fitted to a small model.

    A quarter of what a layer keeps for gradients on the way back, and half of it for a pass of the base. With
    checkpointing they come when no layer is kept, and are no more than the one that is counted.
    """
    one = saved_by_layer(shape, setting)
    return 0 if setting.checkpointing else one // 4 + one // 2 * setting.base


@dataclass(frozen=True)
class Work:
    """Tokens that all processes pass through the model.

    Attributes:
        learnt: with gradient.
        read: without: encoding, the first pass of cached gradients, the KL's base, prompts of generation.
        spoken: logits with gradient.
        sampled: generated, one after the other.
        learnt_pairs, read_pairs: over these tokens, the sum of the lengths of the texts that they stand in.
    """

    learnt: float = 0.0
    read: float = 0.0
    spoken: float = 0.0
    sampled: float = 0.0
    learnt_pairs: float = 0.0
    read_pairs: float = 0.0

    @classmethod
    def of(
        cls,
        context: float,
        learnt: float = 0.0,
        read: float = 0.0,
        spoken: float = 0.0,
        sampled: float = 0.0,
    ) -> Work:
        """Of texts of so many tokens."""
        return cls(learnt, read, spoken, sampled, learnt * context, read * context)

    def times(self, number: float) -> Work:
        return Work(*(number * one for one in astuple(self)))

    def plus(self, other: Work) -> Work:
        return Work(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


def operations(shape: Shape, setting: Setting, work: Work) -> float:
    """Floating-point operations of all passes but generation's.

    Forward, by token: `2 N + 2 · layers · context · queries` with N the numbers in the layers' matrices
    (Kaplan et al., 2020, arXiv 2001.08361, table 1), and `2 · hidden · vocabulary` for a logit row. A
    backward pass is two forwards, one where the weights are frozen; checkpointing adds one, which ends before
    the last product of each layer: its result is not needed.
    """
    backward = 1 if setting.adapter else 2

    def forward(tokens: float, pairs: float, last: bool = True) -> float:
        layer = shape.layer if last else shape.layer - shape.hidden * shape.intermediate
        return 2 * shape.layers * (layer * tokens + shape.queries * pairs)

    total = (1 + backward) * forward(work.learnt, work.learnt_pairs) + forward(work.read, work.read_pairs)
    if setting.checkpointing:
        total += forward(work.learnt, work.learnt_pairs, last=False)
    return total + 2 * shape.head * work.spoken * (1 + backward)


def hours(operations: float, sampled: float, teraflops: float, tokens: float, processes: int) -> float:
    """Time of all processes together.

    Args:
        sampled: tokens to generate.
        teraflops: 10¹² operations that one process does in a second.
        tokens: that one process generates in a second.
    """
    return (operations / (teraflops * 1e12) + (sampled / tokens if sampled else 0.0)) / processes / 3600
