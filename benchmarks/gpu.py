"""Speed on a GPU at real size: stage 1, encoding, and the parts of a stage-2 step.

    python benchmarks/gpu.py --peak-tflops 989 --output benchmarks/results/gpu.json
    python benchmarks/gpu.py --shape tiny --output …       any machine: shows that it runs

A model of the shape of Qwen2.5-1.5B with random weights, computing in bf16, on the Python code installed
here. The tokenizer is the bundled base's, so texts have other tokens than Qwen's; the vocabulary's size is
kept, for the language head costs by it.

Utilisation is model FLOPs a second over `--peak-tflops`, the GPU's dense bf16 peak in TFLOP/s (989 for an
H100 or H200, 312 for an A100); without it none is told. Model FLOPs of a text of n tokens are 2 · n · weights
of the layers + 2 · n² · width of the heads · layers (causal attention), and 2 · hidden · vocabulary for each
token that is predicted; three times that with gradients. What is computed twice to save memory counts once;
padding, the optimizer and sampling count nothing. Of `all_losses` the base's forward for the KL counts, too.
Encoding counts what must be computed: of the last layer keys and values alone, and no shared beginning.

Stage 2: seconds of a step's rollout, reward forward, refresh, scoring and update; medians, the first step
left out. With random weights no rollout ends before `max_new_tokens`. Sizes are chosen for 80 GB.
"""

from __future__ import annotations

import gc
import tempfile
from argparse import Namespace
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from _corpus import code_corpus
from _result import arguments, write
from _steps import stage1_trainer, stage2_steps
from _timing import StepTimes, now
from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from searchr3.conversation import add_embed_token
from searchr3.dataset import RetrievalDataset
from searchr3.dataset.traces import make_traces
from searchr3.embedding import Embedder, length_batches, tokens_per_pass
from searchr3.errors import SearchR3Error
from searchr3.generation import padding_id
from searchr3.model import SearchR3
from searchr3.progress import hush_transformers
from searchr3.runs.preparation import bundled_base
from searchr3.training.recipe import Recipe
from searchr3.training.recipe_file import load_recipe

SHAPES = {
    "qwen2.5-1.5b": {
        "vocab_size": 151_936,
        "hidden_size": 1536,
        "intermediate_size": 8960,
        "num_hidden_layers": 28,
        "num_attention_heads": 12,
        "num_key_value_heads": 2,
    },
    "tiny": {
        "vocab_size": 8192,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    },
}
REAL = {
    "documents": 4000,
    "length": 512,
    "batch": 256,
    "micro": 8192,
    "steps": 6,
    "queries": 16,
    "rollouts": 8,
    "micro_batches": 8,
    "thought": 128,
    "encoding_batch": 256,
}
SMALL = {
    "documents": 200,
    "length": 64,
    "batch": 8,
    "micro": 512,
    "steps": 3,
    "queries": 2,
    "rollouts": 4,
    "micro_batches": 2,
    "thought": 4,
    "encoding_batch": 32,
}
ALONE = ("sft=0", "kl=0", "triplet=0", "reasoned_share=0")


class Flops:
    """Model FLOPs of a causal transformer, see above."""

    def __init__(self, model: Qwen2ForCausalLM) -> None:
        config = model.config
        self.layers = config.num_hidden_layers
        self.layer = sum(weight.numel() for weight in model.model.layers[0].parameters())
        attention = model.model.layers[0].self_attn
        self.keys = sum(part.weight.numel() for part in (attention.k_proj, attention.v_proj))
        self.width = attention.q_proj.weight.shape[0]
        self.head = config.hidden_size * config.vocab_size

    def forward(self, length: int, predicted: int = 0) -> float:
        """Of one text and so many predicted tokens."""
        linear, attention = 2 * length * self.layer, 2 * length**2 * self.width
        return self.layers * (linear + attention) + 2 * predicted * self.head

    def encoded(self, length: int) -> float:
        """Of one text whose vector alone is wanted."""
        whole = 2 * length * self.layer + 2 * length**2 * self.width
        last = 2 * length * self.keys + 2 * (self.layer - self.keys) + 4 * length * self.width
        return (self.layers - 1) * whole + last


def make_model(shape: str, size: dict[str, int]) -> SearchR3:
    """Random weights of a shape, float32, with the bundled base's tokenizer and the embed token."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(bundled_base())
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    config = Qwen2Config(
        **SHAPES[shape], **ends, bos_token_id=None, tie_word_embeddings=True, max_position_embeddings=4096
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = Qwen2ForCausalLM(config)
    add_embed_token(model, tokenizer)
    return SearchR3.from_parts(model, tokenizer, None, size["length"], size["encoding_batch"])


def recipe_of(size: dict[str, int], stage1: Iterable[str] = ()) -> Recipe:
    steps = size["steps"]
    return load_recipe(
        "quickstart",
        [
            *(f"{stage}.steps={steps}" for stage in ("stage1", "stage2")),
            *(f"{stage}.evaluate_every={steps}" for stage in ("stage1", "stage2")),
            *("model.precision=bf16", f"model.max_new_tokens={size['thought']}"),
            *(f"model.max_length={size['length']}", f"model.batch_size={size['encoding_batch']}"),
            *(f"stage1.batch_size={size['batch']}", f"stage1.micro_tokens={size['micro']}"),
            *(f"stage2.queries={size['queries']}", f"stage2.rollouts={size['rollouts']}"),
            f"stage2.accumulation={size['micro_batches']}",
            *("stage2.contrastive=0", "stage2.log_every=1", f"stage2.episodes_every={10**6}"),
            *("data.dev_queries=8", "data.dev_documents=32"),
            *(f"stage1.{one}" for one in stage1),
        ],
    )


def used(flops: float, seconds: float, options: Namespace) -> float | None:
    """Share of the GPU's peak."""
    return flops / seconds / (options.peak_tflops * 1e12) if options.peak_tflops else None


