"""A served embedding model as a baseline: the protocol, patience, one-line errors, and rewrite-then-embed."""

from __future__ import annotations

import socket

import numpy as np
import pytest

from searchr3.errors import EndpointError, ModelError, SearchR3Error
from searchr3.evaluation import check_baselines, evaluate
from searchr3.evaluation.baselines import rewritten
from searchr3.evaluation.cache import Cache
from searchr3.evaluation.embedding_endpoint import PROBE, ServedModel, Spec

SECRET = "sk-very-secret-0123456789"
TEXTS = [f"red {'green ' * (n % 5)}blue {n}" for n in range(70)]


def served(server, **options):
    return ServedModel(f"{server.url}/v1#bag", **options)


def broken_first(server, *answers):
    """The server gives these answers, then good ones."""
    server.script = lambda n, body: answers[n] if n < len(answers) else server.good(n, body)


def test_vectors_come_in_order_of_unit_length_and_in_batches(embedding_server, model):
    vectors = served(embedding_server).encode_document(TEXTS)
    np.testing.assert_allclose(vectors, model.vectors(TEXTS), atol=1e-6)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    assert sorted(len(body["input"]) for body in embedding_server.requests) == [6, 32, 32]
    assert {body["model"] for body in embedding_server.requests} == {"bag"}
    assert {head["path"] for head in embedding_server.heads} == {"/v1/embeddings"}


def test_the_key_goes_with_every_request(embedding_server, monkeypatch):
    monkeypatch.setenv("BOX_KEY", SECRET)
    served(embedding_server, key_variable="BOX_KEY").encode_query(["red"])
    assert embedding_server.heads[0]["authorization"] == f"Bearer {SECRET}"


@pytest.mark.parametrize(
    "trouble",
    [
        {"status": 503},
        {"drop": True},
        {"text": "<html>"},
        {"json": {"data": [{"index": 1, "embedding": [1.0]}]}},
        {"json": {"data": [{"index": 0, "embedding": "not base64"}]}},
        {"json": {"data": [{"index": 0, "embedding": [float("nan")]}]}},
    ],
    ids=str,
)
def test_what_may_pass_is_asked_again(embedding_server, model, trouble):
    broken_first(embedding_server, trouble)
    np.testing.assert_allclose(served(embedding_server).encode_query(["red"]), model.vectors(["red"]))
    assert len(embedding_server.requests) == 2


def test_what_never_passes_is_one_line(embedding_server):
    embedding_server.script = lambda *_: {"json": {"error": {"message": "overloaded"}}}
    with pytest.raises(EndpointError, match=r"model bag: no embeddings came back: overloaded \(2 attempts\)"):
        served(embedding_server, attempts=2).encode_query(["red"])
    embedding_server.script = lambda n, body: embedding_server.good(n, {**body, "input": ["red"]})
    with pytest.raises(EndpointError, match="1 vectors came back for 2 texts"):
        served(embedding_server).encode_query(["red", "blue"])


