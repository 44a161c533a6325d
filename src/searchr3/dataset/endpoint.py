"""A server that speaks OpenAI's chat completions.

The protocol is `POST /v1/chat/completions` of OpenAI's API reference, which vLLM, Ollama, llama.cpp and most
providers speak as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import httpx2

from searchr3.endpoint import Endpoint
from searchr3.server_address import address


@dataclass(frozen=True)
class Reply:
    """What the model said.

    Attributes:
        text: the message, as it came.
        finish: `finish_reason`, such as "stop" or "length".
        prompt_tokens, answer_tokens: as the server counts them; 0 where it does not.
    """

    text: str
    finish: str
    prompt_tokens: int = 0
    answer_tokens: int = 0


def chat_url(endpoint: str) -> str:
    """The address of the chat completions of a base address, with or without its version.

    >>> chat_url("http://localhost:8000")
    'http://localhost:8000/v1/chat/completions'

    Raises:
        EndpointError: it is no such address, or holds what may be a key.
    """
    return address(endpoint, "/chat/completions", ChatEndpoint.option)


class ChatEndpoint(Endpoint[Reply]):
    """A chat completions server to ask; `url` as `chat_url` gives it."""

    option = "--endpoint"
    mends: ClassVar[Mapping[int, str]] = {
        400: "see --model, --max-tokens, --temperature and --set",
        401: "check the key",
        402: "add credit to the account",
        403: "check what the key may use",
        404: "check --endpoint and --model",
        422: "see --model, --max-tokens, --temperature and --set",
        429: "add credit to the account",
    }

    def read(self, response: httpx2.Response) -> Reply | str:
        """The answer, or what is wrong with it."""
        try:
            said = response.json()
            (choice, *_) = said["choices"]
            message = choice["message"]
            text, finish = message.get("content") or "", str(choice.get("finish_reason") or "stop")
            if isinstance(text, list):  # in parts, of which some may be thoughts
                text = "".join(part["text"] for part in text if part["type"] == "text")
            usage = said.get("usage") or {}
            tokens = [int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens")]
            refusal = message.get("refusal")
            if not isinstance(text, str):
                raise TypeError
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            return f"no chat completion came back: {self.says(response)[:100]}"
        if self.key and len(self.key.value) >= 16:  # a shorter one may be a word, such as EMPTY
            text = self.key.hide(text)
        if refusal and not text:
            finish = "refusal"
        text, finish = (one.encode("utf-8", "replace").decode() for one in (text, finish))  # half characters
        return Reply(text, finish, *tokens)
