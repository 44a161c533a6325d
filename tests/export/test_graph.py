"""The graph: ONNX Runtime gives the model's vectors, of any batch, length and padding."""

import numpy as np
import pytest
from tokenizers import Tokenizer

from searchr3.errors import ModelError
from searchr3.export import export, graph
from searchr3.generation import pad_ids, padding_id

LIMIT = 0.9999


@pytest.mark.parametrize("missing", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_library_is_told_before_the_work(search, tmp_path, monkeypatch, missing):
    monkeypatch.setattr(graph, "find_spec", lambda name: None if name == missing else object())
    with pytest.raises(ModelError, match=r"pip install 'searchr3\[onnx\]'"):
        export(search, tmp_path / "out", format="onnx")
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def session(search, tmp_path_factory):
    """A session of the graph, and the folder's tokenizer, loaded without transformers."""
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("exported") / "onnx"
    export(search, folder, format="onnx")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_padding()
    path = folder / "onnx" / "model.onnx"
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]), tokenizer


def run(session, ids, mask):
    return session.run(["sentence_embedding"], {"input_ids": ids, "attention_mask": mask})[0]


@pytest.mark.slow
def test_random_texts_get_the_same_vectors(search, session):
    running, tokenizer = session
    rng = np.random.default_rng(0)
    words = ["parse", "date", "Ünïcode", "<|embed_token|>", "\n", "def f(x):", "<|im_end|>", "7", ""]
    for size in (1, 2, 7, 33):
        texts = [" ".join(rng.choice(words, rng.integers(0, 90))) for _ in range(size)]
        batch = tokenizer.encode_batch(texts)
        vectors = run(
            running,
            np.array([one.ids for one in batch]),
            np.array([one.attention_mask for one in batch]),
        )
        assert vectors.dtype == np.float32
        assert (vectors * search.encode_document(texts)).sum(axis=1).min() >= LIMIT


@pytest.mark.slow
@pytest.mark.parametrize("left", [True, False])
def test_padding_on_either_side_and_of_any_kind(search, session, left):
    running, _ = session
    texts = ["x", "", "parse the date of every line", "long " * 200]
    rendered = search.conversation.documents(texts)
    for pad in (padding_id(search.conversation), search.conversation.embed_id):
        ids, mask = pad_ids([one.ids for one in rendered], pad, left)
        vectors = run(running, ids.numpy(), mask.numpy())
        assert (vectors * search.encode_document(texts)).sum(axis=1).min() >= LIMIT


@pytest.mark.slow
def test_names_and_sizes_are_what_other_readers_look_for(session):
    running, _ = session
    assert [(one.name, one.shape) for one in running.get_inputs()] == [
        (name, ["batch", "length"]) for name in ("input_ids", "attention_mask")
    ]
    assert [one.name for one in running.get_outputs()] == ["sentence_embedding", "last_hidden_state"]
