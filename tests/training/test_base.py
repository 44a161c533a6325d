"""The tiny base: its tokenizer, its packed texts, and a base that is made and given the embed token."""

import json
import random
from contextlib import nullcontext
from dataclasses import replace
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, Qwen3ForCausalLM

from searchr3.conversation import EMBED_TOKEN
from searchr3.errors import DataError, ModelError, RecipeError, SearchR3Error
from searchr3.model import SearchR3
from searchr3.runs.preparation import refuse_a_base_that_knows
from searchr3.training import base
from searchr3.training.base_facts import was_shown_pairs
from searchr3.training.base_model import (
    CHATML,
    SIZES,
    SPARE_ROWS,
    VOCABULARY,
    Shape,
    make_tokenizer,
    tiny_config,
)
from searchr3.training.base_rows import all_shares, as_chat, pack, pack_talks, schedule
from searchr3.training.base_sources import Source
from searchr3.training.base_start import Start
from searchr3.training.base_training import BaseTrainer, Settings, make_base
from searchr3.training.checkpoints import last_checkpoint
from searchr3.training.recipe_file import load_recipe

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


def test_conversations_are_packed_as_the_template_writes_them(tokenizer: PreTrainedTokenizerFast) -> None:
    turns = [("user", "get a name"), ("assistant", "return self.name[3]")]
    rows = pack_talks([tuple(turns)] * 8, tokenizer, context=4)
    messages = [{"role": role, "content": text} for role, text in turns]
    whole = tokenizer.apply_chat_template(messages * 8, return_dict=False)
    expected = torch.tensor(whole[: len(whole) // 4 * 4]).view(-1, 4)
    assert sorted(rows.tolist()) == sorted(expected.tolist())
    spelt = pack_talks([(("user", "a <|im_end|> b"), ("assistant", "<|im_start|>"))], tokenizer, context=1)
    start, end = tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>"])
    assert [int((spelt == one).sum()) for one in (start, end)] == [2, 2]


PARTS = st.dictionaries(st.sampled_from("abcd"), st.integers(1, 9), min_size=1)


@given(sizes=PARTS, data=st.data())
def test_shares_are_kept_and_the_rest_is_divided_by_size(sizes: dict[str, int], data: st.DataObject) -> None:
    some = data.draw(st.lists(st.sampled_from(sorted(sizes)), unique=True))
    given_shares = {name: data.draw(st.floats(0.01, 0.2)) for name in some}
    found = all_shares(sizes, given_shares)
    assert list(found) == list(sizes)
    assert sum(found.values()) == pytest.approx(1)
    if len(some) < len(sizes):
        assert {name: found[name] for name in some} == pytest.approx(given_shares)
    rest = [name for name in sizes if name not in some]
    for one, other in pairwise(rest):
        assert found[one] * sizes[other] == pytest.approx(found[other] * sizes[one])


@given(sizes=PARTS, count=st.integers(0, 80), seed=st.integers(0, 5))
def test_a_schedule_deals_rows_by_shares_and_each_part_evenly(
    sizes: dict[str, int], count: int, seed: int
) -> None:
    shares = all_shares(sizes, dict.fromkeys([*sizes][:1], 0.2))
    plan = schedule(sizes, shares, count, seed)
    assert plan.dtype == np.int64 and len(plan) == count
    assert np.array_equal(plan, schedule(sizes, shares, count + 9, seed)[:count])
    start = 0
    for name, size in sizes.items():
        own = plan[(plan >= start) & (plan < start + size)]
        assert abs(len(own) - shares[name] * count) <= len(sizes)
        taken = np.bincount(own - start, minlength=size)
        assert taken.max() - taken.min() <= 1  # all come before one comes again
        start += size


@pytest.mark.parametrize(
    ("arguments", "split_by"), [((), "hash"), (("--split-by", "package", "--steps", "7"), "package")]
)
def test_the_command_leaves_out_what_the_same_split_holds_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], split_by: str
) -> None:
    made: list[tuple] = []
    monkeypatch.setattr(base, "python_source", lambda split_by, pairs: (split_by, pairs))
    monkeypatch.setattr(base, "make_base", lambda *given: made.append(given))

    base.main([str(tmp_path / "base"), *arguments])

    settings = Settings(steps=7) if arguments else Settings()
    assert made == [([(split_by, False)], tmp_path / "base", settings, False, None)]


