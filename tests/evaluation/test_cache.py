"""What is kept of an evaluation: the same results without asking the model, and never those of another."""

import itertools
import multiprocessing
import os
import signal
import sqlite3
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from searchr3.errors import DataError, SearchR3Error
from searchr3.evaluation import bench, evaluate
from searchr3.evaluation.baselines import _SentenceTransformer
from searchr3.evaluation.cache import Cache, Cached, _key, default_folder
from searchr3.evaluation.shelf import Shelf
from searchr3.generation import Reasoning


class Stopped(Exception):
    """The user's patience, or the power, has come to its end."""


class Counting:
    """Says what it is, counts what it is asked, and may fail at a call."""

    def __init__(self, fails_at=None, fatal=False, **words):
        super().__init__(**words)
        self.asked: list[str] = []
        self.calls, self.fails_at, self.fatal = 0, fails_at, fatal

    def digest(self):
        return f"bag-{self.dimension}-{self.said}"

    def count(self, texts):
        if self.calls == self.fails_at:
            if self.fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            raise Stopped
        self.calls += 1
        self.asked += texts

    def generate(self, batch, max_new_tokens, temperature=0.0, instruction=None):
        self.count(batch)
        return super().generate(batch, max_new_tokens)

    def encode_query(self, queries, reasoning=False, instruction=None, dim=None):
        self.count(queries)
        queries = [f"{instruction} {text}" for text in queries] if instruction else queries
        return super().encode_query(queries, reasoning)[:, :dim]

    def encode_document(self, documents, dim=None):
        self.count(documents)
        return super().encode_document(documents)[:, :dim]


@pytest.fixture
def known(model):
    """Class of a bag of words that is `Counting`."""
    return type("Known", (Counting, type(model)), {})


def measured(model, data, folder, **options):
    with Cache(folder) as cache:
        return evaluate(model, data, baselines=(), cache=cache, **options)


def content(results):
    """All that an evaluation found, but the seconds."""
    return [
        results.document_vectors.tobytes(),
        *(
            [run.name, run.values, run.hits, run.query_vectors.tobytes(), [*map(plain, run.thoughts.items())]]
            for run in results.runs
        ),
    ]


def plain(item):
    query, thought = item
    return query, thought.text, tuple(thought.token_ids), thought.emitted


def answer(found):
    """Vectors or thoughts, to compare."""
    return found.tobytes() if isinstance(found, np.ndarray) else [*map(plain, enumerate(found))]


@pytest.fixture
def small_blocks(monkeypatch):
    monkeypatch.setattr(bench, "_DOCUMENTS", 40)
    monkeypatch.setattr(bench, "QUERIES", 10)


def test_a_second_evaluation_asks_the_model_nothing_and_finds_the_same(known, data, tmp_path):
    first, again = known(), known()
    without = content(evaluate(known(), data, baselines=()))
    assert content(measured(first, data, tmp_path)) == without
    assert content(measured(again, data, tmp_path)) == without
    assert first.calls > 0 and again.calls == 0
    assert [file.name for file in tmp_path.iterdir()] == ["bag-64-extra.sqlite"]


def test_an_evaluation_that_failed_goes_on_behind_its_last_block(known, data, tmp_path, small_blocks):
    whole = known()
    wanted = content(evaluate(whole, data, baselines=()))
    assert whole.calls == 4 + 4 + 2 * 4  # documents, direct queries, and thoughts with their vectors
    model = known()
    for moment in range(whole.calls):  # one call a try
        model.fails_at = moment
        with pytest.raises(Stopped):
            measured(model, data, tmp_path)
    model.fails_at = None
    assert content(measured(model, data, tmp_path)) == wanted
    assert model.calls == whole.calls


def test_a_killed_evaluation_goes_on_behind_its_last_block(known, data, tmp_path, small_blocks):
    process = multiprocessing.get_context("fork").Process(
        target=measured, args=(known(fails_at=3, fatal=True), data, tmp_path)
    )
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    again = known()
    assert content(measured(again, data, tmp_path)) == content(evaluate(known(), data, baselines=()))
    assert again.calls == 4 + 4 + 2 * 4 - 3


