"""The position contract, `SearchR3`'s arguments, saving and loading, and the errors of a model that cannot be used."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from searchr3.conversation import EMBED_TOKEN, Prompts, Rendered
from searchr3.errors import ModelError, SearchR3Error
from searchr3.generation import Reasoning, pad_ids, padding_id
from searchr3.model import SETTINGS, SearchR3, embed, length_batches, shorten

TEXTS = [
    "parse the date",
    "x",
    "def merge(a, b):\n    return sorted(a + b)",
    f"a text that holds {EMBED_TOKEN} and <|im_end|>",
    "count the words of every line in the file and return them",
    "",
    "sort the strings lazily",
]
THOUGHTS = [[40, 41], [], [300], [5, 6, 7, 8, 9, 10], [42], [43, 44], [45]]
LIMIT = 0.9999  # the contract's cosine in float32


@pytest.fixture(scope="module", params=["tiny_model", "qwen2_model"])
def search(request: pytest.FixtureRequest) -> SearchR3:
    return SearchR3(request.getfixturevalue(request.param))


def conversations(search: SearchR3) -> list[Rendered]:
    """Direct and reasoned ones of many lengths."""
    return search.conversation.documents(TEXTS) + search.conversation.reasoned(TEXTS, THOUGHTS)


def alone(search: SearchR3, rendered: list[Rendered]) -> np.ndarray:
    """Each conversation by itself: no padding, nothing after the token."""
    return np.concatenate([by_hand(search.model, [one.ids]) for one in rendered])


@torch.no_grad()
def by_hand(model: PreTrainedModel, ids: list[list[int]], **inputs: torch.Tensor) -> np.ndarray:
    """Unit vectors at the last column, read from the causal model's own list of hidden states."""
    hidden = model(torch.tensor(ids), output_hidden_states=True, **inputs).hidden_states[-1]
    return torch.nn.functional.normalize(hidden[:, -1].float(), dim=-1).numpy()


def agreement(a: np.ndarray, b: np.ndarray) -> float:
    """The smallest cosine of two rows that should be equal."""
    assert a.shape == b.shape
    return float((a * b).sum(axis=1).min())


# -- the same ids give the same vector


@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize("order", [1, -1])
def test_the_batch_and_its_order_do_not_matter(
    search: SearchR3, monkeypatch: pytest.MonkeyPatch, batch_size: int, order: int
) -> None:
    rendered = conversations(search)
    expected = alone(search, rendered)
    assert np.tril(expected @ expected.T, -1).max() < 1 - 1e-3  # or equality would say nothing
    monkeypatch.setattr(search, "batch_size", batch_size)
    vectors = search.encode_rendered(rendered[::order])[::order]
    assert vectors.dtype == np.float32
    assert agreement(vectors, expected) >= LIMIT


def test_padding_on_the_left_gives_the_same_vectors(search: SearchR3) -> None:
    rendered = conversations(search)
    ids, mask = pad_ids([one.ids for one in rendered], padding_id(search.conversation), left=True)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    vectors = by_hand(search.model, ids.tolist(), attention_mask=mask, position_ids=positions)
    assert agreement(vectors, search.encode_rendered(rendered)) >= LIMIT


def test_a_padding_token_of_any_kind_gives_the_same_vectors(search: SearchR3) -> None:
    rendered = conversations(search)
    with torch.no_grad():
        vectors = embed(search.model, rendered, pad_id=search.conversation.embed_id).numpy()
    assert agreement(vectors, search.encode_rendered(rendered)) >= LIMIT


def test_what_follows_the_token_does_not_matter(search: SearchR3) -> None:
    rendered = conversations(search)
    longer = [Rendered([*one.ids, 50, 51, 52], one.position, one.answer_start) for one in rendered]
    assert agreement(search.encode_rendered(longer), search.encode_rendered(rendered)) >= LIMIT


def test_the_cache_of_generation_gives_the_same_vector(search: SearchR3) -> None:
    model = search.model
    for prompt in search.conversation.reasoning_prompts(TEXTS[:3]):
        output = model.generate(
            torch.tensor([prompt]),
            max_new_tokens=5,
            do_sample=False,
            return_dict_in_generate=True,
            use_cache=True,
        )
        cache, ids = output.past_key_values, output.sequences[0].tolist()
        rest = [
            [*ids[cache.get_seq_length() :], search.conversation.embed_id]
        ]  # what the cache has not read yet
        vector = by_hand(model, rest, past_key_values=cache)
        rendered = search.conversation.close(prompt, ids[len(prompt) :])
        assert len(ids) > len(prompt)
        assert agreement(vector, search.encode_rendered([rendered])) >= LIMIT


