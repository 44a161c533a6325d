"""Rollouts in one pass: sampled as `generate` samples, with the vectors that a second pass would give."""

from typing import Any

import numpy as np
import pytest
import torch

from searchr3.embedding import Embedder
from searchr3.generation import generate_ids, split_completion
from searchr3.model import SearchR3
from searchr3.training.groups import Rollouts
from searchr3.training.one_pass import OnePass

QUERIES = ["parse a date", "sort a list in place, lazily, then merge", "x"]
GROUP = 4


def prompts_of(search: SearchR3, group: int = GROUP) -> list[list[int]]:
    return [prompt for prompt in search.conversation.reasoning_prompts(QUERIES) for _ in range(group)]


def rollouts_of(search: SearchR3, prompts: list[list[int]], completions: list[list[int]]) -> Rollouts:
    queries = [str(row // GROUP) for row in range(len(prompts))]
    return Rollouts(queries, prompts, completions, GROUP, search.conversation)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Shapes of what the model reads but for single tokens."""
    shapes: list[tuple[int, int]] = []
    plain = Embedder.hidden

    def hidden(self: Embedder, ids: torch.Tensor, *arguments: Any) -> torch.Tensor:
        shapes.append((len(ids), ids.shape[1]))
        return plain(self, ids, *arguments)

    monkeypatch.setattr(Embedder, "hidden", hidden)
    return shapes


@pytest.fixture
def talkative(search: SearchR3, monkeypatch: pytest.MonkeyPatch) -> SearchR3:
    """A quarter of all that it might say ends a thought: an untrained model never does."""
    chat = search.conversation
    stops = [chat.embed_id, *range(0, len(chat.tokenizer), 4)]
    monkeypatch.setattr(type(chat), "stop_ids", property(lambda self: stops))
    return search


def test_vectors_are_those_of_a_second_pass(talkative: SearchR3) -> None:
    prompts = prompts_of(talkative)
    torch.manual_seed(0)
    one_pass = OnePass(6, 1.0)
    completions = one_pass.sample(talkative, prompts)
    chat = talkative.conversation
    for completion in completions:
        assert 1 <= len(completion) <= 6 and not set(completion[:-1]) & set(chat.stop_ids)
        assert len(completion) == 6 or completion[-1] in chat.stop_ids
    assert len({len(completion) for completion in completions}) > 2

    rollouts = rollouts_of(talkative, prompts, completions)
    found = one_pass.vectors(talkative, rollouts)
    expected = talkative.encode_rendered(rollouts.rendered())
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert [split_completion(one, chat) for one in completions] == rollouts._split


def test_each_prompt_is_read_once_and_no_thought_again(search: SearchR3, read: list[tuple[int, int]]) -> None:
    prompts = prompts_of(search)
    one_pass = OnePass(3, 1.0)
    completions = one_pass.sample(search, prompts)
    one_pass.vectors(search, rollouts_of(search, prompts, completions))
    assert [rows for rows, _ in read] == [1, len(QUERIES)]  # the system prompt, what follows it


def test_what_was_put_in_is_encoded(search: SearchR3, read: list[tuple[int, int]]) -> None:
    prompts = prompts_of(search)
    one_pass = OnePass(3, 1.0)
    completions = one_pass.sample(search, prompts)
    for row in range(GROUP - 1, len(completions), GROUP):
        completions[row] = [*search.conversation.answer_ids, search.conversation.embed_id]
    rollouts = rollouts_of(search, prompts, completions)
    read.clear()
    found = one_pass.vectors(search, rollouts)
    assert sum(rows for rows, _ in read) == len(QUERIES)
    np.testing.assert_allclose(found, search.encode_rendered(rollouts.rendered()), atol=1e-5)


def test_next_to_no_temperature_is_greedy(search: SearchR3) -> None:
    prompts = prompts_of(search, 2)
    assert OnePass(5, 1e-6).sample(search, prompts) == generate_ids(
        search.model, search.conversation, prompts, 5
    )


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
def test_tokens_are_drawn_as_often_as_the_model_says(search: SearchR3, temperature: float) -> None:
    """Many first tokens against the model's own chances: χ² near its degrees of freedom."""
    prompt = search.conversation.reasoning_prompts(QUERIES[:1])[0]
    with torch.no_grad():
        logits = search.model(torch.tensor([prompt])).logits[0, -1]
    chances = (logits / temperature).softmax(-1)
    torch.manual_seed(1)
    draws = 16_000
    first = [one[0] for one in OnePass(1, temperature).sample(search, [prompt] * draws)]
    counts = np.bincount(first, minlength=len(chances))
    expected = draws * chances.double().numpy()
    likely = expected >= 5
    squares = ((counts - expected)[likely] ** 2 / expected[likely]).sum()
    freedom = int(likely.sum())
    assert freedom > 100 and abs(squares - freedom) < 5 * (2 * freedom) ** 0.5


def test_draws_are_those_of_the_process(search: SearchR3) -> None:
    """So a checkpoint, which keeps their state, holds all that a resumed run needs."""
    prompts = prompts_of(search)

    def after(seed: int) -> tuple[list[list[int]], torch.Tensor]:
        torch.manual_seed(seed)
        return OnePass(4, 1.0).sample(search, prompts), torch.get_rng_state()

    (said, state), (again, state_again), (other, _) = after(0), after(0), after(1)
    assert said == again and torch.equal(state, state_again) and said != other


def test_the_mode_of_the_model_stays(search: SearchR3) -> None:
    search.model.train()
    try:
        OnePass(1, 1.0).sample(search, prompts_of(search))
        assert search.model.training
    finally:
        search.model.eval()
