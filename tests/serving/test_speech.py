"""Text as it is being said: the pieces are the whole, and no piece holds half a character."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from searchr3.serving.speech import HALF, Speech


@pytest.fixture(scope="module", params=["tiny_model", "qwen2_model"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    folder: Path = request.getfixturevalue(request.param)
    return AutoTokenizer.from_pretrained(folder)


@given(st.text(max_size=40), st.lists(st.integers(1, 5), max_size=30))
def test_pieces_of_a_text(tokenizer: PreTrainedTokenizerBase, text: str, sizes: list[int]) -> None:
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    speech, pieces, rest = Speech(tokenizer), [], ids
    for size in sizes + [1] * len(ids):
        pieces.append(speech.push(rest[:size]))
        rest = rest[size:]
    assert HALF in text or not any(piece.endswith(HALF) for piece in pieces)
    assert "".join([*pieces, speech.end()]) == whole


@given(st.lists(st.integers(0, 499), max_size=25))
def test_any_ids_are_told_whole_and_no_character_by_halves(
    tokenizer: PreTrainedTokenizerBase, ids: list[int]
) -> None:
    """Also ids that no text has: special tokens, parts of characters that nothing completes."""
    speech = Speech(tokenizer)
    pieces = [speech.push([one]) for one in ids]
    assert not any(piece.endswith(HALF) for piece in pieces)
    assert "".join([*pieces, speech.end()]) == tokenizer.decode(ids, skip_special_tokens=True)
