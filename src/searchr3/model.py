"""`SearchR3`: a chat model whose hidden state at `<|embed_token|>` is the search embedding.

model = SearchR3("path-or-hub-id")
thoughts = model.generate(batch=["parse a date"])
queries = model.encode_query(["parse a date"], reasoning=thoughts)
documents = model.encode_document(["def parse(text): ..."])
model.similarity(queries, documents)
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from searchr3.adaptive import Adaptive, Documents, known_rule
from searchr3.conversation import Conversation, Prompts, Rendered, add_embed_token
from searchr3.digest import model_digest
from searchr3.embedding import Embedder, length_batches, shorten, tokens_per_pass
from searchr3.errors import ModelError, first_line
from searchr3.generation import Reasoning, evaluating, padding_id, reason, seeded
from searchr3.loading import load_parts, load_skeleton, wording
from searchr3.saving import merged, save_parts
from searchr3.thinking import has_one_pass, one_pass

Progress = Callable[[int, int], None]


class SearchR3:
    """Load, generate, encode, compare and save a Search-R3 model.

    Args:
        path: folder or Hub id of a trained model, or of a published Search-R3 checkpoint.
        max_length: most tokens of template and text together; a longer text is cut inside the text.
            Default: what was saved with the model, else 1024.
        batch_size: most texts in one forward.
        device: e.g. "cpu" or "cuda"; by default the GPU when there is one.
        dtype: of the weights: "auto" (as saved) or e.g. "float32", "bfloat16".
        prompts: `Prompts`, or a YAML / JSON file with them; default: what was saved with the model.
        products: instead of `dtype`: passes are autocast to this type, and linear layers, which cannot learn
            then, held in it (see `hold`). What is saved has the numbers that lie at `path`.

    Attributes:
        adaptive: the rule of `reasoning="auto"`, saved with the model; None where there is none.

    Raises:
        ModelError: no such model, no chat template, or the tokenizer lacks the embed token.
    """

    autocast: torch.dtype | None = None
    exact: str | Path | None = None  # where the weights lie that are held rounded

    def __init__(
        self,
        path: str | Path,
        max_length: int | None = None,
        batch_size: int = 32,
        device: str | torch.device | None = None,
        dtype: str = "auto",
        prompts: Prompts | str | Path | None = None,
        products: torch.dtype | None = None,
    ):
        model, tokenizer, settings = load_parts(path, dtype, products)
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            model = model.to(device)
        except (RuntimeError, AssertionError) as error:
            raise ModelError(
                f"{path}: cannot be put on device {str(device)!r} ({first_line(error)})"
            ) from None
        self._set(model, tokenizer, settings, max_length, batch_size, prompts)
        if products:
            self.autocast, self.exact = products, path

    @classmethod
    def from_parts(
        cls,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        prompts: Prompts | None = None,
        max_length: int = 1024,
        batch_size: int = 32,
        autocast: torch.dtype | None = None,
    ) -> SearchR3:
        """Wrap a model in memory, such as one in training; `autocast`: precision of its forward passes."""
        self = cls.__new__(cls)
        self._set(model, tokenizer, {}, max_length, batch_size, prompts)
        self.autocast = autocast
        return self

    @classmethod
    def from_base(
        cls,
        path: str | Path,
        dtype: str = "float32",
        prompts: Prompts | str | Path | None = None,
        max_length: int | None = None,
        batch_size: int = 32,
        weights: bool = True,
    ) -> SearchR3:
        """Start from a chat model that may lack the embed token: it is added, see `add_embed_token`.

        Without `weights` it is a float32 model of the same shape on the meta device, see `load_skeleton`.
        """
        model, tokenizer, settings = load_parts(path, dtype) if weights else load_skeleton(path)
        settings.pop("adaptive", None)  # it was chosen for what the model was before it is trained on
        add_embed_token(model, tokenizer)
        self = cls.__new__(cls)
        self._set(model, tokenizer, settings, max_length, batch_size, prompts)
        return self

    def _set(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        settings: dict[str, Any],
        max_length: int | None,
        batch_size: int,
        prompts: Prompts | str | Path | None,
    ) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.conversation = Conversation(
            tokenizer, *wording(settings, prompts, max_length, tokenizer.name_or_path)
        )
        self.batch_size = batch_size
        self.adaptive: Adaptive | None = settings.get("adaptive")

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dimension(self) -> int:
        return self.model.get_input_embeddings().weight.shape[1]

    def generate(
        self,
        batch: Sequence[str],
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        instruction: str | None = None,
        seed: int | None = None,
    ) -> list[Reasoning]:
        """Let the model think about each query. Greedy at temperature 0, sampled above.

        A `seed` makes samples repeatable for the same batch on the same machine; by default they go on with
        the random numbers of the process.
        """
        prompts = self.conversation.reasoning_prompts(_texts(batch, "batch"), instruction)
        with self.precision(), seeded(seed, self.device):
            return reason(
                self.model, self.conversation, prompts, max_new_tokens, temperature, self.batch_size
            )

    def think(
        self,
        queries: Sequence[str],
        max_new_tokens: int = 128,
        instruction: str | None = None,
        dim: int | None = None,
    ) -> tuple[list[Reasoning], np.ndarray]:
        """A greedy thought of each query, and the vector behind it, float32 (n, d), unit length.

        As `generate` and then `encode_query`, but where the architecture is known neither prompt nor thought
        is read a second time.
        """
        texts = _texts(queries, "queries")
        if self.reads_once:
            thoughts, vectors = one_pass(self, texts, max_new_tokens, instruction)
            return thoughts, shorten(vectors, dim)
        thoughts = self.generate(texts, max_new_tokens, 0.0, instruction)
        return thoughts, self.encode_query(texts, thoughts, instruction, dim=dim)

    @property
    def reads_once(self) -> bool:
        """Whether `think` needs one pass alone."""
        return has_one_pass(self)

    def encode_query(
        self,
        queries: Sequence[str],
        reasoning: bool | Literal["auto"] | Sequence[Reasoning] = False,
        instruction: str | None = None,
        samples: int = 1,
        dim: int | None = None,
        max_new_tokens: int = 128,
        progress: Progress | None = None,
        documents: Documents | None = None,
    ) -> np.ndarray:
        """Embed queries, float32 of shape (n, d), unit length.

        Args:
            reasoning: False embeds directly; True thinks first; a list of `generate`'s results uses those;
                "auto" thinks where the direct ranking of `documents` is unsure, see `encode_adaptive`.
            instruction: task instruction, put after the system prompt.
            samples: with `reasoning=True`, the mean of so many sampled thoughts' vectors; at 1 one greedy
                thought.
            dim: keep the first `dim` dimensions (of a model trained for it), again to unit length.
            documents: with `reasoning="auto"`, what will be searched.
        """
        texts = _texts(queries, "queries")
        if samples < 1:
            raise ValueError(f"samples must be at least 1, got {samples}")
        if isinstance(reasoning, str) and reasoning == "auto":
            if samples > 1:
                raise ValueError('samples above 1 needs reasoning=True; "auto" has one thought')
            return self.encode_adaptive(texts, documents, None, instruction, dim, max_new_tokens)[0]
        if reasoning is False:
            return self._encode(self.conversation.queries(texts, instruction), dim, progress)
        if reasoning is True and samples > 1:
            thoughts = [self.generate(texts, max_new_tokens, 1.0, instruction) for _ in range(samples)]
            mean = np.mean([self.encode_query(texts, each, instruction) for each in thoughts], axis=0)
            return shorten(mean, dim)
        if reasoning is True:
            return self.think(texts, max_new_tokens, instruction, dim)[1]
        if isinstance(reasoning, str) or len(reasoning) != len(texts):
            raise ValueError(
                'reasoning must be True, False, "auto", or one Reasoning a query, as generate returns them'
            )
        rendered = self.conversation.reasoned(
            texts, [thought.token_ids for thought in reasoning], instruction
        )
        return self._encode(rendered, dim, progress)

    def encode_adaptive(
        self,
        queries: Sequence[str],
        documents: Documents | None,
        rule: Adaptive | None = None,
        instruction: str | None = None,
        dim: int | None = None,
        max_new_tokens: int = 128,
    ) -> tuple[np.ndarray, list[Reasoning | None]]:
        """Embed queries, thinking first only where the direct ranking is unsure.

        Args:
            documents: what will be searched: vectors (m, d), or a function from query vectors and k to the
                k best scores of each, (n, k), best first.
            rule: default: the model's own, `adaptive`.

        Returns:
            vectors, float32 (n, d), unit length, and the thought of each query, None where it was embedded
            directly.

        Raises:
            ModelError: no rule is known.
            ValueError: no documents are given, or they are not as wide as the vectors.
        """
        rule = known_rule(self, rule)
        if documents is None:
            raise ValueError('reasoning="auto" needs documents=, the vectors of what will be searched')
        texts = _texts(queries, "queries")
        vectors = self.encode_query(texts, instruction=instruction, dim=dim)
        rows = np.flatnonzero(rule.thinks_about(vectors, documents)).tolist()
        said, vectors[rows] = self.think([texts[row] for row in rows], max_new_tokens, instruction, dim)
        thoughts = dict(zip(rows, said, strict=True))
        return vectors, [thoughts.get(row) for row in range(len(texts))]

    def encode_document(
        self, documents: Sequence[str], dim: int | None = None, progress: Progress | None = None
    ) -> np.ndarray:
        """Embed documents, float32 of shape (n, d), unit length. Documents are never reasoned about."""
        return self._encode(self.conversation.documents(_texts(documents, "documents")), dim, progress)

    def reload(self, path: str | Path) -> None:
        """Take over the weights saved at `path`, of the same base, and their rule of adaptive thinking.

        Prompts, length, device, and how weights are held stay. The device never holds both models.
        """
        model, _, settings = load_parts(path, "float32", self.autocast if self.exact else None)
        self.exact = self.exact and path
        device, self.model = self.device, model
        gc.collect()  # what trained the old one is a ring of references, and holds it
        self.model = model.to(device).eval()
        self.adaptive = settings.get("adaptive")

    def digest(self) -> str:
        """A stable name of all that its vectors and greedy thoughts depend on, as the model is now."""
        return model_digest(self.model, self.conversation, self.autocast)

    @staticmethod
    def similarity(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Cosine of every pair of unit vectors, shape (len(a), len(b))."""
        return np.asarray(a) @ np.asarray(b).T

    def save_pretrained(self, path: str | Path, overwrite: bool = False) -> None:
        """Save a Hugging Face folder: safetensors (a LoRA adapter merged), tokenizer, prompts and length."""
        save_parts(path, self.merged(), self.conversation, self.adaptive, overwrite)

    def merged(self) -> PreTrainedModel:
        """The model; of one with a LoRA adapter, a float32 copy in main memory with the adapter merged."""
        return merged(self.model, self.exact)

    @torch.no_grad()
    def encode_rendered(
        self,
        rendered: Sequence[Rendered],
        progress: Progress | None = None,
        batches: Iterable[list[int]] | None = None,
    ) -> np.ndarray:
        """Unit vectors of ready conversations, float32 of shape (n, d), in the given order.

        Args:
            batches: row numbers of each forward; the vectors of rows that none names are 0. By default
                `length_batches` of all.
        """
        vectors = np.zeros((len(rendered), self.dimension), dtype=np.float32)
        done = 0
        with evaluating(self.model), self.precision():
            limits = (self.batch_size, tokens_per_pass(self.device))
            plan = list(length_batches(rendered, *limits) if batches is None else batches)
            shared = rendered if len(plan) > 1 else []
            embedder = Embedder(self.model, padding_id(self.conversation), shared)
            for rows in plan:
                vectors[rows] = embedder([rendered[row] for row in rows]).cpu().numpy()
                done += len(rows)
                if progress:
                    progress(done, len(rendered))
        return vectors

    def _encode(self, rendered: Sequence[Rendered], dim: int | None, progress: Progress | None) -> np.ndarray:
        return shorten(self.encode_rendered(rendered, progress), dim)

    def precision(self) -> contextlib.AbstractContextManager[Any]:
        """Of forward passes: the `autocast` that it was given, if any."""
        return torch.autocast(self.device.type, self.autocast) if self.autocast else contextlib.nullcontext()


def _texts(texts: Sequence[str], name: str) -> list[str]:
    if isinstance(texts, str):
        raise TypeError(f"{name} must be a list of texts, not one text")
    texts = list(texts)
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise TypeError(f"{name}[{number}] must be text, got {type(text).__name__}")
    return texts