def stage1(search: SearchR3, dataset: RetrievalDataset, options: Namespace) -> dict[str, float | None]:
    """InfoNCE alone, and all four losses."""
    flops, figures = Flops(search.model), dict[str, float | None]()
    for arm, stage in (("contrastive", ALONE), ("all_losses", ())):
        recipe, times = recipe_of(options.size, stage), StepTimes()
        with tempfile.TemporaryDirectory() as folder:
            trainer, seen = stage1_trainer(search, dataset, recipe, Path(folder), times)
            trainer.train()
        tokens, done = [], []
        for items in seen[1:]:
            tokens.append(sum(len(item.ids) for item in items))
            speaks = recipe.stage1.sft or recipe.stage1.kl
            said = [len(item.ids) - item.answer_start if item.speaks and speaks else 0 for item in items]
            learnt = sum(flops.forward(len(item.ids), n) for item, n in zip(items, said, strict=True))
            held = [
                flops.forward(len(item.ids), n) for item, n in zip(items, said, strict=True) if item.anchor
            ]
            done.append(3 * learnt + sum(held))
        seconds = times.seconds
        figures |= {
            f"stage1_{arm}_tokens_a_second": median(a / b for a, b in zip(tokens, seconds, strict=True)),
            f"stage1_{arm}_step_seconds": median(seconds),
            f"stage1_{arm}_utilisation": used(sum(done), sum(seconds), options),
        }
        search.model.eval()
        del trainer
        free()
    return figures


def free() -> None:
    """Give back what a trainer held: it refers to itself, and its optimizer is large."""
    gc.collect()
    torch.cuda.empty_cache()


def encode(search: SearchR3, texts: Sequence[str], options: Namespace) -> dict[str, float | None]:
    """Documents, with weights in bf16."""
    search.model.to(torch.bfloat16)
    search.autocast = None
    flops, rendered = Flops(search.model), search.conversation.documents(texts)
    search.encode_rendered(rendered[: 2 * search.batch_size])
    seconds = []
    for _ in range(options.size["steps"]):
        start = now()
        search.encode_rendered(rendered)
        seconds.append(now() - start)
    lengths = [len(one.ids) for one in rendered]
    shared = len(Embedder(search.model, padding_id(search.conversation), rendered).prefix)
    plan = length_batches(rendered, search.batch_size, tokens_per_pass(search.device))
    padded = sum(len(rows) * max(lengths[row] for row in rows) for rows in plan)
    work = sum(flops.encoded(length - shared) for length in lengths)
    return {
        "encode_tokens_a_second": sum(lengths) / median(seconds),
        "encode_documents_a_second": len(texts) / median(seconds),
        "encode_tokens_mean": sum(lengths) / len(lengths),
        "encode_padding": 1 - sum(lengths) / padded,
        "encode_utilisation": used(work, median(seconds), options),
    }


def stage2(search: SearchR3, dataset: RetrievalDataset, options: Namespace) -> dict[str, float | None]:
    """Seconds of the parts of a step."""
    search.autocast = torch.bfloat16
    corpus = [document.content for document in dataset.training_corpus().values()]
    steps = stage2_steps(search, dataset, search.encode_document(corpus), recipe_of(options.size))["steps"]
    names = ("step", "rollout", "reward_forward", "refresh", "scoring", "update")
    free()
    figures: dict[str, Any] = {f"stage2_{name}_seconds": median(one[name] for one in steps) for name in names}
    rollouts = options.size["queries"] * options.size["rollouts"]
    return {**figures, "stage2_documents": len(corpus), "stage2_rollouts": rollouts}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--shape", choices=list(SHAPES), help="default: qwen2.5-1.5b; tiny with --quick")
    parser.add_argument("--peak-tflops", type=float, help="the GPU's dense bf16 peak, TFLOP/s")
    parser.add_argument("--data", type=Path, help="folder of the data; made where it is missing")
    options = parser.parse_args()
    shape = options.shape or ("tiny" if options.quick else "qwen2.5-1.5b")
    if shape != "tiny" and not torch.cuda.is_available():
        print(f"gpu: no GPU here, nothing measured; --shape tiny runs without one, {shape} does not")
        return
    options.size = SMALL if shape == "tiny" else REAL
    data = options.data or Path("runs") / f"gpu-{shape}" / "data"
    hush_transformers()
    try:
        dataset = code_corpus(data, shape == "tiny", options.size["documents"])
        recipe = recipe_of(options.size)
        dataset = make_traces(dataset, ("stage1",), recipe.data.trace_words)
        search = make_model(shape, options.size)
        figures: dict[str, float | None] = {
            "weights": sum(weight.numel() for weight in search.model.parameters()),
            "peak_tflops": options.peak_tflops,
        }
        figures |= stage1(search, dataset, options)
        figures |= stage2(search, dataset, options)
        figures |= encode(search, [one.content for one in dataset.corpus.values()], options)
    except SearchR3Error as error:
        raise SystemExit(f"error: {error}") from None
    if torch.cuda.is_available():
        figures["peak_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        print(torch.cuda.get_device_name())
    write(options.output, "gpu", figures)


if __name__ == "__main__":
    main()
