"""Both halves of a model by running vLLM: one server speaks the thoughts, another gives the vectors.

    vllm serve MODEL --port 8000
    vllm serve MODEL --port 8001 --runner pooling

Prompts, positions and cuts are made here, by the model's own tokenizer and prompts; its weights are not
loaded. What travels is token ids, both ways: `prompt` and `input` as lists of ids, to which vLLM adds
nothing, and `token_ids` of what was said (`return_token_ids`, since vLLM 0.10.2). So the vector is read
behind the very ids that were said. The vector is that of the last id, which is vLLM's pooling of a causal
model.

What a checkpoint's own generation config asks for (top-k, a penalty) would become vLLM's default, so each
request sets all of it. It also says what ends a thought: `ignore_eos`, and our own `stop_token_ids`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import httpx2
import numpy as np

from searchr3.adaptive import Adaptive
from searchr3.conversation import Conversation, Prompts, Rendered
from searchr3.endpoint import Endpoint, NoAnswer, address, ask_all, find_key
from searchr3.errors import EndpointError
from searchr3.generation import Reasoning, split_completion
from searchr3.loading import SETTINGS, load_skeleton
from searchr3.vector_endpoint import VectorEndpoint

BATCH = 32  # prompts a request: vLLM batches by itself, this only spares requests
_MENDS = {
    400: "is it vLLM, serving this very model?",
    401: "check the key",
    403: "check what the key may use",
    404: "check the address; a name that the server knows the model by goes behind a #",
}


class Served(NamedTuple):
    """What `http://localhost:8000#name` says: where a server is, and the model's name there, if any."""

    base: str
    name: str

    @classmethod
    def read(cls, text: str) -> Served:
        base, _, name = text.partition("#")
        return cls(base, name)

    def body(self, **asked: Any) -> str:
        return json.dumps(({"model": self.name} if self.name else {}) | asked)


class Said(NamedTuple):
    """One completion: the prompt's ids as the server saw them, and the ids said, the stop included."""

    prompt: list[int] | None
    ids: list[int]


class ThoughtEndpoint(Endpoint[list[Said]]):
    """vLLM's `/v1/completions`, asked with token ids."""

    option = "--url"
    mends: ClassVar[Mapping[int, str]] = _MENDS

    def read(self, response: httpx2.Response) -> list[Said] | str:
        try:
            choices = sorted(response.json()["choices"], key=lambda choice: choice["index"])
            if choices and choices[0].get("token_ids") is None:
                raise EndpointError(
                    f"{self.url}: tells no token ids (return_token_ids); vLLM 0.10.2 or newer is needed"
                )
            if any(choice["finish_reason"] not in ("stop", "length") for choice in choices):
                return f"a thought was broken off: {choices[0]['finish_reason']}"
            return [_said(choice) for choice in choices]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return f"no completion came back: {self.says(response)[:100]}"


class PooledEndpoint(VectorEndpoint):
    """vLLM's `/v1/embeddings`, asked with token ids."""

    option = "--embed-url"
    mends: ClassVar[Mapping[int, str]] = _MENDS | {
        404: f"{_MENDS[404]}; vectors need a server of its own: vllm serve MODEL --runner pooling"
    }


def _said(choice: Mapping[str, Any]) -> Said:
    ids = [int(token) for token in choice["token_ids"]]
    stop = choice.get("stop_reason")
    if isinstance(stop, int) and ids[-1:] != [stop]:
        ids.append(stop)
    prompt = choice.get("prompt_token_ids")
    return Said(None if prompt is None else list(prompt), ids)


class VLLMModel:
    """A model behind vLLM, with the calls of `SearchR3` that an evaluation makes.

    Nothing is kept of it in a cache: nobody knows what stands behind an address tomorrow.

    Args:
        path: folder or Hub id of the model; its tokenizer, prompts and settings are read.
        url: the server that generates, such as `http://localhost:8000`, or `http://localhost:8000#NAME`.
        embed_url: the one in pooling mode; by default the same.
        key_variable: the environment variable with the key; see `find_key`.

    Attributes:
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
        self.speaker, self.reader = Served.read(url), Served.read(embed_url or url)
        self.url = address(self.speaker.base, "/completions", "--url")
        self.embed_url = address(self.reader.base, "/embeddings", "--embed-url" if embed_url else "--url")
        self.key_variable, self.attempts = key_variable, attempts
        find_key(self.url, key_variable)
        skeleton, tokenizer, settings = load_skeleton(path)
        if isinstance(prompts, (str, Path)):
            prompts = Prompts.load(prompts)
        if prompts is None and "prompts" in settings:
            prompts = Prompts.from_dict(settings["prompts"], where=f"{path}/{SETTINGS}")
        self.conversation = Conversation(tokenizer, prompts, max_length or settings.get("max_length") or 1024)
        self.dimension: int = skeleton.config.get_text_config().hidden_size
        self.adaptive: Adaptive | None = settings.get("adaptive")

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
        asked = {
            "max_tokens": max_new_tokens,
            "temperature": temperature,
            "seed": seed,
            "stop_token_ids": self.conversation.stop_ids,
            "ignore_eos": True,  # the end of the turn is one of the stops; others of the checkpoint are not
            "return_token_ids": True,
            **{"n": 1, "top_p": 1.0, "top_k": 0, "min_p": 0.0},
            **{"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0},
        }

        async def ask(endpoint: ThoughtEndpoint, part: Sequence[list[int]]) -> list[Said]:
            said = await endpoint.ask(self.speaker.body(prompt=part, **asked))
            if len(said) != len(part):
                raise NoAnswer(f"{len(said)} thoughts came back for {len(part)} prompts")
            for prompt, one in zip(part, said, strict=True):
                if one.prompt is not None and one.prompt != prompt:
                    raise NoAnswer("the server put other token ids before the thought than it was given")
            return said

        endpoint = ThoughtEndpoint(self.url, find_key(self.url, self.key_variable), attempts=self.attempts)
        found = await self._all(endpoint, prompts, ask)
        return [self._reasoning(one.ids[: max_new_tokens + 1]) for part in found for one in part]

    async def vectors(self, rendered: Sequence[Rendered]) -> np.ndarray:
        """Unit vectors of ready conversations, float32 (n, d), at the embed token, which ends each."""

        async def ask(endpoint: PooledEndpoint, part: Sequence[Rendered]) -> np.ndarray:
            ids = [one.ids[: one.position + 1] for one in part]
            found = await endpoint.ask(self.reader.body(input=ids, encoding_format="base64"))
            if found.shape != (len(part), self.dimension):
                raise NoAnswer(
                    f"{len(found)} vectors of {found.shape[1]} numbers came back where the model has "
                    f"{len(part)} of {self.dimension}; is it this model?"
                )
            return found

        if not rendered:
            return np.zeros((0, self.dimension), dtype=np.float32)
        key = find_key(self.embed_url, self.key_variable)
        endpoint = PooledEndpoint(self.embed_url, key, attempts=self.attempts)
        return np.concatenate(await self._all(endpoint, rendered, ask))

    async def _all(self, endpoint: Any, items: Sequence[Any], ask: Any) -> list[Any]:
        parts = [items[start : start + BATCH] for start in range(0, len(items), BATCH)]
        try:
            async with endpoint:
                return await ask_all(parts, partial(ask, endpoint), endpoint.concurrency)
        except NoAnswer as why:
            raise EndpointError(f"{endpoint.url}: {why}") from None

    def _reasoning(self, completion: Sequence[int]) -> Reasoning:
        thought, emitted = split_completion(completion, self.conversation)
        return Reasoning(self.conversation.thought_text(thought), tuple(thought), emitted)
