"""One pass: the same thoughts and vectors as two passes, whoever else is in the batch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from searchr3 import thinking
from searchr3.engine import Engine
from searchr3.errors import ModelError
from searchr3.generation import generate_ids
from searchr3.model import SearchR3
from searchr3.tasks import Task

QUERIES = [
    "parse a date",
    "sort a list in place, lazily, then merge",
    "x",
    "count files",
    "load a string " * 9,
]


def tasks_for(search: SearchR3, texts: list[str], most: int = 12, **more: object) -> list[Task]:
    prompts = search.conversation.reasoning_prompts(texts)
    same = [len(set(ids)) == 1 for ids in zip(*prompts, strict=False)]
    beginning = same.index(False) if False in same else 0
    return [Task(prompt, most, beginning=beginning, **more) for prompt in prompts]  # type: ignore[arg-type]


def run(engine: Engine, tasks: list[Task]) -> list[Task]:
    for task in tasks:
        engine.submit(task)
    for _ in range(10_000):
        if not engine.busy:
            return tasks
        engine.step()
    raise AssertionError("never done")


@pytest.mark.parametrize("rows", [1, 2, 8])
@pytest.mark.parametrize("most", [0, 1, 7])
def test_thoughts_and_vectors_are_those_of_two_passes(search: SearchR3, rows: int, most: int) -> None:
    expected = search.generate(QUERIES, max_new_tokens=most)
    vectors = search.encode_query(QUERIES, reasoning=expected)

    found = run(Engine(search, rows), tasks_for(search, QUERIES, most))

    assert [tuple(task.said) for task in found] == [one.token_ids for one in expected]
    assert [task.ended for task in found] == [one.emitted for one in expected]
    np.testing.assert_allclose(np.stack([task.vector for task in found]), vectors, atol=1e-5)


def test_a_single_thought_has_the_memory_of_one(search: SearchR3, monkeypatch: pytest.MonkeyPatch) -> None:
    """However large a batch may be: each row of the cache has room for the longest thought."""
    rows = []

    class Seen(Engine):
        def step(self) -> list[Task]:
            took_part = super().step()
            rows.extend(len(keys) for keys, _ in self.cache.layers)
            return took_part

    monkeypatch.setattr(thinking, "Engine", Seen)
    assert search.batch_size > 2
    search.think(["parse a date"], 5)
    assert set(rows) == {1}
    search.think(QUERIES[:2], 5)
    assert set(rows) == {1, 2}


def test_a_thought_that_ends_itself(search: SearchR3) -> None:
    """Where the model would say a token, it says the embed token: rows then leave at different times."""
    plain = [one.token_ids for one in search.generate(QUERIES, max_new_tokens=9)]

    def ends(token: int) -> list[int]:
        return [ids.index(token) if token in ids else 9 for ids in plain]

    wanted = max({token for ids in plain for token in ids}, key=lambda token: len({*ends(token)}))
    head = search.model.get_output_embeddings()
    embed_id = search.conversation.embed_id

    def swap(module: object, inputs: object, logits: torch.Tensor) -> torch.Tensor:
        changed = logits.clone()
        changed[..., embed_id], changed[..., wanted] = logits[..., wanted], -torch.inf
        return changed

    hook = head.register_forward_hook(swap)
    try:
        expected = search.generate(QUERIES, max_new_tokens=9)
        found = run(Engine(search, 3), tasks_for(search, QUERIES, 9))
    finally:
        hook.remove()
    assert [len(one.token_ids) for one in expected] == ends(wanted)
    assert len({*ends(wanted)}) > 1
    assert [(tuple(task.said), task.ended) for task in found] == [
        (one.token_ids, one.emitted) for one in expected
    ]
    vectors = search.encode_query(QUERIES, reasoning=expected)
    np.testing.assert_allclose(np.stack([task.vector for task in found]), vectors, atol=1e-5)


def test_who_joins_later_changes_nothing(search: SearchR3) -> None:
    alone = [run(Engine(search), tasks_for(search, [query]))[0] for query in QUERIES]
    engine, late = Engine(search, rows=3), tasks_for(search, QUERIES)
    for task in late:
        engine.submit(task)
        engine.step()
        engine.step()
    while engine.busy:
        engine.step()
    assert [task.said for task in late] == [task.said for task in alone]
    np.testing.assert_allclose([t.vector for t in late], [t.vector for t in alone], atol=1e-5)


def test_a_beginning_that_is_kept_changes_nothing(search: SearchR3) -> None:
    engine = Engine(search)
    first, again = (run(engine, tasks_for(search, QUERIES)) for _ in range(2))
    assert len(engine.beginnings) == 1
    prompts = search.conversation.reasoning_prompts(QUERIES)
    without = run(engine, [Task(prompt, 12) for prompt in prompts])
    for a, b, c in zip(first, again, without, strict=True):
        assert a.said == b.said == c.said
        np.testing.assert_allclose(a.vector, b.vector, atol=1e-6)
        np.testing.assert_allclose(a.vector, c.vector, atol=1e-5)


def test_sampling_hangs_on_the_seed_alone(search: SearchR3) -> None:
    def sampled(rows: int, others: list[str]) -> list[int]:
        mine = tasks_for(search, [QUERIES[0]], 10, temperature=1.0, seed=7)
        run(Engine(search, rows), [*tasks_for(search, others, 10, temperature=2.0), *mine])
        return mine[0].said

    assert sampled(1, []) == sampled(4, QUERIES) == sampled(2, QUERIES[:3])
    many = {
        tuple(run(Engine(search), tasks_for(search, ["x"], 6, temperature=1.0))[0].said) for _ in range(9)
    }
    assert len(many) > 1


@pytest.mark.parametrize("temperature", [1e-5, 1e-39, 5e-324])
def test_next_to_no_temperature_is_greedy_and_fails_nobody(search: SearchR3, temperature: float) -> None:
    greedy = run(Engine(search), tasks_for(search, QUERIES))
    cold = run(Engine(search), tasks_for(search, QUERIES, temperature=temperature))
    assert [task.said for task in cold] == [task.said for task in greedy]


def test_chat_ends_with_the_turn_and_has_no_vector(search: SearchR3) -> None:
    prompts = search.conversation.chat_prompts(QUERIES)
    eos = search.tokenizer.eos_token_id
    expected = generate_ids(search.model, search.conversation, prompts, 8, stop_ids=[eos])
    found = run(Engine(search, 2), [Task(prompt, 8, embeds=False) for prompt in prompts])
    for task, ids in zip(found, expected, strict=True):
        assert task.vector is None and task.done
        assert [*task.said, *([eos] if task.ended else [])] == ids


def test_a_task_that_is_cancelled_leaves_at_once(search: SearchR3) -> None:
    expected = run(Engine(search), tasks_for(search, QUERIES))
    engine, tasks = Engine(search, rows=3), tasks_for(search, QUERIES)
    for task in tasks:
        engine.submit(task)
    engine.step()
    engine.cancel(tasks[1])  # at work
    engine.cancel(tasks[4])  # waiting
    engine.cancel(tasks[4])
    while engine.busy:
        engine.step()
    for number in (0, 2, 3):
        assert tasks[number].said == expected[number].said
        np.testing.assert_allclose(tasks[number].vector, expected[number].vector, atol=1e-5)
    assert tasks[1].vector is tasks[4].vector is None


def test_memory_is_given_back(search: SearchR3) -> None:
    engine = Engine(search)
    run(engine, tasks_for(search, QUERIES))
    assert engine.cache.capacity == 0 and not engine.active


@settings(max_examples=12)
@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 6), st.booleans()), max_size=8), st.integers(1, 4)
)
def test_any_mixture_of_tasks_ends(search: SearchR3, asked: list[tuple[int, int, bool]], rows: int) -> None:
    prompts = search.conversation.reasoning_prompts(QUERIES)
    tasks = [Task(prompts[which], most, embeds=embeds) for which, most, embeds in asked]
    run(Engine(search, rows), tasks)
    for task in tasks:
        assert task.done and len(task.said) <= task.max_new_tokens
        assert (task.vector is not None) == task.embeds
        if task.vector is not None:
            assert np.linalg.norm(task.vector) == pytest.approx(1, abs=1e-5)


def test_what_it_refuses(search: SearchR3, monkeypatch: pytest.MonkeyPatch) -> None:
    for task in (Task([], 3), Task([1], -1)):
        with pytest.raises(ValueError, match="needs a prompt"):
            Engine(search).submit(task)
    monkeypatch.setattr(search.model.config, "model_type", "mamba")
    with pytest.raises(ModelError, match="cannot take a 'mamba' model apart"):
        Engine(search)