def test_the_command_reads_python_code_alone_unless_other_sources_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[tuple] = []
    monkeypatch.setattr(base, "python_source", lambda split_by, pairs: "python")
    monkeypatch.setattr(base, "data_sources", lambda folders, pairs: [*folders, pairs] if folders else [])
    monkeypatch.setattr(base, "text_source", lambda path: path)
    monkeypatch.setattr(
        base, "make_base", lambda sources, output, settings, resume, start: made.append((sources, settings))
    )

    base.main([*(str(tmp_path), "--data", "a", "--data", "b", "--text", "c", "--pairs")])
    base.main(
        [*(str(tmp_path), "--data", "a", "--python", "--size", "15m", "--heads", "3", "--share", "a=0.5")]
    )

    assert made[0] == (["a", "b", True, "c"], Settings())
    assert made[1] == (["python", "a", False], Settings(shape=Shape(384, 7, 3), shares={"a": 0.5}))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--width", "100", "--heads", "3"), "multiple of twice the heads"),
        (("--layers", "0"), "1 or more"),
        (("--steps", "0"), "takes 1 step or more"),
        (("--vocabulary", "300"), "too small"),
        (("--share", "python=1.5"), "at most 1 together"),
        (("--dev-share", "1"), "from 0 to 1"),
        (("--text", "nowhere.jsonl"), "nowhere.jsonl"),
    ],
)
def test_a_wrong_option_is_one_line(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    with pytest.raises(SystemExit) as caught:
        base.main([str(tmp_path / "base"), "--no-python", *arguments])
    assert words in str(caught.value) and "\n" not in str(caught.value)


SMALL = Settings(steps=4, tokens=512, vocabulary=512, shape=Shape(16, 1, 2))


def talks(*names: str) -> list:
    return [(("user", f"what is {name}"), ("assistant", f"it is the {name} " * 40)) for name in names]


@pytest.mark.parametrize(
    ("sources", "settings", "words"),
    [
        ([Source("a", ["def f(): return 1"] * 3)], SMALL, "too few texts"),
        ([Source("a", TEXTS), Source("a", TEXTS)], SMALL, "two sources are called 'a'"),
        ([Source("a", TEXTS * 40)], Settings(shares={"b": 0.5}), "no such part"),
        ([Source("a", TEXTS * 40, talks(*"abc") * 9)], Settings(shares={"a": 1.0}), "nothing to a-pairs"),
    ],
)
def test_a_wrong_source_is_one_clear_line(
    tmp_path: Path, sources: list[Source], settings: Settings, words: str
) -> None:
    with pytest.raises(DataError, match=words) as caught:
        make_base(sources, tmp_path / "base", settings)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "base").exists()


SOURCES = [Source("code", TEXTS * 20, talks(*"abcdefghijklmnop"), {"kind": "text"})]


def made(folder: Path, settings: Settings, **options: Any) -> dict[str, torch.Tensor]:
    make_base(SOURCES, folder, settings, **options)
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize(("shares", "goes_on"), [({}, False), ({"code-pairs": 0.5}, False), ({}, True)])
def test_a_killed_base_goes_on_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taught: Path, shares: dict[str, float], goes_on: bool
) -> None:
    settings = Settings(**{**vars(SMALL), "shares": shares, "dev_share": 0.2})
    arguments = "searchr3.training.base_training.SAVE_EVERY"
    monkeypatch.setattr(arguments, 2)
    start = Start.read(taught) if goes_on else None
    whole = made(tmp_path / "whole", settings, start=start)
    kill = monkeypatch.context()
    with kill as inside:

        def step(trainer: BaseTrainer, *given, **named):
            if trainer.state.global_step == 3:
                raise KeyboardInterrupt
            return super(BaseTrainer, trainer).training_step(*given, **named)

        inside.setattr(BaseTrainer, "training_step", step, raising=False)
        with pytest.raises(KeyboardInterrupt):
            made(tmp_path / "cut", settings, start=start)
    assert not (tmp_path / "cut").exists()

    with pytest.raises(SearchR3Error, match="go on with --resume"):
        made(tmp_path / "cut", settings, start=start)
    with pytest.raises(SearchR3Error, match=r"differs in read, settings\.seed;"):
        made(tmp_path / "cut", Settings(**{**vars(settings), "seed": 1}), resume=True, start=start)
    again = made(tmp_path / "cut", settings, resume=True, start=start)
    assert whole.keys() == again.keys() and all(torch.equal(whole[name], again[name]) for name in whole)
    facts = [json.loads((tmp_path / name / "base.json").read_text()) for name in ("whole", "cut")]
    assert facts[0] == facts[1]

    more = made(tmp_path / "cut", Settings(**{**vars(settings), "steps": 6}), resume=True, start=start)
    assert any(not torch.equal(more[name], again[name]) for name in more)
    assert last_checkpoint(tmp_path / "cut.checkpoints").name == "checkpoint-6"


def test_base_json_says_how_it_was_made(tmp_path: Path) -> None:
    settings = Settings(**{**vars(SMALL), "shares": {"code-pairs": 0.5}, "dev_share": 0.2})
    made(tmp_path / "base", settings)
    facts = json.loads((tmp_path / "base" / "base.json").read_text(encoding="utf-8"))
    assert facts["sources"] == [{"name": "code", "kind": "text", "texts": len(TEXTS) * 20, "talks": 16}]
    assert facts["shares"] == pytest.approx({"code": 0.5, "code-pairs": 0.5})
    assert facts["rows"].keys() == {"code", "code-pairs"}
    assert facts["settings"]["shape"] == {"width": 16, "layers": 1, "heads": 2}
    (losses,) = facts["losses"]
    assert losses["step"] == 4
    assert 0 < losses["code"] < 7 and 0 < losses["code-pairs"] < 7  # ln 512 = 6.2


