"""The clients that people have: OpenAI's own, LangChain's and LlamaIndex's embeddings."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from searchr3.model import SearchR3
from searchr3.serving.settings import KEYS, read_keys
from searchr3.serving.worker import Worker

from .conftest import KEY, QUERIES

CLOSE = {"atol": 1e-4}


@pytest.fixture(scope="module")
def url(tiny_model: Path) -> Iterator[str]:
    from .conftest import running

    keys = read_keys({KEYS: KEY})
    with running(Worker(SearchR3(tiny_model)), bounds={"keys": keys, "seconds": 120}) as client:
        yield f"{str(client.base_url).rstrip('/')}/v1"


@pytest.fixture(scope="module")
def client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=url, api_key=KEY, max_retries=0)


@pytest.mark.parametrize("form", [{}, {"encoding_format": "float"}])
def test_openai_embeds(client: openai.OpenAI, reference: SearchR3, form: dict[str, Any]) -> None:
    """Without a form it asks for base64 by itself."""
    found = client.embeddings.create(input=QUERIES, model="tiny", dimensions=12, **form)
    expected = reference.encode_document(QUERIES, dim=12)
    np.testing.assert_allclose([one.embedding for one in found.data], expected, **CLOSE)
    assert found.usage.total_tokens == found.usage.prompt_tokens > 0


def test_openai_thinks(client: openai.OpenAI, reference: SearchR3) -> None:
    more = {"reasoning": "on", "max_thinking_tokens": 6, "instruction": "Find code."}
    (found,) = client.embeddings.create(input="parse a date", model="tiny", extra_body=more).data
    (thought,) = reference.generate(["parse a date"], 6, instruction="Find code.")
    expected = reference.encode_query(["parse a date"], [thought], "Find code.")
    np.testing.assert_allclose([found.embedding], expected, **CLOSE)
    assert found.reasoning["text"] == thought.text


def test_openai_chats(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Hello"}],
        "max_completion_tokens": 6,
        "seed": 1,
    }
    whole = client.chat.completions.create(**asked)
    pieces = [one.choices[0] for one in client.chat.completions.create(**asked, stream=True)]
    assert "".join(one.delta.content or "" for one in pieces) == whole.choices[0].message.content
    assert pieces[-1].finish_reason == whole.choices[0].finish_reason


def test_openai_knows_our_errors(client: openai.OpenAI, url: str) -> None:
    with pytest.raises(openai.AuthenticationError, match="no such API key"):
        openai.OpenAI(base_url=url, api_key="wrong", max_retries=0).models.list()
    with pytest.raises(openai.NotFoundError, match="no model 'gpt'"):
        client.embeddings.create(input="x", model="gpt")
    with pytest.raises(openai.UnprocessableEntityError, match="token ids are those of another") as caught:
        client.embeddings.create(input=[[1, 2, 3]], model="tiny")
    assert caught.value.param == "input"
    assert "tiny:think" in [one.id for one in client.models.list()]
    assert client.models.retrieve("tiny:think").id == "tiny:think"
    with pytest.raises(openai.NotFoundError, match="no model 'other' here"):
        client.models.retrieve("other")


def test_langchain_embeds(url: str, reference: SearchR3) -> None:
    from langchain_openai import OpenAIEmbeddings

    def named(model: str) -> OpenAIEmbeddings:
        return OpenAIEmbeddings(model=model, base_url=url, api_key=KEY, check_embedding_ctx_length=False)

    documents = named("tiny").embed_documents(QUERIES)
    np.testing.assert_allclose(documents, reference.encode_document(QUERIES), **CLOSE)
    query = named("tiny:think").embed_query(QUERIES[0])
    np.testing.assert_allclose([query], reference.encode_query(QUERIES[:1], reasoning=True), **CLOSE)


def test_llama_index_embeds(url: str, reference: SearchR3) -> None:
    from llama_index.embeddings.openai_like import OpenAILikeEmbedding

    def named(model: str) -> OpenAILikeEmbedding:
        return OpenAILikeEmbedding(model_name=model, api_base=url, api_key=KEY, max_retries=0)

    documents = named("tiny").get_text_embedding_batch(QUERIES)
    np.testing.assert_allclose(documents, reference.encode_document(QUERIES), **CLOSE)
    query = named("tiny:think").get_query_embedding(QUERIES[0])
    np.testing.assert_allclose([query], reference.encode_query(QUERIES[:1], reasoning=True), **CLOSE)
