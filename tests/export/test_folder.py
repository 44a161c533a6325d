"""The exported folder: sentence-transformers gives the model's own vectors from it."""

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from searchr3.conversation import EMBED_TOKEN
from searchr3.errors import ModelError, SearchR3Error
from searchr3.evaluation.baselines import load_rival
from searchr3.export import export
from searchr3.loading import load_outline, load_skeleton
from searchr3.model import SearchR3

TEXTS = [
    "parse the date",
    "x",
    "",
    f"a text that holds {EMBED_TOKEN} and <|im_end|>, <|endoftext|> <tool_call>",
    "count the words " * 80,
    "def merge(a, b):\n    return sorted(a + b)",
]
LIMIT = 0.9999


def agreement(a: np.ndarray, b: np.ndarray) -> float:
    assert a.shape == b.shape
    return float((a * b).sum(axis=1).min())


@pytest.fixture(scope="module")
def exported(search, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "st"
    export(search, folder)
    return folder


@pytest.fixture(scope="module")
def sentences(exported):
    pytest.importorskip("sentence_transformers")
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(exported), device="cpu")


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("batch_size", [1, 4, 32])
def test_sentence_transformers_gives_the_same_vectors(search, sentences, side, batch_size):
    sentences.tokenizer.padding_side = side
    documents, queries = search.encode_document(TEXTS), search.encode_query(TEXTS, reasoning=False)
    assert np.tril(documents @ documents.T, -1).max() < 1 - 1e-3  # or equality would say nothing
    for encode in (sentences.encode, sentences.encode_document, sentences.encode_query):
        vectors = encode(TEXTS, batch_size=batch_size)
        assert vectors.dtype == np.float32
        assert agreement(vectors, documents) >= LIMIT and agreement(vectors, queries) >= LIMIT
    np.testing.assert_allclose(
        sentences.similarity(documents[:2], documents), search.similarity(documents[:2], documents), atol=1e-5
    )


@given(texts=st.lists(st.text(max_size=60), min_size=1, max_size=4))
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_gets_the_same_vector(search, sentences, texts):
    assert agreement(sentences.encode(texts), search.encode_document(texts)) >= LIMIT


def test_the_folder_is_a_baseline_of_evaluate(search, exported):
    pytest.importorskip("sentence_transformers")
    rival = load_rival(str(exported))
    assert agreement(rival.encode_document(TEXTS), search.encode_document(TEXTS)) >= LIMIT


def test_what_servers_look_for_is_there(search, exported):
    """Keys that vLLM and text-embeddings-inference read by name."""

    def read(name):
        return json.loads((exported / name).read_text())

    types = [module["type"] for module in read("modules.json")]
    assert types == [
        f"sentence_transformers.models.{kind}" for kind in ("Transformer", "Pooling", "Normalize")
    ]
    pooling = read("1_Pooling/config.json")
    assert [key for key, on in pooling.items() if on is True and key.startswith("pooling_mode_")] == [
        "pooling_mode_lasttoken"
    ]
    assert pooling["pooling_mode_cls_token"] is pooling["pooling_mode_mean_tokens"] is False
    assert read("sentence_bert_config.json")["max_seq_length"] == search.conversation.max_length
    config = read("config.json")
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"]
    assert isinstance(config["pad_token_id"], int) and isinstance(config["eos_token_id"], int)
    assert not [token for token in read("tokenizer.json")["added_tokens"] if token["special"]]


def test_neither_pickle_nor_chat_nor_half_a_folder_is_left(exported):
    names = {file.name for file in exported.rglob("*") if file.is_file()}
    assert "model.safetensors" in names and "README.md" in names
    assert not {name for name in names if name.endswith((".bin", ".pt", ".jinja"))}
    assert [one.name for one in exported.parent.iterdir()] == ["st"]


@pytest.mark.parametrize("load", [SearchR3, load_outline, load_skeleton])
def test_the_folder_is_no_searchr3_model_any_more(exported, load):
    with pytest.raises(ModelError, match="exported for other libraries"):
        load(exported)


def test_a_folder_that_is_there_is_replaced_only_when_asked(search, tmp_path):
    (tmp_path / "mine").write_text("keep")
    with pytest.raises(SearchR3Error, match="exists"):
        export(search, tmp_path)
    assert [one.name for one in tmp_path.iterdir()] == ["mine"]


def test_the_head_of_an_untied_model_stays_at_home(tiny_model, tmp_path):
    from safetensors import safe_open
    from sentence_transformers import SentenceTransformer
    from transformers import AutoModelForCausalLM

    found = SearchR3(tiny_model)
    config = found.model.config
    config.tie_word_embeddings = False
    untied = AutoModelForCausalLM.from_config(config)
    search = SearchR3.from_parts(untied, found.tokenizer, max_length=96)
    export(search, tmp_path / "st")
    with safe_open(tmp_path / "st" / "model.safetensors", "np") as weights:
        assert not [name for name in weights.keys() if "lm_head" in name]  # noqa: SIM118
    vectors = SentenceTransformer(str(tmp_path / "st"), device="cpu").encode(TEXTS)
    assert agreement(vectors, search.encode_document(TEXTS)) >= LIMIT


def test_an_adapter_is_merged_into_what_is_exported(search, tmp_path):
    peft = pytest.importorskip("peft")
    pytest.importorskip("sentence_transformers")
    from sentence_transformers import SentenceTransformer
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(search.tokenizer.name_or_path)
    adapter = peft.LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    model = peft.get_peft_model(base, adapter, autocast_adapter_dtype=False)
    adapted = SearchR3.from_parts(model, search.tokenizer, max_length=search.conversation.max_length)
    wanted = adapted.encode_document(TEXTS)
    assert agreement(wanted, search.encode_document(TEXTS)) < 0.999  # it does something
    export(adapted, tmp_path / "st")
    vectors = SentenceTransformer(str(tmp_path / "st"), device="cpu").encode(TEXTS)
    assert agreement(vectors, wanted) >= LIMIT
    assert any("lora_" in name for name, _ in adapted.model.named_parameters())  # it was left as it was


def test_the_model_itself_is_exported_with_its_card(search, tmp_path):
    export(search, tmp_path / "own", format="searchr3")
    again = SearchR3(tmp_path / "own")
    assert agreement(again.encode_document(TEXTS), search.encode_document(TEXTS)) >= LIMIT
    assert "from searchr3 import SearchR3" in (tmp_path / "own" / "README.md").read_text()
    with pytest.raises(ModelError, match="leave it out"):
        export(search, tmp_path / "other", format="searchr3", instruction="Find it.")