# Going on from another base


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base that has learnt something."""
    settings = replace(SMALL, steps=40, learning_rate=0.02, dev_share=0.2)
    facts = {"kind": "python", "split_by": "hash", "pairs": True}
    sources = [Source("code", TEXTS * 20, talks(*"abcdefghijklmnop"), facts)]
    return make_base(sources, tmp_path_factory.mktemp("taught") / "base", settings)


def facts_of(folder: Path) -> dict:
    return json.loads((folder / "base.json").read_text(encoding="utf-8"))


OTHER = Source("other", [text.upper() for text in TEXTS] * 20, (), {"kind": "data", "pairs": False})


def test_a_base_goes_on_where_another_one_was(tmp_path: Path, taught: Path) -> None:
    settings = replace(SMALL, steps=2, learning_rate=1e-5, dev_share=0.2)
    more = [*SOURCES, OTHER]
    folder = make_base(more, tmp_path / "more", settings, start=Start.read(taught))
    fresh = make_base(more, tmp_path / "fresh", settings)

    tokenizers = [AutoTokenizer.from_pretrained(one).backend_tokenizer.to_str() for one in (taught, folder)]
    assert tokenizers[0] == tokenizers[1]
    before, after, anew = (facts_of(one)["losses"][-1]["code"] for one in (taught, folder, fresh))
    assert after == pytest.approx(before, abs=0.03)
    assert anew > before + 0.5
    kept = facts_of(folder)
    assert [one["name"] for one in kept["sources"]] == ["code", "other", "code"]
    assert kept["sources"][2] == {**facts_of(taught)["sources"][0], "inherited": True}
    assert kept["from"] == facts_of(taught) and "from" not in facts_of(fresh)
    third = make_base([OTHER], tmp_path / "third", settings, start=Start.read(folder))
    assert facts_of(third)["from"]["from"] == facts_of(taught)
    assert [one["name"] for one in facts_of(third)["sources"]] == ["other", "code", "other", "code"]


def test_a_continuation_in_the_making_goes_on_from_the_same_base_alone(tmp_path: Path, taught: Path) -> None:
    make_base([OTHER], tmp_path / "base", SMALL, start=Start.read(taught))
    with pytest.raises(SearchR3Error, match=r"differs in from, read, rows, sources;"):
        make_base([OTHER], tmp_path / "base", SMALL, resume=True)


@pytest.mark.parametrize("more", [{"kind": "python", "split_by": "package"}, {"kind": "text"}])
def test_what_a_base_has_inherited_is_refused_as_what_it_has_read(
    tmp_path: Path, taught: Path, more: dict
) -> None:
    source = Source("more", TEXTS * 20, (), more)
    folder = make_base([source], tmp_path / "base", replace(SMALL, steps=1), start=Start.read(taught))
    refused = {"package"} | ({"hash"} if more["kind"] == "python" else set())
    for split_by in ("hash", "package"):
        recipe = load_recipe({}, [f"model.base={folder}", f"data.split_by={split_by}"])
        with pytest.raises(RecipeError, match="has seen functions") if split_by in refused else nullcontext():
            refuse_a_base_that_knows(recipe)
    assert was_shown_pairs(facts_of(folder))


def test_a_base_keeps_its_shape(tmp_path: Path, taught: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple] = []
    with monkeypatch.context() as patch:
        patch.setattr(base, "make_base", lambda *given: asked.append(given))
        patch.setattr(base, "text_source", lambda path: OTHER)
        base.main([str(tmp_path / "base"), "--from", str(taught), "--text", "x", "--steps", "3"])
    ((_, _, settings, _, start),) = asked
    assert (settings.shape, settings.vocabulary) == (SMALL.shape, SMALL.vocabulary)
    assert (settings.steps, start.folder) == (3, taught)
    with pytest.raises(SearchR3Error, match="keeps its shape and vocabulary; leave out --size"):
        make_base([OTHER], tmp_path / "base", replace(SMALL, shape=Shape(32, 1, 2)), start=start)
    (tmp_path / "none").mkdir()
    with pytest.raises(ModelError, match=r"base.json: is missing.*this command has made"):
        Start.read(tmp_path / "none")


def test_a_size_has_about_the_parameters_of_its_name(tokenizer: PreTrainedTokenizerFast) -> None:
    for name, shape in SIZES.items():
        with torch.device("meta"):
            model = Qwen3ForCausalLM(tiny_config(tokenizer, shape=shape))
        assert model.num_parameters() / 1e6 == pytest.approx(int(name[:-1]), rel=0.06)


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
    folder = make_base([Source("code", texts)], tmp_path / "base", Settings(steps=2, tokens=512))
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
