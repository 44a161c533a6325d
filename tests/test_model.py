"""`SearchR3`: saving and loading, and its arguments. For the vectors see `test_position_contract.py`."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from searchr3.conversation import EMBED_TOKEN, Prompts
from searchr3.embedding import shorten
from searchr3.errors import ModelError, SearchR3Error
from searchr3.generation import Reasoning
from searchr3.loading import SETTINGS
from searchr3.model import SearchR3

TEXTS = [
    "parse the date",
    "x",
    f"spell {EMBED_TOKEN} out",
    "",
    "count the words of every line",
    "sort",
    "merge",
]
THOUGHTS = [[40, 41], [], [300], [5, 6, 7, 8, 9, 10], [42], [43, 44], [45]]
LIMIT = 0.9999  # the contract's cosine in float32


def agreement(a: np.ndarray, b: np.ndarray) -> float:
    """The smallest cosine of two rows that should be equal."""
    assert a.shape == b.shape
    return float((a * b).sum(axis=1).min())


# -- saving and loading


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


def test_untied_heads_are_saved_too(tiny_base: Path, tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(tiny_base, tie_word_embeddings=False)
    torch.manual_seed(4)
    shutil.copytree(tiny_base, tmp_path / "base")
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    model = SearchR3.from_base(tmp_path / "base")
    head = model.model.get_output_embeddings().weight
    assert not torch.equal(head, model.model.get_input_embeddings().weight)
    model.save_pretrained(tmp_path / "model")
    again = SearchR3(tmp_path / "model")
    assert torch.equal(again.model.get_output_embeddings().weight, head)
    assert again.generate(TEXTS, max_new_tokens=4) == model.generate(TEXTS, max_new_tokens=4)
    assert agreement(again.encode_document(TEXTS), model.encode_document(TEXTS)) >= LIMIT


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
    expected = search.encode_rendered(search.conversation.reasoned(TEXTS, THOUGHTS))
    assert agreement(search.encode_query(TEXTS, reasoning=own), expected) >= LIMIT


@pytest.mark.parametrize("most", [0, 1, 7])
def test_thinking_in_one_pass_is_thinking_in_two(
    search: SearchR3, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same ids, the same vectors; in training mode as well; and no random number is drawn."""
    texts, task = TEXTS * 12, "Find code."
    thoughts = search.generate(texts, most, instruction=task)
    vectors = search.encode_query(texts, thoughts, task)
    assert search.reads_once
    search.model.train()
    before = torch.get_rng_state()
    said, found = search.think(texts, most, task)
    assert search.model.training and torch.equal(torch.get_rng_state(), before)
    search.model.eval()
    assert said == thoughts
    np.testing.assert_allclose(found, vectors, atol=1e-5)
    asked = {"instruction": task, "max_new_tokens": most}
    np.testing.assert_allclose(
        search.encode_query(texts, True, dim=8, **asked), shorten(vectors, 8), atol=1e-5
    )
    assert search.think([], most)[0] == [] and search.think([])[1].shape == (0, search.dimension)
    monkeypatch.setattr("searchr3.embedding.KNOWN", ())
    assert not search.reads_once
    said, found = search.think(texts, most, task)
    assert said == thoughts
    np.testing.assert_allclose(found, vectors, atol=1e-6)


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
    expected = search.encode_rendered(search.conversation.queries(TEXTS, instruction))
    assert agreement(search.encode_query(TEXTS, instruction=instruction), expected) >= LIMIT
    thoughts = search.generate(TEXTS, max_new_tokens=5, instruction=instruction)
    reasoned = search.encode_query(TEXTS, reasoning=True, instruction=instruction, max_new_tokens=5)
    ids = [thought.token_ids for thought in thoughts]
    assert (
        agreement(reasoned, search.encode_rendered(search.conversation.reasoned(TEXTS, ids, instruction)))
        >= LIMIT
    )


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


@pytest.mark.parametrize("reasoning", ["maybe", [], [Reasoning("", (), False)] * 2])
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


def test_a_zero_vector_stays_finite() -> None:
    assert np.array_equal(shorten(np.array([[0.0, 0.0, 3.0]], dtype=np.float32), 2), [[0.0, 0.0]])
