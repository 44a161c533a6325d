"""The routes: the same vectors as in Python, OpenAI's shapes, and what is refused."""

import base64
import json
from collections.abc import Callable
from typing import Any

import httpx2
import numpy as np
import pytest
from fastapi.exceptions import RequestValidationError

from searchr3.embedding import shorten
from searchr3.generation import generate_ids
from searchr3.model import SearchR3

from .conftest import QUERIES, Doubt, Patient, Shelf, streamed

CODE = ["def parse(date): return date", "sort a list <|embed_token|>", ""]


def ask(client: httpx2.Client, path: str, status: int = 200, /, **body: Any) -> Any:
    response = client.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
    assert response.status_code == status, response.text
    return response.json()


def embed(client: httpx2.Client, input: Any, model: str = "tiny", **more: Any) -> np.ndarray:
    found = ask(client, "/v1/embeddings", input=input, model=model, **more)
    assert [one["index"] for one in found["data"]] == list(range(len(found["data"])))
    return np.array([one["embedding"] for one in found["data"]], dtype=np.float32)


def fault(client: httpx2.Client, status: int, path: str, body: dict[str, Any]) -> tuple[str, str | None]:
    error = ask(client, path, status, **body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error["message"], error["param"]


# -- embeddings


def test_vectors_are_those_of_python(tiny: httpx2.Client, reference: SearchR3) -> None:
    close = {"atol": 1e-4}
    documents, queries = reference.encode_document(CODE), reference.encode_query(QUERIES)
    np.testing.assert_allclose(embed(tiny, CODE), documents, **close)
    np.testing.assert_allclose(embed(tiny, CODE[0]), documents[:1], **close)
    np.testing.assert_allclose(embed(tiny, QUERIES, input_type="query"), queries, **close)
    np.testing.assert_allclose(embed(tiny, QUERIES, dimensions=8), shorten(queries, 8), **close)
    task = {"instruction": "Find code."}
    np.testing.assert_allclose(
        embed(tiny, QUERIES, "tiny:query", **task), reference.encode_query(QUERIES, **task), **close
    )
    found = reference.encode_query(QUERIES, reasoning=True, max_new_tokens=7, **task)
    np.testing.assert_allclose(
        embed(tiny, QUERIES, "tiny:think", max_thinking_tokens=7, **task), found, **close
    )
    whole = reference.encode_query(QUERIES[:2], reasoning=True)
    np.testing.assert_allclose(embed(tiny, QUERIES[:2], reasoning="on"), whole, **close)


def test_base64_is_the_same_float32(tiny: httpx2.Client) -> None:
    found = ask(tiny, "/v1/embeddings", input=CODE, model="tiny", encoding_format="base64", dimensions=9)
    vectors = [np.frombuffer(base64.b64decode(one["embedding"]), "<f4") for one in found["data"]]
    np.testing.assert_allclose(vectors, embed(tiny, CODE, dimensions=9), atol=1e-6)


def test_an_answer_tells_thoughts_and_tokens(tiny: httpx2.Client, reference: SearchR3) -> None:
    found = ask(
        tiny, "/v1/embeddings", input=QUERIES[:2], model="tiny:think", max_thinking_tokens=5, user="u"
    )
    thoughts = reference.generate(QUERIES[:2], 5)
    for one, thought in zip(found["data"], thoughts, strict=True):
        assert one["reasoning"] == {
            "text": thought.text,
            "tokens": len(thought.token_ids),
            "emitted": thought.emitted,
        }
    read = sum(len(ids) for ids in reference.conversation.reasoning_prompts(QUERIES[:2]))
    said = sum(len(thought.token_ids) for thought in thoughts)
    assert found["usage"] == {"prompt_tokens": read, "completion_tokens": said, "total_tokens": read + said}
    plain = ask(tiny, "/v1/embeddings", input="x", model="tiny")
    assert "reasoning" not in plain["data"][0] and "completion_tokens" not in plain["usage"]


def test_a_thought_streams_with_the_vector_at_the_end(tiny: httpx2.Client) -> None:
    body = {"input": "parse a date", "model": "tiny:think", "max_thinking_tokens": 9}
    plain = ask(tiny, "/v1/embeddings", **body)
    with tiny.stream("POST", "/v1/embeddings", json={**body, "stream": True}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        *pieces, (name, last) = streamed(response.read().decode())
    assert {kind for kind, _ in pieces} == {"reasoning"} and name == "embedding"
    assert (
        "".join(json.loads(data)["text"] for _, data in pieces).strip()
        == plain["data"][0]["reasoning"]["text"]
    )
    np.testing.assert_allclose(
        json.loads(last)["data"][0]["embedding"], plain["data"][0]["embedding"], atol=1e-5
    )


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"input": [[1, 2]]}, "input", "token ids are those of another model's tokenizer; send texts"),
        ({"input": [1, 2]}, "input", "check_embedding_ctx_length=False"),
        ({"input": []}, "input", "at least 1 item"),
        ({"input": {"a": 1}}, "input", "send a text or a list of texts"),
        ({"input": ["a", "half \ud800"]}, "input", "half a character"),
        ({}, "input", "required"),
        ({"input": "x", "reasonning": "on"}, "reasonning", "not permitted"),
        ({"input": "x", "dimensions": 33}, "dimensions", "dimensions: must be at most 32"),
        ({"input": "x", "dimensions": "4"}, "dimensions", "valid integer"),
        ({"input": "x", "dimensions": True}, "dimensions", "valid integer"),
        ({"input": "x", "stream": "yes"}, "stream", "valid boolean"),
        ({"input": "x", "dimensions": 0}, "dimensions", "greater than"),
        ({"input": "x", "encoding_format": "hex"}, "encoding_format", "'float' or 'base64'"),
        ({"input": "x", "reasoning": "on", "input_type": "document"}, "reasoning", "never thought about"),
        (
            {"input": "x", "instruction": "i", "input_type": "document"},
            "instruction",
            "send input_type query",
        ),
        ({"input": "x", "model": "tiny:think", "reasoning": "off"}, "model", "says otherwise"),
        ({"input": "x", "reasoning": "auto"}, "reasoning", "the model has no rule for it; send on or off"),
        (
            {"input": "x", "reasoning": "on", "max_thinking_tokens": 1025},
            "max_thinking_tokens",
            "at most 1024",
        ),
        ({"input": ["x", "y"], "stream": True}, "input", "a stream is of one input, got 2"),
        ({"input": ["x"] * 2049}, "input", "2049 texts, the most is 2048"),
        ({"input": "x" * 6401}, "input", "a text of 6401 characters, the most is 6400"),
        ({"input": "word " * 300}, None, "input[0] has"),
        ({"input": "word " * 300, "reasoning": "on", "stream": True}, None, "the most is 200; split it"),
    ],
)
def test_what_embeddings_refuse(
    tiny: httpx2.Client, body: dict[str, Any], param: str | None, message: str
) -> None:
    told, place = fault(tiny, 422, "/v1/embeddings", {"model": "tiny", **body})
    assert message in told and (place or "").split(".")[0] == (param or "")
    assert "\n" not in told and "word word" not in told


