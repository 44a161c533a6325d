"""A model behind vLLM. The server is a fake of its protocol: a tiny model in this process answers."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from searchr3.cli import app
from searchr3.conversation import EMBED_TOKEN
from searchr3.errors import EndpointError, ModelError
from searchr3.generation import Reasoning
from searchr3.vllm_backend import BATCH, VLLMModel

TEXTS = [
    "parse the date",
    "x",
    f"holds {EMBED_TOKEN} and <|im_end|>",
    "",
    "count the words " * 60,
    "sort lazily",
]


@pytest.fixture
def fake(search, fake_vllm, monkeypatch):
    """The fake of one model; `search` is the same model here."""
    monkeypatch.setattr("searchr3.endpoint.FIRST_WAIT", 0.01)
    return fake_vllm(search)


@pytest.fixture
def remote(search, fake, chat_server):
    return VLLMModel(search.tokenizer.name_or_path, chat_server.url, attempts=2)


def test_vectors_are_those_of_the_model_itself(search, remote):
    np.testing.assert_allclose(remote.encode_document(TEXTS), search.encode_document(TEXTS), atol=1e-4)
    task = "Find the function."
    for instruction in (None, task):
        given = remote.encode_query(TEXTS, instruction=instruction)
        np.testing.assert_allclose(given, search.encode_query(TEXTS, instruction=instruction), atol=1e-4)
    assert given.dtype == np.float32 and given.shape == (len(TEXTS), remote.dimension)
    assert remote.encode_document([]).shape == (0, remote.dimension)


def test_thoughts_travel_as_ids_and_vectors_are_read_behind_them(search, remote):
    thoughts = remote.generate(TEXTS, max_new_tokens=6)
    assert thoughts == search.generate(TEXTS, max_new_tokens=6)
    expected = search.encode_query(TEXTS, reasoning=thoughts)
    np.testing.assert_allclose(remote.encode_query(TEXTS, reasoning=thoughts), expected, atol=1e-4)
    given = remote.encode_query(TEXTS, reasoning=True, max_new_tokens=6)
    np.testing.assert_allclose(given, expected, atol=1e-4)
    assert remote.generate(["x"], max_new_tokens=0) == [Reasoning("", (), False)]


@pytest.mark.parametrize("told", [True, False])
def test_a_thought_ends_at_the_embed_token_whether_it_is_among_the_ids_or_not(search, remote, fake, told):
    embed = search.conversation.embed_id
    ids = [40, 41, embed] if told else [40, 41]
    fake.changes = {"token_ids": ids, "finish_reason": "stop", "stop_reason": embed}
    (said,) = remote.generate(["x"], max_new_tokens=8)
    assert said.token_ids == (40, 41) and said.emitted
    fake.changes = {
        "token_ids": [40, search.tokenizer.eos_token_id],
        "finish_reason": "stop",
        "stop_reason": None,
    }
    (said,) = remote.generate(["x"], max_new_tokens=8)
    assert said.token_ids == (40,) and not said.emitted


def test_many_are_asked_in_parts_and_answered_in_order(search, remote, chat_server):
    texts = [f"count {number} words" for number in range(2 * BATCH + 5)]
    np.testing.assert_allclose(remote.encode_document(texts), search.encode_document(texts), atol=1e-4)
    assert sorted(len(body["input"]) for body in chat_server.requests) == [5, BATCH, BATCH]


def test_every_setting_of_the_checkpoint_is_overruled(search, remote, chat_server):
    remote.generate(["x"], 3, temperature=0.5, seed=7)
    (body,) = chat_server.requests
    assert {
        key: body[key] for key in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed")
    } == {
        **{"temperature": 0.5, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "seed": 7}
    }
    assert body["stop_token_ids"] == search.conversation.stop_ids
    assert body["prompt"] == search.conversation.reasoning_prompts(["x"]) and "model" not in body


def test_two_servers_and_the_names_that_they_know_the_model_by(search, fake, chat_server):
    url = chat_server.url
    remote = VLLMModel(search.tokenizer.name_or_path, f"{url}#speaker", f"{url}/v1#reader")
    remote.encode_query(["x"], reasoning=True, max_new_tokens=2)
    assert [body["model"] for body in chat_server.requests] == ["speaker", "reader"]
    assert [head["path"] for head in chat_server.heads] == ["/v1/completions", "/v1/embeddings"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"token_ids": None}, "vLLM 0.10.2 or newer"),
        ({"prompt_token_ids": [1, 2, 3]}, "other token ids"),
        ({"finish_reason": "abort"}, "broken off: abort"),
    ],
)
def test_a_server_that_breaks_the_contract_is_refused(remote, fake, changes, says):
    fake.changes = changes
    with pytest.raises(EndpointError, match=says):
        remote.generate(["x"], max_new_tokens=3)


def test_a_server_of_another_model_is_refused(remote, chat_server):
    row = {"index": 0, "embedding": [1.0, 0.0]}
    chat_server.script = lambda number, body: {"json": {"data": [row] * len(body["input"])}}
    with pytest.raises(EndpointError, match="is it this model"):
        remote.encode_document(["x"])
    chat_server.script = lambda number, body: {"status": 404, "json": {"error": {"message": "no such route"}}}
    with pytest.raises(EndpointError, match="runner pooling"):
        remote.encode_document(["x"])


def test_an_address_that_is_none_is_told_before_anything_is_read(tmp_path):
    with pytest.raises(EndpointError, match="--url"):
        VLLMModel(tmp_path, "localhost:8000")
    with pytest.raises(EndpointError, match="--embed-url"):
        VLLMModel(tmp_path, "http://localhost:8000", "ftp://x")
    with pytest.raises(ModelError, match="no config"):
        VLLMModel(tmp_path, "http://localhost:8000")


# -- evaluate


def evaluated(model: Path, data: Path, output: Path, *options: str) -> dict:
    wanted = ["--data", str(data), "--max-new-tokens", "3", "--no-cache", "--output", str(output)]
    result = CliRunner().invoke(app, ["evaluate", str(model), *wanted, *options])
    assert result.exit_code == 0, result.output
    return {run["name"]: run["ndcg@10"] for run in json.loads(output.read_text())["runs"]}


def test_evaluate_gives_the_figures_of_the_model_itself(
    toy, search, fake, chat_server, tmp_path, monkeypatch
):
    monkeypatch.setattr("searchr3.cli.commands.hush_libraries", lambda: None)
    model = search.tokenizer.name_or_path
    toy.save(tmp_path / "toy")
    here = evaluated(model, tmp_path / "toy", tmp_path / "here.json")
    there = evaluated(
        *(model, tmp_path / "toy", tmp_path / "there.json"),
        *("--backend", "vllm", "--url", chat_server.url, "--embed-url", chat_server.url),
    )
    assert there == pytest.approx(here, abs=1e-6) and set(here) == {"direct", "reasoned", "bm25"}


@pytest.mark.parametrize("options", [["--backend", "vllm"], ["--url", "http://localhost:1"]])
def test_the_backend_and_its_address_go_together(tiny_model, options):
    result = CliRunner().invoke(app, ["evaluate", str(tiny_model), "--data", "python", *options])
    assert result.exit_code == 1 and "go together" in result.stderr
