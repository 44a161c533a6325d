"""vLLM's HTTP API, asked with token ids: `/v1/completions` says what follows, `/v1/embeddings` gives vectors.

What travels is token ids, both ways: `prompt` and `input` as lists of ids, to which vLLM adds nothing, and
`token_ids` of what was said (`return_token_ids`, since vLLM 0.10.2; in a stream each event has the new ones).

What a checkpoint's own generation config asks for (top-k, a penalty) would become vLLM's default, so each
request sets all of it. It also says what ends a completion: `ignore_eos`, and our own `stop_token_ids`.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, ClassVar, NamedTuple

import httpx2
import numpy as np

from searchr3.endpoint import Endpoint, NoAnswer
from searchr3.errors import EndpointError
from searchr3.server_address import Key, address, find_key
from searchr3.vector_endpoint import VectorEndpoint

_MENDS = {
    400: "is it vLLM, serving this very model?",
    401: "check the key",
    403: "check what the key may use",
    404: "check the address; a name that the server knows the model by goes behind a #",
}


class Served(NamedTuple):
    """What `http://localhost:8000#name` says: where a server is, and the model's name there, if any."""

    url: str
    name: str
    key: Key | None

    @classmethod
    def at(cls, text: str, path: str, option: str, key_variable: str | None) -> Served:
        """That of `path`, such as "/completions".

        Raises:
            EndpointError: the address or the key is none; `option` is where the user gave it.
        """
        base, _, name = text.partition("#")
        url = address(base, path, option)
        return cls(url, name, find_key(url, key_variable))

    def body(self, **asked: Any) -> str:
        return json.dumps(({"model": self.name} if self.name else {}) | asked)


class Completed(NamedTuple):
    """One completion, or the next piece of one.

    Attributes:
        prompt: its ids as the server saw them, where it tells.
        ids: those said, the stop included.
        ended: nothing more comes.
    """

    prompt: list[int] | None
    ids: list[int]
    ended: bool = True


def sampling(
    stop_ids: Sequence[int], max_new_tokens: int, temperature: float, seed: int | None
) -> dict[str, Any]:
    """How completions are made: from the full distribution, until one of `stop_ids` is said."""
    return {
        "max_tokens": max_new_tokens,
        "temperature": temperature,
        "seed": seed,
        "stop_token_ids": list(stop_ids),
        "ignore_eos": True,  # the end of the turn is one of the stops; others of the checkpoint are not
        "return_token_ids": True,
        **{"n": 1, "top_p": 1.0, "top_k": 0, "min_p": 0.0},
        **{"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0},
    }


class CompletionEndpoint(Endpoint[list[Completed]]):
    """vLLM's `/v1/completions`; see `sampling` for `asked`. `options` are those of `Endpoint`."""

    option = "--url"
    mends: ClassVar[Mapping[int, str]] = _MENDS

    def __init__(self, served: Served, **options: Any) -> None:
        super().__init__(served.url, served.key, **options)
        self.served = served

    async def complete(self, prompts: Sequence[list[int]], asked: Mapping[str, Any]) -> list[Completed]:
        """What is said after each prompt, by one request.

        Raises:
            NoAnswer: the server does not answer this.
            EndpointError: it answers none, or what is no answer to what it was given.
        """
        found = await self.ask(self.served.body(prompt=prompts, **asked))
        if len(found) != len(prompts):
            raise EndpointError(f"{self.url}: {len(found)} thoughts came back for {len(prompts)} prompts")
        for prompt, one in zip(prompts, found, strict=True):
            self._check(prompt, one)
        return found

    async def complete_slowly(
        self, prompt: list[int], asked: Mapping[str, Any]
    ) -> AsyncGenerator[list[int], None]:
        """The ids that are said after a prompt, piece by piece, the stop included. Raises as `complete`."""
        ended = False
        async with aclosing(self.stream(self.served.body(prompt=prompt, stream=True, **asked))) as events:
            async for data in events:
                for piece in self._pieces(data) if data != "[DONE]" else []:
                    self._check(prompt, piece)
                    ended = ended or piece.ended
                    yield piece.ids
        if not ended:
            raise NoAnswer("the answer broke off")

    def read(self, response: httpx2.Response) -> list[Completed] | str:
        try:
            choices = sorted(response.json()["choices"], key=lambda choice: choice["index"])
            return [self._completed(choice) for choice in choices]
        except NoAnswer as why:
            return str(why)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            said = "" if "choices" in response.text else f": {self.says(response)[:100]}"
            return f"no completion came back{said}"

    def _pieces(self, data: str) -> list[Completed]:
        try:
            event = json.loads(data)
            if "error" in event:
                raise NoAnswer("the server failed at this")
            return [self._completed(choice) for choice in event["choices"]]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise NoAnswer("no piece of a completion came") from None

    def _completed(self, choice: Mapping[str, Any]) -> Completed:
        if choice.get("token_ids") is None:
            raise EndpointError(
                f"{self.url}: tells no token ids (return_token_ids); vLLM 0.10.2 or newer is needed"
            )
        why = choice.get("finish_reason")
        if why not in (None, "stop", "length"):
            raise NoAnswer(f"a thought was broken off: {why}")
        ids = [int(token) for token in choice["token_ids"]]
        stop = choice.get("stop_reason")
        if isinstance(stop, int) and ids[-1:] != [stop]:
            ids.append(stop)
        prompt = choice.get("prompt_token_ids")
        return Completed(None if prompt is None else list(prompt), ids, why is not None)

    def _check(self, prompt: list[int], one: Completed) -> None:
        if one.prompt is not None and one.prompt != prompt:
            raise EndpointError(
                f"{self.url}: the server put other token ids before the thought than it was given"
            )


class PooledEndpoint(VectorEndpoint):
    """vLLM's `/v1/embeddings`; the vector is that of the last id, which is its pooling of a causal model."""

    option = "--embed-url"
    mends: ClassVar[Mapping[int, str]] = _MENDS | {
        404: f"{_MENDS[404]}; vectors need a server of its own: vllm serve MODEL --runner pooling"
    }

    def __init__(self, served: Served, dimension: int, **options: Any) -> None:
        super().__init__(served.url, served.key, **options)
        self.served, self.dimension = served, dimension

    async def vectors(self, rows: Sequence[list[int]]) -> np.ndarray:
        """Unit vectors behind the last id of each row, float32 (n, d), by one request.

        Raises:
            NoAnswer: the server does not answer this.
            EndpointError: it answers none, or with vectors of another model.
        """
        found = await self.ask(self.served.body(input=rows, encoding_format="base64"))
        if found.shape != (len(rows), self.dimension):
            raise EndpointError(
                f"{self.url}: {len(found)} vectors of {found.shape[1]} numbers came back where the model has "
                f"{len(rows)} of {self.dimension}; is it this model?"
            )
        return found


async def fault(endpoint: CompletionEndpoint | PooledEndpoint, seconds: float = 5.0) -> str | None:
    """What keeps a server from answering, by its list of models; None if nothing does. Tells no address."""
    served = endpoint.served
    try:
        response = await endpoint.get(f"{served.url.rpartition('/')[0]}/models", seconds)
        if not response.is_success:
            return f"answers {response.status_code}"
        names = [one["id"] for one in response.json()["data"]]
    except NoAnswer:
        return "does not answer"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return "does not speak this API"
    return None if not served.name or served.name in names else "does not know the model by its name"