def test_reading_token_by_token_gives_the_same_vector(search: SearchR3) -> None:
    (rendered,) = search.conversation.reasoned(TEXTS[:1], THOUGHTS[:1])
    cache = None
    with torch.no_grad():
        for token in rendered.ids:
            output = search.model.model(torch.tensor([[token]]), past_key_values=cache, use_cache=True)
            cache = output.past_key_values
    vector = torch.nn.functional.normalize(output.last_hidden_state[:, -1], dim=-1).numpy()
    assert agreement(vector, search.encode_rendered([rendered])) >= LIMIT


def test_a_text_that_is_too_long_keeps_its_vector_position(search: SearchR3) -> None:
    short = SearchR3.from_parts(search.model, search.tokenizer, max_length=70)
    long_text = "count the words " * 80
    (rendered,) = short.conversation.documents([long_text])
    assert len(rendered.ids) == 70
    assert agreement(short.encode_document([long_text]), alone(search, [rendered])) >= LIMIT


# -- adapters


@pytest.fixture
def adapted(search: SearchR3) -> SearchR3:
    """The model with a LoRA adapter of random weights, and another embedding of the embed token."""
    peft = pytest.importorskip("peft")
    token = search.conversation.embed_id
    config = peft.LoraConfig(
        r=4,
        target_modules="all-linear",
        trainable_token_indices={"embed_tokens": [token]},
        init_lora_weights=False,
    )
    base = AutoModelForCausalLM.from_pretrained(search.tokenizer.name_or_path)
    torch.manual_seed(3)
    model = peft.get_peft_model(base, config, autocast_adapter_dtype=False)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.normal_(std=0.3)
            if "trainable_tokens_delta" in name:
                weight.add_(torch.randn_like(weight) * 0.1)
    return SearchR3.from_parts(
        model, search.tokenizer, search.conversation.prompts, search.conversation.max_length
    )


def test_an_adapter_counts_merged_unmerged_and_saved(
    search: SearchR3, adapted: SearchR3, tmp_path: Path
) -> None:
    rendered = conversations(search)
    vectors = adapted.encode_rendered(rendered)
    assert agreement(vectors, search.encode_rendered(rendered)) < 0.99  # it does something
    assert adapted.dimension == search.dimension == vectors.shape[1]
    assert agreement(vectors, alone(adapted, rendered)) >= LIMIT

    adapted.save_pretrained(tmp_path / "merged")
    assert hasattr(adapted.model, "peft_config")  # saving left the model as it was
    assert agreement(adapted.encode_rendered(rendered), vectors) >= LIMIT
    saved = SearchR3(tmp_path / "merged")
    assert not hasattr(saved.model, "merge_and_unload")
    assert agreement(saved.encode_rendered(rendered), vectors) >= LIMIT
    thoughts = adapted.generate(TEXTS, max_new_tokens=6)
    assert saved.generate(TEXTS, max_new_tokens=6) == thoughts
    assert thoughts != search.generate(TEXTS, max_new_tokens=6)

    merged = SearchR3.from_parts(adapted.model.merge_and_unload(), search.tokenizer)
    assert agreement(merged.encode_rendered(rendered), vectors) >= LIMIT


def test_without_its_adapter_the_model_is_the_base(search: SearchR3, adapted: SearchR3) -> None:
    rendered = conversations(search)
    with adapted.model.disable_adapter():
        assert agreement(adapted.encode_rendered(rendered), search.encode_rendered(rendered)) >= LIMIT


# -- saving and loading


def test_saved_and_loaded_by_searchr3(search: SearchR3, tmp_path: Path) -> None:
    search.save_pretrained(tmp_path / "again")
    again = SearchR3(tmp_path / "again")
    assert conversations(again) == conversations(search)
    assert agreement(again.encode_document(TEXTS), search.encode_document(TEXTS)) >= LIMIT
    assert again.generate(TEXTS, max_new_tokens=5) == search.generate(TEXTS, max_new_tokens=5)
    assert again.conversation.max_length == search.conversation.max_length
    assert sorted(file.name for file in tmp_path.iterdir()) == ["again"]
    assert list((tmp_path / "again").glob("*.safetensors"))