def test_another_model_is_not_found(tiny: httpx2.Client) -> None:
    for path, body in (
        ("embeddings", {"input": "x"}),
        ("chat/completions", {"messages": [{"role": "user", "content": "x"}]}),
    ):
        told, place = fault(tiny, 404, f"/v1/{path}", {"model": "text-embedding-3-small", **body})
        assert place == "model" and "it is 'tiny', also with :document, :query, :think, :auto" in told
    names = [one["id"] for one in tiny.get("/v1/models").json()["data"]]
    assert names == ["tiny", "tiny:document", "tiny:query", "tiny:think", "tiny:auto"]


# -- chat


ROLES = ["system", "user", "assistant", "user"]


def turns(*contents: str) -> list[dict[str, str]]:
    return [{"role": role, "content": text} for role, text in zip(ROLES, contents, strict=False)]


def test_chat_continues_the_turns(tiny: httpx2.Client, reference: SearchR3) -> None:
    messages = turns("Be brief.", "Hello", "Yes?", "Go on")
    asked = {"model": "tiny", "messages": messages, "temperature": 0, "max_tokens": 6}
    found = ask(tiny, "/v1/chat/completions", **asked)
    prompt = reference.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)[
        "input_ids"
    ]

    eos = reference.tokenizer.eos_token_id
    (ids,) = generate_ids(
        reference.model, reference.conversation, [prompt], 6, stop_ids=[eos, reference.conversation.embed_id]
    )
    stopped = ids[-1] in (eos, reference.conversation.embed_id)
    (choice,) = found["choices"]
    assert choice["message"]["content"] == reference.tokenizer.decode(ids, skip_special_tokens=True)
    assert choice["finish_reason"] == ("stop" if stopped else "length")
    assert found["usage"]["prompt_tokens"] == len(prompt)
    parts = [
        {
            "role": one["role"].replace("system", "developer"),
            "content": [{"type": "text", "text": one["content"]}],
        }
        for one in messages
    ]
    assert ask(tiny, "/v1/chat/completions", **{**asked, "messages": parts})["choices"] == found["choices"]


