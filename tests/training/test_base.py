"""The tiny base: its tokenizer, its packed texts, and a base that is made and given the embed token."""

import random
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, Qwen3ForCausalLM

from searchr3.conversation import EMBED_TOKEN
from searchr3.errors import DataError
from searchr3.model import SearchR3
from searchr3.training import base
from searchr3.training.base import (
    CHATML,
    SPARE_ROWS,
    VOCABULARY,
    as_chat,
    make_base,
    make_tokenizer,
    pack,
    tiny_config,
)

TEXTS = [
    f"def get_{name}Value(self, {name}): return self.{name}[{i}]"
    for i, name in enumerate("abcdefghijklmnopqrst")
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer([*TEXTS, "get file name from HTTP server 2024"], vocabulary=400)


def ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    return tokenizer(text)["input_ids"]


@pytest.mark.parametrize(
    "spelling",
    ["get_file_name", "getFileName", "GetFileName", "GET_FILE_NAME", "get file  name", "get\n\tfile name "],
)
def test_spellings_of_a_name_share_their_tokens(tokenizer: PreTrainedTokenizerFast, spelling: str) -> None:
    assert ids(tokenizer, spelling) == ids(tokenizer, "get file name")


def test_capitals_in_a_row_are_one_word(tokenizer: PreTrainedTokenizerFast) -> None:
    assert ids(tokenizer, "HTTPServer") == ids(tokenizer, "http server") != ids(tokenizer, "h t t p server")


def test_a_word_has_the_same_tokens_wherever_it_stands(tokenizer: PreTrainedTokenizerFast) -> None:
    name, bracket = ids(tokenizer, "name"), ids(tokenizer, "(")
    assert (
        ids(tokenizer, "(name") == ids(tokenizer, "( name") == ids(tokenizer, "_( \n name") == bracket + name
    )
    assert ids(tokenizer, "name(name") == name + bracket + name


@given(text=st.text(alphabet=st.characters(codec="utf-8"), max_size=60))
def test_no_text_is_beyond_the_alphabet(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    decoded = tokenizer.decode(tokenizer(text, split_special_tokens=True)["input_ids"])
    again = tokenizer(decoded, split_special_tokens=True)["input_ids"]
    assert max(again, default=0) < len(tokenizer)
    assert "\ufffd" not in decoded or "\ufffd" in text


@given(words=st.lists(st.from_regex(r"[a-z]{1,9}", fullmatch=True), max_size=8))
def test_words_survive_encoding_and_decoding(tokenizer: PreTrainedTokenizerFast, words: list[str]) -> None:
    assert tokenizer.decode(ids(tokenizer, " ".join(words))).split() == words


def test_the_same_texts_make_the_same_tokenizer(tokenizer: PreTrainedTokenizerFast) -> None:
    once, twice = (make_tokenizer(iter(TEXTS), vocabulary=350) for _ in range(2))
    assert once.backend_tokenizer.to_str() == twice.backend_tokenizer.to_str()
    assert once.get_vocab() != tokenizer.get_vocab()


def test_the_vocabulary_is_as_large_as_wanted_and_no_larger() -> None:
    assert len(make_tokenizer(TEXTS, vocabulary=270)) == 270


def test_the_template_is_chatml(tokenizer: PreTrainedTokenizerFast) -> None:
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert text == "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n"
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    assert [token for token in ids(tokenizer, text) if token in (start, end)] == [
        start,
        end,
        start,
        end,
        start,
    ]
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|endoftext|>")


def test_the_tiny_shape_has_five_million_parameters_and_spare_rows(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    config = tiny_config(tokenizer)
    with torch.device("meta"):
        model = Qwen3ForCausalLM(config)
    assert 5.0e6 < model.num_parameters() < 5.5e6
    assert (config.model_type, config.tie_word_embeddings) == ("qwen3", True)
    assert (config.eos_token_id, config.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert VOCABULARY - (VOCABULARY - SPARE_ROWS) >= 16
    assert tiny_config(tokenizer, vocabulary=500, hidden_size=32).hidden_size == 32


@given(count=st.integers(0, 300), seed=st.integers(0, 99))
def test_a_chat_holds_the_text_in_order(count: int, seed: int) -> None:
    words = [f"w{i}" for i in range(count)]
    chat = as_chat(" ".join(words), random.Random(seed))
    user, assistant = (
        chat.removeprefix("<|im_start|>user\n")
        .removesuffix("<|im_end|>\n")
        .split("<|im_end|>\n<|im_start|>assistant\n")
    )
    assert user.split() + assistant.split() == words[: len(user.split()) + 120]
    if count > 1:
        assert 1 <= len(user.split()) <= 40
        assert assistant


def test_packed_rows_hold_every_token_in_whole_rows(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = pack(TEXTS, tokenizer, context=16, chat_share=0.0)
    assert rows.dtype == torch.int32
    assert rows.shape[1] == 16
    end = tokenizer.pad_token_id
    total = sum(len(ids(tokenizer, text)) + 1 for text in TEXTS)
    assert len(rows) == total // 16
    assert (rows == end).sum() in (len(TEXTS), len(TEXTS) - 1)
    assert rows.max() < len(tokenizer)


def test_packing_depends_on_the_seed_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    one, two = (pack(TEXTS, tokenizer, context=16, chat_share=0.5, seed=1) for _ in range(2))
    assert torch.equal(one, two)
    assert not torch.equal(one, pack(TEXTS, tokenizer, context=16, chat_share=0.5, seed=2))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_chats_are_marked_and_plain_texts_are_not(tokenizer: PreTrainedTokenizerFast, share: float) -> None:
    spelt = [text + " <|im_start|> <|endoftext|>" for text in TEXTS]
    rows = pack(spelt, tokenizer, context=8, chat_share=share)
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|endoftext|>"])
    if share:
        assert (rows == start).any()
    else:
        assert not (rows == start).any()
        assert (rows == end).sum() <= len(TEXTS)  # only between texts


@pytest.mark.parametrize(
    ("arguments", "split_by"), [((), "hash"), (("--split-by", "package", "--steps", "7"), "package")]
)
def test_the_command_leaves_out_what_the_same_split_holds_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], split_by: str
) -> None:
    made: list[tuple[list[str], Path]] = []
    monkeypatch.setattr(
        "searchr3.dataset.python_code.python_texts", lambda split_by: [f"text for {split_by}"]
    )
    monkeypatch.setattr(base, "make_base", lambda texts, output, **_: made.append((texts, output)))

    base.main([str(tmp_path / "base"), *arguments])

    assert made == [([f"text for {split_by}"], tmp_path / "base")]


def test_too_few_texts_are_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="too few texts") as caught:
        make_base(["def f(): return 1"] * 3, tmp_path / "base", steps=1)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "base").exists()


def test_the_bundled_base_has_room_for_the_token(tmp_path: Path) -> None:
    folder = Path(str(files("searchr3"))) / "base"
    assert (folder / "model.safetensors").stat().st_size < 12e6
    search = SearchR3.from_base(folder)
    assert search.model.get_input_embeddings().weight.shape == (VOCABULARY, 256)
    assert search.conversation.embed_id < VOCABULARY
    assert search.tokenizer.chat_template == CHATML
    search.save_pretrained(tmp_path / "model")
    again = SearchR3(tmp_path / "model")
    texts = ["def parse_date(text): ...", "readJSONFile", f"{EMBED_TOKEN} é 😀"]
    assert again.conversation.documents(texts) == search.conversation.documents(texts)
    cosines = (again.encode_document(texts) * search.encode_document(texts)).sum(axis=1)
    assert cosines.min() >= 0.9999


def test_a_base_is_made_saved_and_gets_the_token(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    texts = TEXTS * 8
    folder = make_base(texts, tmp_path / "base", steps=2, batch_size=2)
    assert "5." in capsys.readouterr().out
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    assert (folder / "model.safetensors").stat().st_size < 12e6
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.backend_tokenizer.to_str() == make_tokenizer(texts).backend_tokenizer.to_str()
    search = SearchR3.from_base(folder)
    assert search.model.get_input_embeddings().weight.shape == (VOCABULARY, 256)
    assert search.conversation.embed_id == len(tokenizer) < VOCABULARY
    assert search.encode_document(["get a value"]).shape == (1, 256)
