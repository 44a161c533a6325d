"""The position contract: the same ids give the same vector, however batched, read, saved and loaded."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from searchr3.conversation import EMBED_TOKEN, Rendered
from searchr3.embedding import embed
from searchr3.generation import pad_ids, padding_id
from searchr3.model import SearchR3

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
        unread = [*ids[cache.get_seq_length() :], search.conversation.embed_id]
        vector = by_hand(model, [unread], past_key_values=cache)
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
    assert any("lora_" in name for name, _ in adapted.model.named_parameters())  # saving left it as it was
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


# -- saved and loaded


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