def test_a_chat_streams_as_openai_does(tiny: httpx2.Client) -> None:
    asked = {"model": "tiny", "messages": turns("Be brief.", "Hello"), "seed": 5, "max_completion_tokens": 8}
    plain = ask(tiny, "/v1/chat/completions", **asked)
    options = {"stream": True, "stream_options": {"include_usage": True}}
    *events, usage, done = streamed(tiny.post("/v1/chat/completions", json={**asked, **options}).text)
    assert done == (None, "[DONE]") and json.loads(usage[1])["usage"] == plain["usage"]
    chunks = [json.loads(data)["choices"][0] for _, data in events]
    assert chunks[0]["delta"]["role"] == "assistant"
    assert (
        "".join(one["delta"].get("content", "") for one in chunks)
        == plain["choices"][0]["message"]["content"]
    )
    assert [one["finish_reason"] for one in chunks][-1] == plain["choices"][0]["finish_reason"]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages",
        ),
        ({"n": 2}, "n"),
        ({"stop": ["\n"]}, "stop"),
        ({"temperature": 3}, "temperature"),
        ({"max_tokens": 1025}, "max_tokens"),
        ({"max_completion_tokens": 1025}, "max_completion_tokens"),
        ({"tools": []}, "tools"),
        ({"messages": [{"role": "user", "content": "word " * 300}]}, ""),
    ],
)
def test_what_chat_refuses(tiny: httpx2.Client, body: dict[str, Any], param: str) -> None:
    _, place = fault(
        tiny, 422, "/v1/chat/completions", {"model": "tiny", "messages": turns("a", "b"), **body}
    )
    assert (place or "").startswith(param)


# -- search


def test_a_search_finds_and_tells(serving: Callable[..., Any], patient: Patient) -> None:
    patient.go.set()
    with serving(patient, searcher=Shelf()) as client:
        found = ask(client, "/search", query="what", k=2)
        assert found["reasoning"] == {"text": "first ", "tokens": 1, "emitted": True}
        assert [hit["document_id"] for hit in found["hits"]] == ["d1", "d0"]
        assert found["hits"][0] == {
            "rank": 1,
            "score": 1.0,
            "document_id": "d1",
            "title": "<b>",
            "snippet": "first ?",
            "metadata": {"line": "3"},
            "marks": [[0, 5]],
        }
        assert set(found["seconds"]) == {"embedding", "search"}
        direct = ask(client, "/search", query="what", reasoning="off")
        assert direct["reasoning"] is None and direct["hits"][0]["document_id"] == "d0"
        assert direct["hits"][0]["marks"] == []
        events = streamed(client.post("/search", json={"query": "what", "k": 2, "stream": True}).text)
        assert events[0] == ("reasoning", '{"text":"first "}')
        last = json.loads(events[1][1])
        assert events[1][0] == "answer" and last["hits"] == found["hits"]
        for body, param, message in [
            ({"query": " "}, "query", "is blank"),
            ({"query": "x", "k": 101}, "k", "k: Input should be less than or equal to 100"),
            ({"query": "x", "types": ["md"]}, None, "no types here"),
            ({"query": "x", "reasoning": "auto"}, "reasoning", "has no rule"),
            ({"query": "refuse"}, None, "no"),
        ]:
            told, place = fault(client, 422, "/search", body)
            assert message in told and place == param


@pytest.mark.parametrize("stream", [False, True])
def test_a_search_that_cannot_be_is_refused_before_anything_is_thought(
    serving: Callable[..., Any], patient: Patient, stream: bool
) -> None:
    with serving(patient, searcher=Shelf()) as client:
        told, _ = fault(client, 422, "/search", {"query": "x", "types": ["md"], "stream": stream})
        assert told == "no types here" and patient.entered == 0


def test_without_documents_there_is_nothing_to_search(tiny: httpx2.Client) -> None:
    for more in ({}, {"stream": True}):
        told, _ = fault(tiny, 404, "/search", {"query": "x", **more})
        assert "start it with" in told


@pytest.mark.parametrize("thinks", [True, False])
def test_auto_thinks_where_the_rule_says_so(
    serving: Callable[..., Any], patient: Patient, thinks: bool
) -> None:
    patient.go.set()
    shelf = Shelf()
    if not thinks:
        shelf.scores = lambda vectors, *_, **__: np.zeros((len(vectors), 3))  # type: ignore[method-assign]
    with serving(patient, searcher=shelf, rule=Doubt()) as client:
        found = ask(client, "/v1/embeddings", input=["a", "b"], model="tiny:auto")
        assert [("reasoning" in one) for one in found["data"]] == [thinks] * 2
        assert [one["embedding"].index(1) for one in found["data"]] == [int(thinks)] * 2
        for more in ({}, {"stream": True}):
            text = client.post("/search", json={"query": "q", "reasoning": "auto", **more}).text
            assert ('"emitted"' in text) is thinks


