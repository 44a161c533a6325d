"""The exported tokenizer: the conversation's own ids, whoever loads it and whatever the text spells."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from searchr3.conversation import EMBED_TOKEN
from searchr3.errors import ModelError
from searchr3.export.tokenizer import check_framed, save_framed
from searchr3.model import SearchR3

MARKS = [
    EMBED_TOKEN,
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<tool_call>",
    "system\n",
    "before",
    "after",
]
TEXTS = st.lists(st.one_of(st.sampled_from(MARKS), st.text(max_size=12)), max_size=12).map("".join)


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny_model, qwen2_model):
    """Both models with the folders of their tokenizers."""
    made = []
    for model in (tiny_model, qwen2_model):
        search = SearchR3(model)
        folder = tmp_path_factory.mktemp("framed")
        (folder / "config.json").write_bytes((model / "config.json").read_bytes())
        save_framed(search.conversation, folder)
        raw = Tokenizer.from_file(str(folder / "tokenizer.json"))
        made.append((search, folder, raw, AutoTokenizer.from_pretrained(folder)))
    return made


@given(text=TEXTS)
def test_every_loader_gives_the_ids_of_the_conversation(folders, text):
    for search, _, raw, loaded in folders:
        (wanted,) = search.conversation.documents([text])
        assert raw.encode(text).ids == wanted.ids
        assert loaded(text, truncation=True)["input_ids"] == wanted.ids
        assert (
            wanted.ids.count(search.conversation.embed_id) == 1 and wanted.ids[-1] == raw.encode("").ids[-1]
        )


@given(text=TEXTS, room=st.integers(1, 30))
def test_a_text_is_cut_before_the_conversation_is_put_around_it(folders, text, room):
    for search, _, raw, loaded in folders:
        frame = len(search.conversation.documents([""])[0].ids)
        shorter = SearchR3.from_parts(search.model, search.tokenizer, max_length=frame + room)
        (wanted,) = shorter.conversation.documents([text * 20])
        longest = {"truncation": True, "max_length": frame + room}
        assert loaded(text * 20, **longest)["input_ids"] == wanted.ids
        raw.enable_truncation(frame + room)
        assert raw.encode(text * 20).ids == wanted.ids
        assert wanted.ids[-1] == search.conversation.embed_id
        raw.enable_truncation(search.conversation.max_length)


def test_batches_are_padded_on_either_side_and_the_padding_is_masked(folders):
    for search, _, _, loaded in folders:
        texts = ["x", "a longer text of some words"]
        wanted = [one.ids for one in search.conversation.documents(texts)]
        for side in ("left", "right"):
            batch = loaded(texts, padding=True, padding_side=side)
            masked = [
                [token for token, seen in zip(*row, strict=True) if seen]
                for row in zip(batch["input_ids"], batch["attention_mask"], strict=True)
            ]
            assert masked == wanted
            assert batch["input_ids"][0][0 if side == "left" else -1] == search.tokenizer.pad_token_id


def test_an_instruction_becomes_part_of_the_frame(tmp_path, qwen2_model):
    search = SearchR3(qwen2_model)
    (tmp_path / "config.json").write_bytes((qwen2_model / "config.json").read_bytes())
    task = f"Find the function {EMBED_TOKEN}"
    framed = save_framed(search.conversation, tmp_path, task)
    assert framed.encode("x").ids == search.conversation.queries(["x"], task)[0].ids
    assert framed.encode("x").ids != search.conversation.queries(["x"])[0].ids


def test_a_tokenizer_that_would_give_other_ids_is_refused(folders, tmp_path):
    search, folder, *_ = folders[1]
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    changed = (
        (folder / "tokenizer_config.json")
        .read_text()
        .replace('"split_special_tokens": true', '"split_special_tokens": false')
    )
    (tmp_path / "tokenizer_config.json").write_text(changed)
    with pytest.raises(ModelError, match="other token ids"):
        check_framed(search.conversation, tmp_path)


def test_a_kind_of_tokenizer_that_cannot_be_framed_is_refused_in_one_line(tmp_path, tiny_model):
    from tokenizers import models

    unigram = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.Unigram([("a", 0.0), ("b", -1.0)], unk_id=0)),
        chat_template=SearchR3(tiny_model).tokenizer.chat_template,
    )
    unigram.add_special_tokens({"extra_special_tokens": [EMBED_TOKEN]})
    search = SearchR3.from_parts(SearchR3(tiny_model).model, unigram)
    with pytest.raises(ModelError, match="kind Unigram cannot be exported"):
        save_framed(search.conversation, Path(tmp_path))
