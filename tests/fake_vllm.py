"""A fake of vLLM's API, behind which a model in this process answers: a script of `chat_server.py`."""

import base64
import json
import threading
from collections.abc import Callable, Iterator

from searchr3.conversation import Rendered
from searchr3.generation import generate_ids, seeded
from searchr3.model import SearchR3

# Of vLLM's CompletionRequest and embedding requests, all that we may ask for.
COMPLETION = {
    *("model", "prompt", "max_tokens", "temperature", "top_p", "top_k", "min_p", "n", "seed"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty"),
    *("stop_token_ids", "ignore_eos", "return_token_ids", "stream"),
}
EMBEDDING = {"model", "input", "encoding_format"}


class FakeVLLM:
    """Answers as vLLM does: ids of a list are taken as they are, and a stop is among the ids said."""

    def __init__(self, search: SearchR3):
        self.search = search
        self.changes: dict = {}  # of each choice
        self.after: Callable[[int], object] = lambda place: None  # called after each event of a stream
        self.lock = threading.Lock()

    def __call__(self, number: int, body: dict) -> dict:
        asked = body["prompt"] if "prompt" in body else body["input"]
        rows = [asked] if all(isinstance(token, int) for token in asked) else asked
        if not all(isinstance(token, int) for row in rows for token in row):
            return {"status": 400, "json": {"error": {"message": "not token ids"}}}
        if "input" in body:
            return {"json": self.embed(body, rows)}
        assert set(body) <= COMPLETION and body["return_token_ids"] and body["ignore_eos"]
        if body.get("stream"):
            return {"events": self.stream(body, *rows)}
        choices = [self.choice(index, row, body) for index, row in enumerate(rows)]
        return {"json": {"object": "text_completion", "choices": choices[::-1]}}

    def choice(self, index: int, prompt: list[int], body: dict) -> dict:
        with self.lock, seeded(body["seed"], self.search.device):
            (ids,) = generate_ids(
                *(self.search.model, self.search.conversation, [prompt]),
                *(body["max_tokens"], body["temperature"], body["stop_token_ids"]),
            )
            text = self.search.tokenizer.decode(ids, skip_special_tokens=True)
        stopped = ids[-1] in body["stop_token_ids"]
        choice = {
            "index": index,
            "text": text,
            "finish_reason": "stop" if stopped else "length",
            "stop_reason": ids[-1] if stopped else None,
            "token_ids": ids,
            "prompt_token_ids": prompt,
        }
        return choice | self.changes

    def stream(self, body: dict, prompt: list[int]) -> Iterator[str]:
        """Events of one, two, one, two … ids; the prompt's are in the first, the reason in the last."""
        whole = self.choice(0, prompt, body)
        first, ids = {"prompt_token_ids": whole["prompt_token_ids"]}, whole["token_ids"]
        parts = [None] if ids is None else []
        while ids:
            parts.append(ids[: 1 + len(parts) % 2])
            ids = ids[len(parts[-1]) :]
        for place, part in enumerate(parts):
            last = place == len(parts) - 1
            why = {name: whole[name] if last else None for name in ("finish_reason", "stop_reason")}
            yield json.dumps({"choices": [{"index": 0, "text": "?", "token_ids": part, **why, **first}]})
            first = {}
            self.after(place)
        yield json.dumps({"choices": [], "usage": {}})
        yield "[DONE]"

    def embed(self, body: dict, rows: list[list[int]]) -> dict:
        assert set(body) <= EMBEDDING
        with self.lock:
            vectors = self.search.encode_rendered([Rendered(row, len(row) - 1, 0) for row in rows])
        packed = [base64.b64encode((3 * vector).astype("<f4").tobytes()).decode() for vector in vectors]
        return {"data": [{"index": i, "embedding": one} for i, one in enumerate(packed)][::-1]}
