"""Thinking: padding, stopping, greedy and sampled decoding, and thoughts closed by force."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel

from searchr3.conversation import Conversation
from searchr3.errors import ModelError
from searchr3.generation import Reasoning, generate_ids, pad_ids, padding_id, reason, split_completion
from searchr3.model import SearchR3
from searchr3.thinking import sampled

QUERIES = ["parse the date", "x", "merge two sorted lists of strings lazily", "count"]


@pytest.fixture(scope="module", params=["tiny_model", "qwen2_model"])
def search(request: pytest.FixtureRequest) -> SearchR3:
    return SearchR3(request.getfixturevalue(request.param))


@pytest.fixture
def speak(search: SearchR3) -> Iterator[Callable[[int], SearchR3]]:
    """The model with a head that always says the given token."""
    own = search.model.lm_head
    rows, width = search.model.get_input_embeddings().weight.shape

    def make(token: int) -> SearchR3:
        search.model.lm_head = torch.nn.Linear(width, rows)
        with torch.no_grad():
            search.model.lm_head.weight.zero_()
            search.model.lm_head.bias.zero_()[token] = 50.0
        return search

    yield make
    search.model.lm_head = own


@torch.no_grad()
def greedy(model: PreTrainedModel, prompt: list[int], stops: list[int], most: int) -> list[int]:
    """One prompt, no padding, no cache."""
    ids = list(prompt)
    while len(ids) < len(prompt) + most and (len(ids) == len(prompt) or ids[-1] not in stops):
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@given(rows=st.lists(st.lists(st.integers(0, 99), max_size=8), min_size=1, max_size=6), left=st.booleans())
def test_padding_keeps_every_sequence_on_its_side(rows: list[list[int]], left: bool) -> None:
    ids, mask = pad_ids(rows, 7, left)
    width = max(map(len, rows))
    assert ids.shape == mask.shape == (len(rows), width)
    assert ids.dtype == mask.dtype == torch.int64
    for row, padded, real in zip(rows, ids.tolist(), mask.tolist(), strict=True):
        gap = width - len(row)
        assert padded == ([7] * gap + row if left else row + [7] * gap)
        assert real == ([0] * gap + [1] * len(row) if left else [1] * len(row) + [0] * gap)


def test_a_completion_ends_at_its_first_stop_token(search: SearchR3) -> None:
    conversation = search.conversation
    said, end = conversation.embed_id, conversation.tokenizer.eos_token_id
    assert split_completion([5, 6, said, 9], conversation) == ([5, 6], True)
    assert split_completion([5, 6, end, said], conversation) == ([5, 6], False)
    assert split_completion([said, end], conversation) == ([], True)
    assert split_completion([5, 6], conversation) == ([5, 6], False)
    assert split_completion([], conversation) == ([], False)


def test_a_padded_batch_says_what_each_prompt_says_alone(search: SearchR3) -> None:
    prompts = search.conversation.reasoning_prompts(QUERIES)
    endless = [greedy(search.model, prompt, [], 6) for prompt in prompts]
    assert generate_ids(search.model, search.conversation, prompts, 6, stop_ids=[10**6]) == endless
    for stop in {token for completion in endless for token in completion}:  # rows end at different steps
        expected = [ids[: ids.index(stop) + 1] if stop in ids else ids for ids in endless]
        assert generate_ids(search.model, search.conversation, prompts, 6, stop_ids=[stop]) == expected


def test_the_checkpoints_generation_config_does_not_reach_in(
    search: SearchR3, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts = search.conversation.reasoning_prompts(QUERIES)
    expected = [greedy(search.model, prompt, search.conversation.stop_ids, 8) for prompt in prompts]
    disturbing = {"repetition_penalty": 5.0, "no_repeat_ngram_size": 1, "suppress_tokens": [expected[0][0]]}
    config = type(search.model.generation_config)(
        **disturbing, do_sample=True, temperature=9.0, min_new_tokens=3
    )
    monkeypatch.setattr(search.model, "generation_config", config)
    assert generate_ids(search.model, search.conversation, prompts, 8) == expected
    assert search.model.generation_config is config
    assert config.repetition_penalty == 5.0


def test_samples_come_from_the_whole_distribution(search: SearchR3) -> None:
    (prompt,) = search.conversation.reasoning_prompts(["parse the date"])
    temperature, count = 1.5, 1500
    with torch.no_grad():
        chances = (search.model(torch.tensor([prompt])).logits[0, -1] / temperature).softmax(dim=-1)
    torch.manual_seed(0)
    drawn = torch.tensor(
        generate_ids(search.model, search.conversation, [prompt] * count, 1, temperature)
    ).flatten()
    ranked = chances.argsort(descending=True)
    for start, stop in [(0, 5), (5, 50), (50, len(ranked))]:  # a top-k of 50 would leave the last one empty
        expected = chances[ranked[start:stop]].sum().item()
        share = torch.isin(drawn, ranked[start:stop]).float().mean().item()
        assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / count) + 1e-6
        assert expected > 0.01


def test_a_model_whose_chances_are_no_numbers_is_told(tiny_model: Path) -> None:
    search = SearchR3(tiny_model)
    with torch.no_grad():
        search.model.get_input_embeddings().weight[:] = math.nan
    prompts = search.conversation.reasoning_prompts(["one", "two"])
    with pytest.raises(ModelError, match="are no numbers"):
        generate_ids(search.model, search.conversation, prompts, 4, 1.0)
    with pytest.raises(ModelError, match="are no numbers"):
        sampled(search, prompts, 3, 4, 1.0)


def test_a_seed_is_a_thought_and_leaves_the_process_its_own_numbers(search: SearchR3) -> None:
    def sample(seed: int | None) -> list[Reasoning]:
        return search.generate(QUERIES, 6, temperature=1.0, seed=seed)

    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = sample(1)
    assert torch.equal(torch.rand(3), expected)
    assert sample(1) == first
    assert sample(2) != first
    torch.manual_seed(5)
    free = sample(None)
    assert sample(None) != free
    assert search.generate(QUERIES, 6, seed=1) == search.generate(QUERIES, 6)  # greedy


@pytest.mark.parametrize("training", [True, False])
def test_training_mode_is_as_before(search: SearchR3, training: bool) -> None:
    prompts = search.conversation.reasoning_prompts(["a"])
    try:
        search.model.train(training)
        generate_ids(search.model, search.conversation, prompts, 2)
        assert search.model.training == training
        with pytest.raises(IndexError):
            generate_ids(search.model, search.conversation, [[10**9]], 2)
        assert search.model.training == training
    finally:
        search.model.eval()


def test_a_said_token_is_emitted(speak: Callable[[int], SearchR3], search: SearchR3) -> None:
    thoughts = speak(search.conversation.embed_id).generate(QUERIES, max_new_tokens=5)
    assert thoughts == [Reasoning("", (), emitted=True)] * len(QUERIES)


def test_a_turn_that_ends_is_closed_by_force(speak: Callable[[int], SearchR3], search: SearchR3) -> None:
    thoughts = speak(search.tokenizer.eos_token_id).generate(QUERIES, max_new_tokens=5)
    assert thoughts == [Reasoning("", (), emitted=False)] * len(QUERIES)


def test_endless_thoughts_are_closed_by_force_and_still_get_a_vector(
    speak: Callable[[int], SearchR3], search: SearchR3
) -> None:
    (word,) = search.conversation.thought_ids(["date"])
    thoughts = speak(word[-1]).generate(QUERIES, max_new_tokens=5)
    assert [thought.token_ids for thought in thoughts] == [(word[-1],) * 5] * len(QUERIES)
    assert not any(thought.emitted for thought in thoughts)
    vectors = search.encode_query(QUERIES, reasoning=thoughts)
    expected = search.encode_rendered(search.conversation.reasoned(QUERIES, [[word[-1]] * 5] * len(QUERIES)))
    np.testing.assert_allclose(vectors, expected, atol=1e-6)


def test_a_row_beyond_the_vocabulary_is_a_token_without_text(
    speak: Callable[[int], SearchR3], search: SearchR3
) -> None:
    spare = search.model.get_input_embeddings().weight.shape[0] - 1
    (thought,) = speak(spare).generate(["a"], max_new_tokens=3)
    assert thought == Reasoning("", (spare,) * 3, emitted=False)


def test_order_and_thoughts_do_not_depend_on_the_batch(search: SearchR3) -> None:
    prompts = search.conversation.reasoning_prompts(QUERIES)
    model, conversation = search.model, search.conversation
    one_by_one = [reason(model, conversation, [prompt], 6)[0] for prompt in prompts]
    for batch_size in (1, 3, 10):
        assert reason(model, conversation, prompts, 6, batch_size=batch_size) == one_by_one
    assert reason(model, conversation, prompts[::-1], 6, batch_size=3) == one_by_one[::-1]


def test_no_tokens_and_no_prompts(search: SearchR3) -> None:
    assert search.generate(QUERIES, max_new_tokens=0) == [Reasoning("", (), emitted=False)] * len(QUERIES)
    assert search.generate([]) == []


def test_reasoning_prints_as_its_text() -> None:
    thought = Reasoning("key terms", (3, 4), emitted=True)
    assert f"{thought}" == str(thought) == "key terms"
    assert "token_ids" not in repr(thought)


def test_the_text_is_the_decoded_thought(search: SearchR3) -> None:
    for thought in search.generate(QUERIES, max_new_tokens=6):
        assert (
            thought.text == search.tokenizer.decode(list(thought.token_ids), skip_special_tokens=True).strip()
        )


def test_padding_id_falls_back_on_the_end_of_the_turn(
    search: SearchR3, monkeypatch: pytest.MonkeyPatch
) -> None:
    conversation = Conversation(search.tokenizer)
    pad, end = search.tokenizer.pad_token_id, search.tokenizer.eos_token_id
    assert padding_id(conversation) == pad != end
    monkeypatch.setitem(search.tokenizer._special_tokens_map, "pad_token", None)
    assert padding_id(conversation) == end
    monkeypatch.setitem(search.tokenizer._special_tokens_map, "eos_token", None)
    assert padding_id(conversation) == 0
    assert conversation.stop_ids == [conversation.embed_id]