def test_a_key_or_name_that_is_wrong_is_told_once(embedding_server, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", SECRET)
    for status, mend in ((401, "check the key in OPENAI_API_KEY"), (404, "--baseline URL#MODEL")):
        embedding_server.requests.clear()
        embedding_server.script = lambda *_, status=status: {"status": status, "json": {"error": SECRET}}
        with pytest.raises(EndpointError, match=mend) as error:
            served(embedding_server).encode_document(TEXTS)
        assert SECRET not in str(error.value)
        assert len(embedding_server.requests) == 1


def test_a_server_that_is_not_there():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(EndpointError, match=r"cannot be reached.*--baseline"):
        ServedModel(f"http://127.0.0.1:{port}#m").encode_query(["red"])


def test_texts_that_are_too_long_are_cut_and_counted(embedding_server, model):
    def short_sighted(number, body):
        if max(map(len, body["input"])) > 100:
            says = {"message": "This model's maximum context length is 25 tokens"}
            return {"status": 400, "json": {"error": says}}
        return embedding_server.good(number, body)

    embedding_server.script = short_sighted
    long = "red " * 40
    texts = [*TEXTS[:5], long, *TEXTS[5:9]]
    rival = served(embedding_server)
    vectors = rival.encode_document(texts)
    np.testing.assert_allclose(vectors, model.vectors([*TEXTS[:5], long[:80], *TEXTS[5:9]]), atol=1e-6)
    assert rival.shortened == {hash(long)}


def test_what_was_cut_is_told_again_from_the_cache(embedding_server, model, data, tmp_path):
    def short_sighted(number, body):
        if max(map(len, body["input"])) > most:
            says = {"message": "This model's maximum context length is 25 tokens"}
            return {"status": 400, "json": {"error": says}}
        return embedding_server.good(number, body)

    most = sorted(len(one.content) for one in data.corpus.values())[-3] - 1
    long = {one.content for one in data.corpus.values() if len(one.content) > most}
    long |= {
        one.text for key, one in data.queries.items() if len(one.text) > most and key in data.qrels["test"]
    }
    embedding_server.script = short_sighted
    spec = f"{embedding_server.url}#bag"
    runs, requests = [], []
    for _ in range(2):
        with Cache(tmp_path) as cache:
            runs.append(evaluate(model, data, reasoning="off", baselines=(spec,), cache=cache).run(spec))
        requests.append(len(embedding_server.requests))
    first, again = runs
    asked = [text for body in embedding_server.requests[requests[0] :] for text in body["input"]]
    assert asked and all(PROBE.startswith(text) for text in asked)  # all else came from the cache
    assert first.setting == f"{len(long)} texts were too long for the server and cut"
    assert (again.setting, again.values) == (first.setting, first.values)
    assert np.array_equal(again.query_vectors, first.query_vectors)


def test_another_model_behind_the_name_is_not_mistaken_for_the_one_that_was_kept(
    embedding_server, model, data, tmp_path
):
    spec = f"{embedding_server.url}#bag"

    def found():
        with Cache(tmp_path) as cache:
            return evaluate(model, data, reasoning="off", baselines=(spec,), cache=cache).run(spec).values

    first = found()
    embedding_server.script = lambda *_: {"status": 404}  # nobody to ask
    assert found() == first
    for changed in (lambda text: f"{text} green", lambda text: f"{text} " * 3 + "gold grey"):
        embedding_server.script = lambda n, body, changed=changed: embedding_server.good(
            n, {**body, "input": [changed(text) for text in body["input"]]}
        )
        with pytest.raises(SearchR3Error, match=r"\.sqlite: the cache is of another model .* --no-cache"):
            found()
    embedding_server.script = embedding_server.good
    assert found() == first


@pytest.mark.parametrize("vector", [[0.0, 0.0], [1.0, 2.0]])
def test_one_vector_for_all_texts_is_none(embedding_server, vector):
    def same(_, body):
        return {"json": {"data": [{"index": i, "embedding": vector} for i in range(len(body["input"]))]}}

    embedding_server.script = same
    with pytest.raises(EndpointError, match="one and the same vector came back for 70 texts"):
        served(embedding_server).encode_document(TEXTS)
    served(embedding_server).encode_document(["red", "Red"])


def test_vectors_of_another_width_than_before_are_refused(embedding_server):
    rival = served(embedding_server)
    rival.encode_document(TEXTS[:3])
    embedding_server.script = lambda *_: {"json": {"data": [{"index": 0, "embedding": [1.0, 2.0]}]}}
    with pytest.raises(EndpointError, match=r"vectors of different widths came back \(\[2, 64\]\)"):
        rival.encode_query(["red"])
    embedding_server.script = lambda *_: {"json": {"data": [{"index": 0, "embedding": []}]}}
    with pytest.raises(EndpointError, match="no embeddings came back"):
        served(embedding_server, attempts=1).encode_query(["red"])


@pytest.mark.parametrize(
    ("spec", "error", "words"),
    [
        ("http://localhost:8000/v1", ModelError, "behind a #"),
        (f"https://me:{SECRET}@a.org#m", EndpointError, "leave out"),
        ("http://#m", EndpointError, "no web address"),
        ("http://localhost:99999/v1#m", EndpointError, "no web address"),
    ],
)
def test_a_spec_that_is_none(spec, error, words):
    with pytest.raises(error, match=words) as raised:
        check_baselines([spec])
    assert SECRET not in str(raised.value)


def test_a_spec_has_an_address_with_or_without_its_version():
    for base in ("http://localhost:8000", "http://localhost:8000/v1", "http://localhost:8000/v1/embeddings"):
        assert Spec.read(f"{base}#org/m") == ("http://localhost:8000/v1/embeddings", "org/m")


def test_a_served_model_and_rewriting_in_the_same_run(embedding_server, model, data):
    """The server's model is our own: so its direct run is ours, and after our thoughts it is `reasoned`."""
    spec = f"{embedding_server.url}#bag"
    results = evaluate(model, data, baselines=(f"rewrite:{spec}", spec))
    assert [run.name for run in results.baselines] == [f"rewrite:{spec}", spec]
    assert results.run(spec).values == results.run("direct").values
    rewrite, reasoned = results.run(f"rewrite:{spec}"), results.run("reasoned")
    assert rewrite.values == reasoned.values != results.run("direct").values
    assert rewrite.thinking_tokens_mean == reasoned.thinking_tokens_mean > 0
    assert rewrite.seconds > rewrite.thinking_seconds == reasoned.thinking_seconds > 0  # what it costs
    asked = [text for body in embedding_server.requests for text in body["input"]]
    assert len(asked) == 150 + 40 + 40  # the documents once for both
    assert len(model.seen) == 40 + 40 + 40  # direct; thinking, then after it: nothing is thought twice


def test_nothing_to_rewrite_with():
    with pytest.raises(ModelError, match="--reasoning on, both or all"):
        check_baselines(["rewrite:http://localhost#m"], reasoning="off")
    with pytest.raises(ModelError, match="bm25 does not embed"):
        check_baselines(["rewrite:bm25"])
    with pytest.raises(ModelError, match="baseline rewrite:: give a model"):
        check_baselines(["rewrite:"])


def test_an_empty_thought_leaves_the_query_as_it_is(model):
    thoughts = model.generate(["ab", "abc"], 0)
    assert rewritten(["ab", "abc"], thoughts) == ["ab", "abc"]
    assert rewritten(["ab"], model.generate(["ab"], 8)) == ["ab\nextra"]