def test_only_new_texts_are_asked_and_each_once(known, tmp_path):
    model = known()
    with Cache(tmp_path) as cache:
        cached = cache.over(model)
        cached.encode_document(["a red", "a blue"])
        vectors = cached.encode_document(["a green", "a red", "a green", "a teal"])
    assert model.asked == ["a red", "a blue", "a green", "a teal"]
    np.testing.assert_array_equal(vectors, model.vectors(["a green", "a red", "a green", "a teal"]))
    assert vectors.dtype == np.float32 and vectors.flags.writeable


def test_whatever_changes_an_answer_is_asked_anew(known, tmp_path):
    """Every pair of these calls differs in one thing; none may answer for another."""
    thought, other = Reasoning("red", (1,), True), Reasoning("red", (2,), True)
    text = ["red teal"]
    calls = [
        lambda model: model.encode_document(text),
        lambda model: model.encode_document(text, dim=8),
        lambda model: model.encode_query(text),
        lambda model: model.encode_query(text, dim=8),
        lambda model: model.encode_query(text, dim=9),
        lambda model: model.encode_query(text, instruction="Find."),
        lambda model: model.encode_query(text, instruction="Seek."),
        lambda model: model.encode_query(text, reasoning=[thought]),
        lambda model: model.encode_query(text, reasoning=[other]),
        lambda model: model.encode_query(text, reasoning=[replace(thought, token_ids=())]),
        lambda model: model.encode_query(text, reasoning=[thought], instruction="Find."),
        lambda model: model.generate(text, 8),
        lambda model: model.generate(text, 9),
        lambda model: model.generate(text, 8, instruction="Find."),
        lambda model: model.encode_query(["red  teal"]),
        lambda model: model.encode_query(["Red teal"]),
    ]
    model = known()
    with Cache(tmp_path) as cache:
        cached = cache.over(model)
        for number, call in enumerate(calls, start=1):
            call(cached)
            assert model.calls == number
        for call in calls:
            assert answer(call(cached)) == answer(call(known()))
        assert model.calls == len(calls)
        cached.encode_query(text, instruction=None)  # as if there were none
        assert model.calls == len(calls)


def test_another_model_is_another_file(known, data, tmp_path):
    measured(known(), data, tmp_path)
    for other in (known(dimension=32), known(said="blue")):
        assert content(measured(other, data, tmp_path)) == content(evaluate(other, data, baselines=()))
        assert other.calls > 0
    assert len([*tmp_path.iterdir()]) == 3


def test_what_is_drawn_by_chance_is_not_kept(known, tmp_path):
    model = known(said="sampled")
    with Cache(tmp_path) as cache:
        cached = cache.over(model)
        for _ in range(2):
            cached.generate(["red"], 4, temperature=1.0)
    assert model.calls == 2


def test_what_is_drawn_with_a_seed_is_kept_by_its_batch(thinker, tmp_path):
    thinker.digest = lambda: "drawing"
    texts = ["red blue teal", "green pink", "red blue teal"]
    with Cache(tmp_path) as cache:
        cached = cache.over(thinker)
        first = cached.generate(texts, 6, 1.0, seed=3)
        assert answer(first) == answer(thinker.generate(texts, 6, 1.0, seed=3))
        thinker.asked.clear()
        assert answer(cached.generate(texts, 6, 1.0, seed=3)) == answer(first)
        assert not thinker.asked
        for asked in (
            lambda model: model.generate(texts, 6, 1.0, seed=4),
            lambda model: model.generate(texts[:2], 6, 1.0, seed=3),
            lambda model: model.generate(texts[::-1] + texts, 6, 1.0, seed=3),
            lambda model: model.generate(texts, 5, 1.0, seed=3),
            lambda model: model.generate(texts, 6, 0.5, seed=3),
            lambda model: model.generate(texts, 6),
        ):
            thinker.asked.clear()
            assert answer(asked(cached)) == answer(asked(thinker))
            assert len(thinker.asked) == 2


def test_one_lost_sample_is_drawn_with_its_whole_batch(thinker, tmp_path):
    thinker.digest = lambda: "drawing"
    texts = ["red blue teal", "green pink", "gold grey blue"]
    with Cache(tmp_path) as cache:
        first = cache.over(thinker).generate(texts, 6, 1.0, seed=3)
    with sqlite3.connect(tmp_path / "drawing.sqlite") as base:
        base.execute("DELETE FROM entries WHERE rowid = 2")
    with Cache(tmp_path) as cache:
        assert answer(cache.over(thinker).generate(texts, 6, 1.0, seed=3)) == answer(first)
    assert [asked["batch"] for asked in thinker.asked] == [texts, texts]


