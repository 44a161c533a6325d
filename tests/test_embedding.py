"""`Embedder` gives the vectors of `embed`, and computes less."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, Qwen3Config

from searchr3.conversation import Rendered
from searchr3.embedding import Embedder, embed, length_batches, pass_tokens
from searchr3.generation import padding_id
from searchr3.model import SearchR3

TEXTS = ["parse the date", "x", "", "merge two sorted lists lazily and count their lines", "x"]


@pytest.fixture(scope="module", params=["tiny_model", "qwen2_model"])
def search(request: pytest.FixtureRequest) -> SearchR3:
    return SearchR3(request.getfixturevalue(request.param))


def plain(search: SearchR3, rendered: list[Rendered]) -> np.ndarray:
    with torch.no_grad():
        return embed(search.model, rendered, padding_id(search.conversation)).numpy()


def thrifty(search: SearchR3, rendered: list[Rendered], shared: list[Rendered]) -> np.ndarray:
    return Embedder(search.model, padding_id(search.conversation), shared)(rendered).numpy()


@pytest.mark.parametrize("share", [True, False])
def test_same_vectors(search: SearchR3, share: bool) -> None:
    documents = search.conversation.documents(TEXTS)
    found = thrifty(search, documents, documents if share else [])
    assert found == pytest.approx(plain(search, documents), abs=2e-6)


def test_same_vectors_of_reasoned_queries_of_all_kinds_together(search: SearchR3) -> None:
    chat = search.conversation
    mixed = [*chat.queries(TEXTS), *chat.reasoned(TEXTS[:3], [[40], [], [41] * 9]), *chat.documents(TEXTS)]
    assert thrifty(search, mixed, mixed) == pytest.approx(plain(search, mixed), abs=2e-6)


def test_a_single_text_is_its_own_beginning(search: SearchR3) -> None:
    one = search.conversation.documents(["parse the date"])
    embedder = Embedder(search.model, padding_id(search.conversation), one)
    assert embedder.prefix == one[0].ids[: one[0].position]
    assert embedder(one).numpy() == pytest.approx(plain(search, one), abs=2e-6)


def test_the_beginning_is_the_system_prompt_and_computed_once(search: SearchR3) -> None:
    documents = search.conversation.documents(["one", "two", "three"])
    inner = search.model.model
    seen: list[int] = []
    hook = inner.layers[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    try:
        embedder = Embedder(search.model, padding_id(search.conversation), documents)
        embedder(documents)
        embedder(documents)
    finally:
        hook.remove()
    prompt = search.tokenizer(search.conversation.prompts.embed, add_special_tokens=False).input_ids
    assert str(prompt)[1:-1] in str(embedder.prefix)
    longest = max(len(one.ids) for one in documents)
    assert seen == [len(embedder.prefix), *[longest - len(embedder.prefix)] * 2]


def test_the_last_block_runs_for_one_position_of_each_text(search: SearchR3) -> None:
    documents = search.conversation.documents(TEXTS)
    shapes: list[tuple[int, ...]] = []
    last = search.model.model.layers[-1].mlp
    hook = last.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape)))
    try:
        thrifty(search, documents, [])
    finally:
        hook.remove()
    assert shapes == [(len(TEXTS), 1, search.dimension)]


def test_an_active_adapter_counts(search: SearchR3) -> None:
    model = get_peft_model(
        copy.deepcopy(search.model), LoraConfig(target_modules="all-linear", init_lora_weights=False)
    ).eval()
    documents = search.conversation.documents(TEXTS)
    adapted = SearchR3.from_parts(model, search.tokenizer, search.conversation.prompts)
    found = thrifty(adapted, documents, documents)
    assert found == pytest.approx(plain(adapted, documents), abs=2e-6)
    assert np.abs(found - plain(search, documents)).max() > 1e-3


def test_llama_and_bfloat16(search: SearchR3) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(search.tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    llama = AutoModelForCausalLM.from_config(config).eval()
    other = SearchR3.from_parts(llama, search.tokenizer, search.conversation.prompts)
    documents = other.conversation.documents(TEXTS)
    exact = plain(other, documents)
    assert thrifty(other, documents, documents) == pytest.approx(exact, abs=2e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert thrifty(other, documents, documents) == pytest.approx(exact, abs=0.05)


def test_long_texts_compute_the_beginning_anew(search: SearchR3) -> None:
    """There a mask would cost more than the shared beginning saves; the vectors are the same."""
    documents = search.conversation.documents(["x", "merge two sorted lists " * 20])
    embedder = Embedder(search.model, padding_id(search.conversation), documents)
    short, long = (len(one.ids) for one in documents)
    few = -(-short // 8)
    assert few < len(embedder.prefix) and long > 8 * few
    embedder.prefix = embedder.prefix[:few]
    embedder.shared = [(keys[:, :, :few], values[:, :, :few]) for keys, values in embedder.shared]
    seen: list[int] = []
    hook = search.model.model.layers[0].register_forward_pre_hook(
        lambda _, inputs: seen.append(inputs[0].shape[1])
    )
    try:
        found = [embedder([one]).numpy() for one in documents]
    finally:
        hook.remove()
    assert seen == [short - few, long]
    assert np.concatenate(found) == pytest.approx(plain(search, documents), abs=2e-6)


@pytest.mark.parametrize("change", ["eager", "another architecture", "a sliding window", "a dynamic turn"])
def test_what_it_does_not_know_goes_the_plain_way(tiny_model: Path, change: str) -> None:
    search = SearchR3(tiny_model)
    model: PreTrainedModel = search.model
    if change == "eager":
        model.set_attn_implementation("eager")
    elif change == "another architecture":
        model.config.model_type = "somebody's"
    elif change == "a dynamic turn":
        # beyond so many tokens a token's turn hangs on the length of the pass: the beginning alone is short
        dynamic = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 4.0}
        longest = max(len(one.ids) for one in search.conversation.documents(TEXTS))
        shape = {"rope_parameters": dynamic, "max_position_embeddings": longest - 2}
        search.model = model = AutoModelForCausalLM.from_config(
            Qwen3Config(**model.config.to_dict() | shape)
        ).eval()
    else:
        window = {
            "use_sliding_window": True,
            "sliding_window": 4,
            "max_window_layers": 0,
            "layer_types": None,
        }
        search.model = model = AutoModelForCausalLM.from_config(
            Qwen3Config(**model.config.to_dict() | window)
        ).eval()
    documents = search.conversation.documents(TEXTS)
    embedder = Embedder(model, padding_id(search.conversation), documents)
    assert not embedder.prefix
    assert np.array_equal(embedder(documents).numpy(), plain(search, documents))


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


@given(st.lists(st.integers(1, 60), min_size=1, max_size=40), st.integers(1, 200))
def test_passes_of_like_size_are_no_more_than_full_ones(lengths: list[int], tokens: int) -> None:
    items = [Rendered([0] * length, 0, 0) for length in lengths]

    def passes(most: int) -> int:
        return len(list(length_batches(items, len(items), most)))

    found = pass_tokens(items, tokens)
    assert found <= tokens and passes(found) == passes(tokens)
    assert found == 0 or passes(found - 1) > passes(tokens)


def test_no_pass_is_a_small_remainder() -> None:
    items = [Rendered([0] * 10, 0, 0) for _ in range(21)]
    assert [len(rows) for rows in length_batches(items, 21, 100)] == [10, 10, 1]
    assert [len(rows) for rows in length_batches(items, 21, pass_tokens(items, 100))] == [7, 7, 7]
