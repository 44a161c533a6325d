"""Both halves of a model by running vLLM: one server speaks the thoughts, another gives the vectors.

    vllm serve MODEL --port 8000
    vllm serve MODEL --port 8001 --runner pooling

Prompts, positions and cuts are made here, by the model's own tokenizer and prompts; its weights are not
loaded. What travels is token ids, see `vllm_endpoint.py`: so the vector is read behind the very ids that were
said.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from searchr3.adaptive import Adaptive
from searchr3.conversation import Conversation, Prompts, Rendered
from searchr3.endpoint import Endpoint, NoAnswer, ask_all
from searchr3.errors import EndpointError
from searchr3.generation import Reasoning, context_length, split_completion
from searchr3.loading import load_skeleton, wording
from searchr3.vllm_endpoint import Completed, CompletionEndpoint, PooledEndpoint, Served, sampling

R = TypeVar("R")
T = TypeVar("T")

BATCH = 32  # prompts a request: vLLM batches by itself, this only spares requests


class VLLMModel:
    """A model behind vLLM, with the calls of `SearchR3` that an evaluation makes.

    Nothing is kept of it in a cache: nobody knows what stands behind an address tomorrow.

    Args:
        path: folder or Hub id of the model; its tokenizer, prompts and settings are read.
        url: the server that generates, such as `http://localhost:8000`, or `http://localhost:8000#NAME`.
        embed_url: the one in pooling mode; by default the same.
        key_variable: the environment variable with the key; see `find_key`.

    Attributes:
        context: most positions that the model is made for, where its configuration tells.
        adaptive: the rule of adaptive thinking that lies with the model.

    Raises:
        ModelError: nothing usable at `path`.
        EndpointError: an address or a key is none.
    """

    def __init__(
        self,
        path: str | Path,
        url: str,
        embed_url: str | None = None,
        key_variable: str | None = None,
        prompts: Prompts | str | Path | None = None,
        max_length: int | None = None,
        attempts: int = 7,
    ) -> None:
        self.attempts = attempts
        self._speaks = Served.at(url, "/completions", "--url", key_variable)
        option = "--embed-url" if embed_url else "--url"
        self._reads = Served.at(embed_url or url, "/embeddings", option, key_variable)
        skeleton, tokenizer, settings = load_skeleton(path)
        self.conversation = Conversation(tokenizer, *wording(settings, prompts, max_length, path))
        self.dimension: int = skeleton.config.get_text_config().hidden_size
        self.context = context_length(skeleton)
        self.adaptive: Adaptive | None = settings.get("adaptive")

    def speaker(self, **options: Any) -> CompletionEndpoint:
        """The server that generates, to be entered; `options` as of `Endpoint`."""
        return CompletionEndpoint(self._speaks, **options)

    def reader(self, **options: Any) -> PooledEndpoint:
        """The server that embeds, to be entered."""
        return PooledEndpoint(self._reads, self.dimension, **options)

    def generate(
        self,
        batch: Sequence[str],
        max_new_tokens: int = 128,
        temperature: float = 0.0,
        instruction: str | None = None,
        seed: int | None = None,
    ) -> list[Reasoning]:
        """As `SearchR3.generate`. With a `seed`, equal queries of one call get equal samples.

        Raises:
            EndpointError: the server cannot be used as asked.
        """
        prompts = self.conversation.reasoning_prompts(batch, instruction)
        return asyncio.run(self.thoughts(prompts, max_new_tokens, temperature, seed))

    def encode_query(
        self,
        queries: Sequence[str],
        reasoning: bool | Sequence[Any] = False,
        instruction: str | None = None,
        max_new_tokens: int = 128,
    ) -> np.ndarray:
        """As `SearchR3.encode_query`: float32 (n, d), unit length.

        Raises:
            EndpointError: a server cannot be used as asked.
        """
        texts = list(queries)
        if reasoning is False:
            return asyncio.run(self.vectors(self.conversation.queries(texts, instruction)))
        if reasoning is True:
            reasoning = self.generate(texts, max_new_tokens, instruction=instruction)
        if isinstance(reasoning, str) or len(reasoning) != len(texts):
            raise ValueError(
                "reasoning must be True, False, or one Reasoning a query, as generate returns them"
            )
        thoughts = [list(thought.token_ids) for thought in reasoning]
        return asyncio.run(self.vectors(self.conversation.reasoned(texts, thoughts, instruction)))

    def encode_document(self, documents: Sequence[str]) -> np.ndarray:
        """As `SearchR3.encode_document`."""
        return asyncio.run(self.vectors(self.conversation.documents(list(documents))))

    async def thoughts(
        self,
        prompts: Sequence[list[int]],
        max_new_tokens: int,
        temperature: float = 0.0,
        seed: int | None = None,
    ) -> list[Reasoning]:
        """Reasoning for each prompt, ids of `Conversation.reasoning_prompts`."""
        if max_new_tokens < 1:
            return [Reasoning("", (), False) for _ in prompts]
        asked = sampling(self.conversation.stop_ids, max_new_tokens, temperature, seed)
        endpoint = self.speaker(attempts=self.attempts)

        async def ask(part: Sequence[list[int]]) -> list[Completed]:
            return await endpoint.complete(part, asked)

        found = await _all(endpoint, prompts, ask)
        return [self._reasoning(one.ids[: max_new_tokens + 1]) for part in found for one in part]

    async def vectors(self, rendered: Sequence[Rendered]) -> np.ndarray:
        """Unit vectors of ready conversations, float32 (n, d), at the embed token, which ends each."""
        if not rendered:
            return np.zeros((0, self.dimension), dtype=np.float32)
        endpoint = self.reader(attempts=self.attempts)

        async def ask(part: Sequence[Rendered]) -> np.ndarray:
            return await endpoint.vectors([one.ids[: one.position + 1] for one in part])

        return np.concatenate(await _all(endpoint, rendered, ask))

    def _reasoning(self, completion: Sequence[int]) -> Reasoning:
        thought, emitted = split_completion(completion, self.conversation)
        return Reasoning(self.conversation.thought_text(thought), tuple(thought), emitted)


async def _all(
    endpoint: Endpoint[Any], items: Sequence[T], ask: Callable[[Sequence[T]], Awaitable[R]]
) -> list[R]:
    parts = [items[start : start + BATCH] for start in range(0, len(items), BATCH)]
    try:
        async with endpoint:
            return await ask_all(parts, ask, endpoint.concurrency)
    except NoAnswer as why:
        raise EndpointError(f"{endpoint.url}: {why}") from None