def test_samples_of_an_evaluation_that_failed_are_not_drawn_again(
    thinker, data, tmp_path, small_blocks, monkeypatch
):
    monkeypatch.setattr("searchr3.evaluation.samples.QUERIES", 10)
    thinker.digest = lambda: "drawing"
    asked = {"samples": [1, 3], "max_new_tokens": 6}

    def points(folder):
        curve = measured(thinker, data, folder, **asked).summary["curves"]["samples"]
        return [point["ndcg@10"] for point in curve]

    whole = points(tmp_path / "whole")
    draws = len(thinker.asked)
    generate, left = thinker.generate, 6

    def failing(*given, **options):
        nonlocal left
        left -= 1
        if left < 0:
            raise Stopped
        return generate(*given, **options)

    thinker.asked.clear()
    thinker.generate = failing
    with pytest.raises(Stopped):
        points(tmp_path / "kept")
    thinker.generate = generate
    for _ in range(2):
        assert points(tmp_path / "kept") == whole
        assert len(thinker.asked) == draws == 4 + 3 * 4


def test_seconds_are_those_of_the_computing(known, data, tmp_path, monkeypatch):
    now = 0.0

    def passing(seconds, work=lambda *_: None):
        def call(*given):
            nonlocal now
            now += seconds
            return work(*given)

        return call

    monkeypatch.setattr(time, "perf_counter", lambda: now)
    monkeypatch.setattr(known, "count", passing(3.0, known.count))
    for name in ("get", "put"):  # what looking up takes is nobody's cost
        monkeypatch.setattr(Shelf, name, passing(100.0, getattr(Shelf, name)))
    tries = [measured(known(), data, tmp_path) for _ in range(2)]
    assert now == pytest.approx(2 * 4 * 100 + 4 * 100 + 4 * 3)
    for results in tries:
        direct, reasoned = results.runs
        assert [run.seconds for run in results.runs] == pytest.approx([3, 6])
        assert direct.thinking_seconds is None and reasoned.thinking_seconds == pytest.approx(3)
        tokens = sum(len(thought.token_ids) for thought in reasoned.thoughts.values())
        costs = [run["cost"] for run in results.summary["runs"]]
        assert [cost["seconds_per_query"] for cost in costs] == pytest.approx([3 / 40, 6 / 40])
        assert [cost["documents_seconds"] for cost in costs] == pytest.approx([3, 3])
        assert costs[0]["thinking_tokens_per_second"] is None
        assert costs[1]["thinking_tokens_per_second"] == pytest.approx(tokens / 3)


def test_thoughts_and_vectors_of_one_pass_are_kept_apart(known, tmp_path):
    """What is known of either is not asked again; vectors behind thoughts that are known are asked alone."""

    class OnePass(known):
        reads_once = True

        def think(self, queries, max_new_tokens, instruction=None):
            self.count([f"think {text}" for text in queries])
            thoughts = super(Counting, self).generate(queries, max_new_tokens)
            return thoughts, super(Counting, self).encode_query(queries, thoughts)

    model, queries = OnePass(), ["red", "green", "red"]
    thoughts, vectors = model.think(queries, 4)
    with Cache(tmp_path) as cache:
        cached = Cached(model, cache)
        cached.generate(["green"], 4)
        for asked in (["think red", "green"], []):
            model.asked.clear()
            said, found = cached.think(queries, 4)
            assert model.asked == asked
            assert [one.text for one in said] == [one.text for one in thoughts]
            np.testing.assert_allclose(found, vectors, atol=1e-6)
        cached.encode_query(["red"], said[:1])
        assert not model.asked and cached.think([], 4)[0] == []


def test_a_cache_of_nothing_is_no_file(model, data, tmp_path):
    """A model that cannot say what it is, is measured as ever."""
    assert content(measured(model, data, tmp_path)) == content(evaluate(model, data, baselines=()))
    assert not [*tmp_path.iterdir()]