# -- the rest


def test_health_metrics_and_pages(tiny: httpx2.Client) -> None:
    health = tiny.get("/health").json()
    assert (health["filters"], health["auto"]) == (False, False)
    assert health["ready"] and (health["model"], health["dimension"], health["documents"]) == (
        "tiny",
        32,
        None,
    )
    assert tiny.get("/health/live").json() == {"live": True}
    ask(tiny, "/v1/embeddings", input="x", model="tiny:think", max_thinking_tokens=3)
    lines = dict(line.rsplit(" ", 1) for line in tiny.get("/metrics").text.splitlines() if line[0] != "#")
    assert float(lines['searchr3_requests_total{route="/v1/embeddings",status="200"}']) >= 1
    assert float(lines['searchr3_said_tokens_total{what="thinking"}']) >= 1
    assert float(lines["searchr3_active_requests"]) == 0 and float(lines["searchr3_steps_total"]) >= 1
    page = tiny.get("/docs")
    assert "/v1/embeddings" in page.text and "EmbeddingRequest" in page.text and "<script" not in page.text
    assert "style-src 'sha256-" in page.headers["content-security-policy"]
    assert "or events: &#34;reasoning&#34;" in page.text
    assert tiny.get("/openapi.json").json()["openapi"].startswith("3.")
    assert "HTTPValidationError" not in page.text  # every error is of one form


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nowhere", 404), ("GET", "/../etc/passwd", 404), ("GET", "/search", 405)],
)
def test_what_there_is_not(tiny: httpx2.Client, method: str, path: str, status: int) -> None:
    response = tiny.request(method, path)
    assert response.status_code == status and set(response.json()) == {"error"}


@pytest.mark.parametrize("path", ["/", "/health", "/v1/models"])
def test_a_head_is_that_of_a_get(tiny: httpx2.Client, path: str) -> None:
    head, whole = tiny.head(path), tiny.get(path)
    assert head.status_code == 200 and not head.content
    assert head.headers["content-length"] == whole.headers["content-length"]


@pytest.mark.parametrize(
    ("body", "kind", "status", "words"),
    [
        (b"{", "application/json", 400, "the body is no JSON: Expecting property name"),
        (b"", "application/json", 422, "send a JSON object, with the header Content-Type: application/json"),
        (b"[]", "application/json", 422, "send a JSON object"),
        (b'{"input": "x"}', "application/x-www-form-urlencoded", 422, "send a JSON object"),
    ],
)
def test_what_is_no_json_is_told_so(
    tiny: httpx2.Client, body: bytes, kind: str, status: int, words: str
) -> None:
    response = tiny.post("/v1/embeddings", content=body, headers={"Content-Type": kind})
    error = response.json()["error"]
    assert response.status_code == status and words in error["message"] and error["param"] is None


MANY = ",".join(f'"k{number}":1' for number in range(20_000))
FAULTY = [
    ("/v1/embeddings", f'{{"model":"tiny","input":["x"{",1" * 20_000}]}}'),
    ("/v1/embeddings", f'{{"model":"tiny","input":"x",{MANY}}}'),
    (
        "/v1/chat/completions",
        '{"model":"tiny","messages":[{"role":"user","content":[%s1]}]}' % ("1," * 20_000),
    ),
    ("/search", f'{{"query":"x","reasoning":{{{MANY}}},{MANY}}}'),
]


@pytest.mark.parametrize(("path", "body"), FAULTY)
def test_a_request_that_is_wrong_throughout_costs_as_one_that_is_wrong_once(
    tiny: httpx2.Client, monkeypatch: pytest.MonkeyPatch, path: str, body: str
) -> None:
    """A fault is some hundred bytes of error each; a body of 8 MB has room for millions."""
    counts: list[int] = []
    real = RequestValidationError.__init__

    def counted(self: Any, errors: Any, **more: Any) -> None:
        counts.append(len(errors))
        real(self, errors, **more)

    monkeypatch.setattr(RequestValidationError, "__init__", counted)
    response = tiny.post(path, content=body.encode(), headers={"content-type": "application/json"})
    assert response.status_code == 422 and counts == [1]


@pytest.mark.parametrize("body", [b"", b"{", b"[" * 100_000, b"\xff", b'{"input": ' + b"9" * 5000 + b"}"])
def test_what_is_no_json(tiny: httpx2.Client, body: bytes) -> None:
    response = tiny.post("/v1/embeddings", content=body, headers={"content-type": "application/json"})
    assert response.status_code in (400, 422) and set(response.json()) == {"error"}