def test_saved_and_loaded_by_transformers(search: SearchR3, tmp_path: Path) -> None:
    search.save_pretrained(tmp_path / "again")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "again")
    model = AutoModel.from_pretrained(tmp_path / "again").eval()
    for text, vector in zip(TEXTS, search.encode_document(TEXTS), strict=True):
        (rendered,) = search.conversation.documents([text])
        prompt = tokenizer.apply_chat_template(
            [{"role": "system", "content": "Represent the text."}, {"role": "user", "content": "PLACE"}],
            tokenize=False,
            add_generation_prompt=True,
        )
        before, after = prompt.split("PLACE")
        ids = tokenizer(before)["input_ids"]
        ids += tokenizer(text, split_special_tokens=True)["input_ids"]
        ids += tokenizer(after + "The embedding is " + EMBED_TOKEN)["input_ids"]
        assert ids == rendered.ids
        with torch.no_grad():
            hidden = model(torch.tensor([ids])).last_hidden_state[:, -1]
        assert agreement(torch.nn.functional.normalize(hidden, dim=-1).numpy(), vector[None]) >= LIMIT


def test_saved_and_loaded_by_sentence_transformers(search: SearchR3, tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer import modules

    search.save_pretrained(tmp_path / "again")
    network = modules.Transformer(str(tmp_path / "again"))
    pooling = modules.Pooling(search.dimension, "lasttoken")
    model = SentenceTransformer(modules=[network, pooling, modules.Normalize()], device="cpu")
    rendered = conversations(search)
    for left in (False, True):
        ids, mask = pad_ids([one.ids for one in rendered], padding_id(search.conversation), left)
        with torch.no_grad():
            vectors = model({"input_ids": ids, "attention_mask": mask})["sentence_embedding"].numpy()
        assert agreement(vectors, search.encode_rendered(rendered)) >= LIMIT
    for text in ("parse the date", "count lines"):
        whole = network.tokenizer(text, add_special_tokens=False)["input_ids"]
        assert whole == search.conversation.thought_ids([text])[0]


def test_own_prompts_are_saved_and_come_back(tiny_base: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.yaml"
    file.write_text(f"embed: Embed.\nreason: Enrich the query.\nanswer: '{EMBED_TOKEN}'\n")
    model = SearchR3.from_base(tiny_base, prompts=file, max_length=55, batch_size=2)
    own = Prompts("Embed.", "Enrich the query.", EMBED_TOKEN)
    assert (model.conversation.prompts, model.batch_size) == (own, 2)
    model.save_pretrained(tmp_path / "model")
    again = SearchR3(tmp_path / "model")
    assert again.conversation.prompts == own
    assert again.conversation.max_length == 55
    assert agreement(again.encode_document(TEXTS), model.encode_document(TEXTS)) >= LIMIT

    foreign = SearchR3(tmp_path / "model", prompts=Prompts(), max_length=66)
    assert foreign.conversation.prompts == Prompts()
    assert foreign.conversation.max_length == 66
    assert agreement(foreign.encode_document(TEXTS), again.encode_document(TEXTS)) < LIMIT
    with pytest.raises(ModelError, match=r"none\.yaml: cannot read the prompts"):
        SearchR3(tmp_path / "model", prompts=tmp_path / "none.yaml")


def test_a_published_checkpoint_has_no_settings_of_ours(tiny_model: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_model, tmp_path / "model")
    (tmp_path / "model" / SETTINGS).unlink()
    model = SearchR3(tmp_path / "model")
    assert model.conversation.max_length == 1024
    assert model.conversation.prompts == Prompts()


def test_saving_does_not_overwrite_unless_told(search: SearchR3, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine.txt").write_text("keep me")
    with pytest.raises(SearchR3Error, match="exists already"):
        search.save_pretrained(tmp_path / "model")
    assert (tmp_path / "model" / "mine.txt").read_text() == "keep me"
    search.save_pretrained(tmp_path / "model", overwrite=True)
    search.save_pretrained(tmp_path / "model", overwrite=True)  # also over its own files
    assert not (tmp_path / "model" / "mine.txt").exists()
    assert (
        agreement(SearchR3(tmp_path / "model").encode_document(TEXTS), search.encode_document(TEXTS)) >= LIMIT
    )


def test_a_base_keeps_its_rows_and_a_trained_model_its_token(qwen2_base: Path, qwen2_model: Path) -> None:
    base = AutoModelForCausalLM.from_pretrained(qwen2_base)
    once = SearchR3.from_base(qwen2_base)
    assert once.model.get_input_embeddings().weight.shape == base.get_input_embeddings().weight.shape
    twice = SearchR3.from_base(qwen2_model)
    assert len(twice.tokenizer) == len(once.tokenizer)
    assert torch.equal(twice.model.get_input_embeddings().weight, once.model.get_input_embeddings().weight)


def test_a_model_of_the_hub_comes_from_the_cache_with_its_prompts(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "a" * 40
    cache = tmp_path / "models--someone--searcher"
    model = SearchR3.from_base(tiny_base, prompts=Prompts("Embed."), max_length=55)
    model.save_pretrained(cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    again = SearchR3("someone/searcher")
    assert again.conversation.prompts == Prompts("Embed.")
    assert again.conversation.max_length == 55
    assert again.tokenizer.name_or_path == "someone/searcher"


def test_reload_takes_the_weights_and_keeps_the_rest(search: SearchR3, tmp_path: Path) -> None:
    folder = Path(search.tokenizer.name_or_path)
    other = SearchR3(folder, max_length=60, prompts=Prompts("Embed."))
    with torch.no_grad():
        other.model.get_input_embeddings().weight.mul_(2.0).add_(0.1)
    expected = SearchR3(folder, max_length=60, prompts=Prompts("Embed.")).encode_document(TEXTS)
    assert agreement(other.encode_document(TEXTS), expected) < LIMIT
    other.reload(folder)
    assert agreement(other.encode_document(TEXTS), expected) >= LIMIT
    assert (other.conversation.max_length, other.conversation.prompts.embed) == (60, "Embed.")


# -- arguments


def test_queries_documents_and_similarity(search: SearchR3) -> None:
    queries, documents = search.encode_query(TEXTS[:2]), search.encode_document(TEXTS)
    assert queries.shape == (2, search.dimension)
    np.testing.assert_allclose(np.linalg.norm(documents, axis=1), 1, rtol=1e-5)
    assert agreement(queries, documents[:2]) >= LIMIT  # one space: a direct query is rendered as a document
    scores = search.similarity(queries, documents)
    assert scores.shape == (2, len(TEXTS))
    np.testing.assert_allclose(scores[1, 2], queries[1] @ documents[2], rtol=1e-5)
    np.testing.assert_allclose(search.similarity(queries.tolist(), documents.tolist()), scores, rtol=1e-4)


def test_reasoning_true_is_one_greedy_thought(search: SearchR3) -> None:
    thoughts = search.generate(batch=TEXTS, max_new_tokens=6)
    given = search.encode_query(TEXTS, reasoning=thoughts)
    assert agreement(search.encode_query(TEXTS, reasoning=True, max_new_tokens=6), given) >= LIMIT
    assert agreement(given, search.encode_query(TEXTS)) < LIMIT
    own = [Reasoning("", tuple(ids), emitted=False) for ids in THOUGHTS]
    expected = alone(search, search.conversation.reasoned(TEXTS, THOUGHTS))
    assert agreement(search.encode_query(TEXTS, reasoning=own), expected) >= LIMIT


def test_samples_are_the_mean_of_sampled_thoughts(search: SearchR3) -> None:
    torch.manual_seed(5)
    mean = search.encode_query(TEXTS, reasoning=True, samples=3, max_new_tokens=4)
    torch.manual_seed(5)
    each = [search.encode_query(TEXTS, search.generate(TEXTS, 4, temperature=1.0)) for _ in range(3)]
    expected = np.mean(each, axis=0)
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    assert agreement(mean, expected) >= LIMIT
    assert agreement(each[0], each[1]) < LIMIT
    with pytest.raises(ValueError, match="samples must be at least 1"):
        search.encode_query(TEXTS, reasoning=True, samples=0)


def test_an_instruction_changes_queries_and_their_thoughts(search: SearchR3) -> None:
    instruction = "Find the function."
    assert agreement(search.encode_query(TEXTS, instruction=instruction), search.encode_query(TEXTS)) < LIMIT
    expected = alone(search, search.conversation.queries(TEXTS, instruction))
    assert agreement(search.encode_query(TEXTS, instruction=instruction), expected) >= LIMIT
    thoughts = search.generate(TEXTS, max_new_tokens=5, instruction=instruction)
    reasoned = search.encode_query(TEXTS, reasoning=True, instruction=instruction, max_new_tokens=5)
    ids = [thought.token_ids for thought in thoughts]
    assert agreement(reasoned, alone(search, search.conversation.reasoned(TEXTS, ids, instruction))) >= LIMIT


def test_fewer_dimensions_are_the_first_ones_at_unit_length(search: SearchR3) -> None:
    whole, part = search.encode_document(TEXTS), search.encode_document(TEXTS, dim=8)
    expected = whole[:, :8] / np.linalg.norm(whole[:, :8], axis=1, keepdims=True)
    np.testing.assert_allclose(part, expected, rtol=1e-5)
    assert search.encode_query(TEXTS, reasoning=True, dim=8, max_new_tokens=2).shape == (len(TEXTS), 8)
    assert search.encode_query(TEXTS, reasoning=True, samples=2, dim=8, max_new_tokens=2).shape == (
        len(TEXTS),
        8,
    )
    for wrong in (0, -1, search.dimension + 1):
        with pytest.raises(ValueError, match=f"dim must be between 1 and {search.dimension}, got {wrong}"):
            search.encode_document(TEXTS, dim=wrong)


def test_no_texts_give_no_vectors(search: SearchR3) -> None:
    nothing = (0, search.dimension)
    assert search.encode_document([]).shape == nothing
    assert search.encode_query([]).shape == nothing
    assert search.encode_query([], reasoning=True).shape == nothing
    assert search.encode_query([], reasoning=[]).shape == nothing
    assert search.encode_query([], reasoning=True, samples=2).shape == nothing
    assert search.encode_document([], dim=4).shape == (0, 4)
    assert search.similarity(search.encode_query([]), search.encode_document(TEXTS)).shape == (0, len(TEXTS))


@pytest.mark.parametrize(
    "call",
    [
        lambda search, texts: search.generate(texts),
        lambda search, texts: search.encode_query(texts),
        lambda search, texts: search.encode_document(texts),
    ],
)
def test_one_text_is_no_list_of_texts(search: SearchR3, call: Callable[[SearchR3, object], object]) -> None:
    with pytest.raises(TypeError, match="must be a list of texts, not one text"):
        call(search, "parse the date")
    with pytest.raises(
        TypeError, match=r"\[1\] must be text, got tuple"
    ):  # a tokenizer would take it for a pair
        call(search, ["a", ("b", "c")])
    with pytest.raises(TypeError, match=r"\[0\] must be text, got NoneType"):
        call(search, [None])


@pytest.mark.parametrize("reasoning", ["auto", [], [Reasoning("", (), False)] * 2])
def test_reasoning_of_another_number_is_refused(search: SearchR3, reasoning: object) -> None:
    with pytest.raises(ValueError, match="one Reasoning a query"):
        search.encode_query(TEXTS, reasoning=reasoning)


def test_dtype_and_device(tiny_model: Path) -> None:
    assert SearchR3(tiny_model).model.dtype == torch.float32
    half = SearchR3(tiny_model, dtype="bfloat16", device="cpu", batch_size=2)
    assert half.model.dtype == torch.bfloat16
    assert half.device == torch.device("cpu")
    vectors = half.encode_document(TEXTS)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-3)
    assert agreement(vectors, SearchR3(tiny_model).encode_document(TEXTS)) > 0.99
    assert half.generate(TEXTS[:1], max_new_tokens=2)[0].token_ids


def test_autocast_is_the_precision_of_a_model_in_training(search: SearchR3) -> None:
    mixed = SearchR3.from_parts(search.model, search.tokenizer, autocast=torch.bfloat16)
    vectors = mixed.encode_document(TEXTS)
    assert vectors.dtype == np.float32
    assert 0.99 < agreement(vectors, search.encode_document(TEXTS)) < 1 - 1e-7
    assert search.model.dtype == torch.float32


def test_encoding_leaves_training_mode_as_it_was(search: SearchR3) -> None:
    def fail(done: int, total: int) -> None:
        raise KeyboardInterrupt

    try:
        search.model.train()
        search.encode_document(TEXTS)
        assert search.model.training
        with pytest.raises(KeyboardInterrupt):
            search.encode_document(TEXTS, progress=fail)
        assert search.model.training
    finally:
        search.model.eval()


def test_progress_ends_at_the_number_of_texts(search: SearchR3, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "batch_size", 3)
    told: list[tuple[int, int]] = []
    search.encode_document(TEXTS, progress=lambda done, total: told.append((done, total)))
    assert told == [(3, 7), (6, 7), (7, 7)]


@given(
    lengths=st.lists(st.integers(1, 60), max_size=30),
    batch_size=st.integers(1, 9),
    tokens=st.integers(1, 200),
)
def test_batches_hold_every_row_once_within_their_limits(
    lengths: list[int], batch_size: int, tokens: int
) -> None:
    rendered = [Rendered([0] * length, 0, 0) for length in lengths]
    batches = list(length_batches(rendered, batch_size, tokens))
    assert sorted(row for rows in batches for row in rows) == list(range(len(lengths)))
    assert [lengths[row] for rows in batches for row in rows] == sorted(lengths, reverse=True)
    for rows in batches:
        assert 1 <= len(rows) <= batch_size
        assert len(rows) == 1 or len(rows) * max(lengths[row] for row in rows) <= tokens


def test_a_zero_vector_stays_finite() -> None:
    assert np.array_equal(shorten(np.array([[0.0, 0.0, 3.0]], dtype=np.float32), 2), [[0.0, 0.0]])


# -- models that cannot be used


def refused(path: str | Path, **options: object) -> str:
    with pytest.raises(ModelError) as caught:
        SearchR3(path, **options)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_a_base_without_the_token(tiny_base: Path) -> None:
    assert "the tokenizer has no <|embed_token|>" in refused(tiny_base)


def test_a_folder_without_config_and_a_file(tmp_path: Path) -> None:
    assert "not a model folder (no config.json)" in refused(tmp_path)
    (tmp_path / "weights.bin").write_text("")
    assert "not a model folder" in refused(tmp_path / "weights.bin")


@pytest.mark.parametrize("path", ["runs/quick/stage2", "./stage2", "/no/such/folder", "../x"])
def test_a_path_that_is_not_there(path: str) -> None:
    assert refused(path) == f"{path}: no such folder; check the path"


def test_a_hub_id_offline() -> None:
    assert "no such folder, and the Hub cannot be reached" in refused("nobody/nothing-at-all")


def test_a_hub_id_without_a_network_fails_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    started = time.monotonic()
    assert "no such folder" in refused("nobody/nothing-at-all")
    assert time.monotonic() - started < 10  # from_pretrained alone retries for 45 seconds


def truncate(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])


def drop_a_weight(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def change_config(**values: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return change


@pytest.mark.parametrize(
    ("harm", "complaint"),
    [
        (truncate, "cannot load a model"),
        (drop_a_weight, "model.norm.weight is missing"),
        (lambda folder: (folder / "model.safetensors").unlink(), "cannot load a model"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot load a model"),
        (lambda folder: (folder / "config.json").write_text("[]"), "cannot load a model"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "cannot load a model"),
        (change_config(model_type="unheard-of"), "cannot load a model"),
        (change_config(hidden_size=64), "cannot load a model"),
        (lambda folder: (folder / "chat_template.jinja").unlink(), "no chat template"),
        (lambda folder: (folder / SETTINGS).write_text("{"), f"{SETTINGS}: not valid JSON"),
        (lambda folder: (folder / SETTINGS).write_text("[]"), f"{SETTINGS}: expected 'prompts'"),
        (
            lambda folder: (folder / SETTINGS).write_text('{"max_length": "x"}'),
            f"{SETTINGS}: expected 'prompts'",
        ),
        (lambda folder: (folder / SETTINGS).write_text('{"prompts": {"embd": ""}}'), "did you mean 'embed'"),
    ],
)
def test_a_broken_folder(
    tiny_model: Path, tmp_path: Path, harm: Callable[[Path], object], complaint: str
) -> None:
    shutil.copytree(tiny_model, tmp_path / "broken")
    harm(tmp_path / "broken")
    assert complaint in refused(tmp_path / "broken")


def test_a_wrong_dtype_and_a_wrong_device(tiny_model: Path) -> None:
    assert "float33" in refused(tiny_model, dtype="float33")
    assert "cannot be put on device 'toaster'" in refused(tiny_model, device="toaster")