def test_baselines_are_kept_too(known, data, tmp_path, monkeypatch):
    rival = known()
    monkeypatch.setattr("searchr3.evaluation.runner.check_baselines", lambda *_: None)
    monkeypatch.setattr("searchr3.evaluation.rivals.load_rival", lambda *_: rival)
    for _ in range(2):
        with Cache(tmp_path) as cache:
            results = evaluate(known(said="own"), data, baselines=("bm25", "a/rival"), cache=cache)
    assert rival.calls == 2  # documents and queries, the first time
    kinds = {run["name"]: run["kind"] for run in results.summary["runs"]}
    assert kinds == {"direct": "own", "reasoned": "own", "bm25": "baseline", "a/rival": "baseline"}
    assert all(run["cost"]["documents_seconds"] > 0 for run in results.summary["runs"])


def test_a_sentence_transformers_model_is_its_files(tmp_path, monkeypatch):
    loaded = SimpleNamespace(device=SimpleNamespace(type="cpu"))
    stand_in = SimpleNamespace(SentenceTransformer=lambda path, **_: loaded)
    monkeypatch.setitem(sys.modules, "sentence_transformers", stand_in)
    names = set()
    for files in ({"modules.json": "[]"}, {"modules.json": "[]", "1_Pooling/config.json": "{}"}):
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(text)
        names.add(_SentenceTransformer(str(tmp_path)).digest())
    loaded.device.type = "cuda"
    names.add(_SentenceTransformer(str(tmp_path)).digest())
    assert len(names) == 3
    assert _SentenceTransformer(str(tmp_path)).digest() in names


def test_everything_else_is_the_models(known, tmp_path):
    model = known()
    with Cache(tmp_path) as cache:
        cached = cache.over(model)
        assert isinstance(cached, Cached) and cache.over(cached) is cached
        assert (cached.dimension, cached.model) == (64, model)
        with pytest.raises(AttributeError, match="nothing_of_that_name"):
            cached.nothing_of_that_name  # noqa: B018
        assert cached.encode_document([]).shape == model.vectors([]).shape
        assert cached.generate([], 4) == []
        with pytest.raises(TypeError, match="not one text"):
            cached.encode_query("red")
        with pytest.raises(ValueError, match="zip"):
            cached.encode_query(["red"], reasoning=[])


QUESTIONS = st.tuples(
    st.sampled_from(["document", "query", "thought"]),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=5) | st.sampled_from(["", "\0", "\0\0", '"]']),
    st.dictionaries(st.sampled_from(["dim", "instruction"]), st.integers(0, 2) | st.text(max_size=1)),
    st.none()
    | st.builds(Reasoning, st.sampled_from(["", "1"]), st.lists(st.integers(0, 2)).map(tuple), st.just(True)),
)


@settings(max_examples=30)
@given(st.lists(QUESTIONS, min_size=2, max_size=8))
def test_other_questions_have_other_names(questions):
    for a, b in itertools.combinations(questions, 2):
        assert (_key(*a) == _key(*b)) == (a == b)


@pytest.mark.parametrize("text", ["\ud800", "a\udc00b", "\ud83d\ude00"])
def test_half_a_character_is_refused(known, text, tmp_path):
    with Cache(tmp_path) as cache, pytest.raises(DataError, match="half a character"):
        cache.over(known()).encode_document(["good", text])


def test_where_it_lies(tmp_path, monkeypatch):
    monkeypatch.setenv("SEARCHR3_CACHE", "~/own")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Cache(default_folder()).folder == tmp_path / "own"
    monkeypatch.delenv("SEARCHR3_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert default_folder() == Path("/caches/searchr3")
    for useless in ("", "relative"):  # as the XDG specification wants it
        monkeypatch.setenv("XDG_CACHE_HOME", useless)
        assert default_folder() == tmp_path / ".cache" / "searchr3"


def test_a_place_that_cannot_be_written_is_told_before_the_work(tmp_path):
    with pytest.raises(SearchR3Error, match=r"cannot be written .* with --cache, or use --no-cache"):
        Cache("/proc/none/of/it")
    (tmp_path / "file").write_text("")
    with pytest.raises(SearchR3Error, match="is no folder"):
        Cache(tmp_path / "file" / "cache")
