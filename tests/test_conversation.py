"""The conversation: ids, position, special tokens, prompts, and how a base model gets the embed token."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from searchr3.conversation import EMBED_TOKEN, Conversation, Prompts, add_embed_token, embed_token_id
from searchr3.errors import ModelError

SPECIAL = ["<|embed_token|>", "<|im_end|>", "<|im_start|>", "<|endoftext|>", "<|im_start|>system\n"]
texts = st.lists(st.one_of(st.text(max_size=30), st.sampled_from(SPECIAL)), max_size=12).map("".join)


@pytest.fixture(scope="module", params=["tiny_model", "qwen2_model"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(request.getfixturevalue(request.param))


@pytest.fixture(scope="module")
def conversation(tokenizer: PreTrainedTokenizerBase) -> Conversation:
    return Conversation(tokenizer, max_length=60)


def base_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(folder)


# -- rendering


def test_direct_ids_are_those_of_the_chat_template(conversation: Conversation) -> None:
    system = {"role": "system", "content": "Represent the text."}
    turns = [
        {"role": "user", "content": "parse the date"},
        {"role": "assistant", "content": f"The embedding is {EMBED_TOKEN}."},
    ]
    whole = conversation.tokenizer.apply_chat_template([system, *turns], tokenize=False)
    expected = conversation.tokenizer(whole, add_special_tokens=False)["input_ids"]
    (rendered,) = conversation.documents(["parse the date"])
    assert expected[: len(rendered.ids)] == rendered.ids
    said = expected[len(rendered.ids) : len(rendered.ids) + len(conversation.after_token(reasoned=False))]
    assert said == conversation.after_token(reasoned=False)
    assert rendered.ids[rendered.position] == conversation.embed_id
    assert conversation.queries(["parse the date"]) == [rendered]


def test_reasoned_ids_are_those_of_the_chat_template(conversation: Conversation) -> None:
    system = {"role": "system", "content": "Think of key terms, then represent the text."}
    turns = [system, {"role": "user", "content": "parse the date"}]
    whole = conversation.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    (prompt,) = conversation.reasoning_prompts(["parse the date"])
    assert prompt == conversation.tokenizer(whole, add_special_tokens=False)["input_ids"]
    (rendered,) = conversation.reasoned(["parse the date"], [[7, 8, 9]])
    assert rendered.ids == [*prompt, 7, 8, 9, conversation.embed_id]
    assert (rendered.position, rendered.answer_start) == (len(prompt) + 3, len(prompt))


@settings(max_examples=60)
@given(text=texts, instruction=st.none() | texts, room=st.integers(1, 40))
def test_a_text_of_any_length_leaves_template_and_token_whole(
    tokenizer: PreTrainedTokenizerBase, text: str, instruction: str | None, room: int
) -> None:
    wide = Conversation(tokenizer, max_length=5000)
    (empty,) = wide.queries([""], instruction)
    conversation = Conversation(tokenizer, max_length=len(empty.ids) + room)
    (rendered,) = conversation.queries([text], instruction)
    (text_ids,) = wide.thought_ids([text])
    inside = text_ids[:room]
    tail = len(empty.ids) - empty.answer_start
    suffix = wide._frame(wide.prompts.embed, instruction)[1]  # what stands between the text and the answer
    start = empty.answer_start - len(suffix)
    assert rendered.ids == empty.ids[:start] + inside + empty.ids[start:]
    assert len(rendered.ids) <= conversation.max_length
    assert rendered.position == len(rendered.ids) - 1
    assert rendered.answer_start == len(rendered.ids) - tail
    assert rendered.ids.index(conversation.embed_id) == rendered.position  # exactly once, at the position


@settings(max_examples=60)
@given(text=texts, instruction=st.none() | texts)
def test_special_tokens_in_texts_and_instructions_are_only_text(
    conversation: Conversation, text: str, instruction: str | None
) -> None:
    conversation = Conversation(conversation.tokenizer, max_length=5000)
    special = set(conversation.tokenizer.all_special_ids) | {conversation.embed_id}
    special |= set(
        conversation.tokenizer.convert_tokens_to_ids(["<|im_start|>", "<|im_end|>", "<|endoftext|>"])
    )

    def marks(ids: list[int]) -> list[int]:
        return [index for index in ids if index in special]

    plain = conversation.reasoning_prompts(["x"], "y")[0]
    assert marks(conversation.reasoning_prompts([text], instruction)[0]) == marks(plain)
    assert conversation.embed_id not in plain
    assert marks(conversation.queries([text], instruction)[0].ids) == marks(
        conversation.documents(["x"])[0].ids
    )
    assert not marks(conversation.thought_ids([text])[0])
    assert marks(conversation.chat_prompts([text])[0]) == marks(conversation.chat_prompts(["x"])[0])


@settings(max_examples=30)
@given(text=texts, thoughts=st.lists(st.lists(st.integers(5, 300), max_size=90), min_size=1, max_size=3))
def test_the_prompt_does_not_depend_on_the_thought(
    conversation: Conversation, text: str, thoughts: list[list[int]]
) -> None:
    (prompt,) = conversation.reasoning_prompts([text])
    assert len(prompt) <= conversation.max_length
    for thought, rendered in zip(
        thoughts, conversation.reasoned([text] * len(thoughts), thoughts), strict=True
    ):
        assert rendered.ids == prompt + thought + [conversation.embed_id]
        assert rendered == conversation.close(prompt, thought)


def test_the_instruction_stands_on_a_line_after_the_system_prompt(qwen2_model: Path) -> None:
    conversation = Conversation(AutoTokenizer.from_pretrained(qwen2_model))
    (rendered,) = conversation.queries(["a date"], "Given a name, find its function.")
    text = conversation.tokenizer.decode(rendered.ids)
    system = "<|im_start|>system\nRepresent the text.\nGiven a name, find its function.<|im_end|>\n"
    assert text.startswith(system + "<|im_start|>user\na date<|im_end|>")
    assert (
        conversation.queries(["a date"], "")
        == conversation.queries(["a date"])
        == conversation.documents(["a date"])
    )


def test_a_template_may_put_the_system_prompt_after_the_text(qwen2_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(qwen2_model)
    tokenizer.chat_template = "{{ messages[-1].content }}|{{ messages[0].content }}<|im_end|>"
    conversation = Conversation(tokenizer)
    (prompt,) = conversation.reasoning_prompts(["the text"], "an instruction <|im_end|>")
    assert tokenizer.decode(prompt).startswith("the text|Think of key terms")
    assert tokenizer.decode(prompt).endswith("\nan instruction <|im_end|><|im_end|>")
    assert prompt.count(tokenizer.eos_token_id) == 1


def test_chat_prompts_have_no_system_turn_of_ours(conversation: Conversation) -> None:
    (prompt,) = conversation.chat_prompts(["hello"])
    turn = [{"role": "user", "content": "hello"}]
    whole = conversation.tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
    assert prompt == conversation.tokenizer(whole, add_special_tokens=False)["input_ids"]


def test_stop_ids_and_what_follows_the_token(conversation: Conversation) -> None:
    end = conversation.tokenizer.eos_token_id
    assert conversation.stop_ids == [conversation.embed_id, end]
    assert conversation.after_token(reasoned=True) == [end]
    assert conversation.after_token(reasoned=False) == [*conversation.thought_ids(["."])[0], end]


def test_no_texts_give_nothing(conversation: Conversation) -> None:
    assert (
        conversation.documents([]) == conversation.reasoning_prompts([]) == conversation.thought_ids([]) == []
    )
    assert conversation.reasoned([], []) == []


def test_too_few_thoughts_are_an_error(conversation: Conversation) -> None:
    with pytest.raises(ValueError):
        conversation.reasoned(["a", "b"], [[1]])


def test_a_length_that_the_template_fills_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    template = len(Conversation(tokenizer).documents([""])[0].ids)
    with pytest.raises(ModelError, match=f"max_length {template} leaves no room"):
        Conversation(tokenizer, max_length=template).documents(["text"])
    assert (
        len(Conversation(tokenizer, max_length=template + 1).documents(["text text"])[0].ids) == template + 1
    )


@pytest.mark.parametrize(
    ("template", "complaint"),
    [
        ("{{ raise_exception('no system role') }}", "no system role"),
        ("{% for", "chat template fails"),
        ("hello", "exactly once"),
        ("{{ messages[-1].content }}{{ messages[-1].content }}", "exactly once"),
        ("{{ messages[-1].content | lower }}", "exactly once"),
    ],
)
def test_a_template_that_does_not_hold_the_text_once_is_refused(
    tiny_model: Path, template: str, complaint: str
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = template
    with pytest.raises(ModelError, match=complaint) as caught:
        Conversation(tokenizer).documents(["text"])
    assert "\n" not in str(caught.value)


def test_a_tokenizer_without_the_token_is_refused(tiny_base: Path) -> None:
    with pytest.raises(
        ModelError, match=r"tiny-base: the tokenizer has no <\|embed_token\|>.*train it first"
    ):
        Conversation(base_tokenizer(tiny_base))


@settings(max_examples=50)
@given(text=texts)
def test_the_same_ids_after_saving_and_loading(
    tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    folder = tmp_path_factory.getbasetemp() / f"again-{type(tokenizer).__name__}"
    if not folder.exists():
        tokenizer.save_pretrained(folder)
        (folder / "config.json").write_text((Path(tokenizer.name_or_path) / "config.json").read_text())
    again = AutoTokenizer.from_pretrained(folder)
    before, after = Conversation(tokenizer), Conversation(again)
    assert before.documents([text]) == after.documents([text])
    assert before.reasoning_prompts([text], text) == after.reasoning_prompts([text], text)


# -- prompts


def test_prompts_from_yaml_and_json(tmp_path: Path) -> None:
    written = tmp_path / "prompts.yaml"
    written.write_text("embed: Embed this.\nreason: |-\n  Think.\n  Then embed.\n")
    assert Prompts.load(written) == Prompts("Embed this.", "Think.\nThen embed.")
    own = Prompts("a", "b", f"{EMBED_TOKEN}")
    (tmp_path / "prompts.json").write_text(json.dumps(own.to_dict()))
    assert Prompts.load(tmp_path / "prompts.json") == own


def test_prompts_shape_the_conversation(qwen2_model: Path) -> None:
    prompts = Prompts("Embed this.", "Enrich this.", f"{EMBED_TOKEN} it is")
    conversation = Conversation(AutoTokenizer.from_pretrained(qwen2_model), prompts)
    (rendered,) = conversation.documents(["x"])
    text = conversation.tokenizer.decode(rendered.ids)
    assert text.startswith("<|im_start|>system\nEmbed this.<|im_end|>")
    assert text.endswith("<|im_start|>assistant\n<|embed_token|>")
    assert rendered.answer_start == rendered.position
    assert conversation.tokenizer.decode(conversation.after_token(reasoned=False)) == " it is<|im_end|>"
    assert "Enrich this." in conversation.tokenizer.decode(conversation.reasoning_prompts(["x"])[0])


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("reasn: Think.", "unknown key 'reasn'; did you mean 'reason'?"),
        ("zzz: Think.", "unknown key 'zzz'"),
        ("embed: 3", "'embed' must be text, got int"),
        ("answer: The embedding is here.", "'answer' must hold <|embed_token|> exactly once"),
        ("answer: <|embed_token|> <|embed_token|>", "exactly once"),
        ("- embed", "expected a mapping with the keys embed, reason, answer"),
        ("", "expected a mapping"),
        ("embed: [", "not valid YAML or JSON"),
        (b"\xff\xfe\x00", "not valid YAML or JSON"),
    ],
)
def test_wrong_prompts_name_the_file_and_the_fault(
    tmp_path: Path, content: str | bytes, complaint: str
) -> None:
    file = tmp_path / "prompts.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ModelError) as caught:
        Prompts.load(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_prompts_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"none\.yaml: cannot read the prompts \(No such file"):
        Prompts.load(tmp_path / "none.yaml")


def test_an_answer_without_the_token_is_refused() -> None:
    with pytest.raises(ModelError, match="exactly once"):
        Prompts(answer="The embedding.")


# -- a base model gets the embed token


def tiny_network(rows: int, tied: bool) -> Qwen3ForCausalLM:
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    torch.manual_seed(1)
    return Qwen3ForCausalLM(
        Qwen3Config(vocab_size=rows, num_key_value_heads=1, head_dim=16, tie_word_embeddings=tied, **shape)
    )


def weights(model: Qwen3ForCausalLM) -> tuple[torch.Tensor, torch.Tensor]:
    return (
        model.get_input_embeddings().weight.detach().clone(),
        model.get_output_embeddings().weight.detach().clone(),
    )


@pytest.mark.parametrize("base", ["tiny_base", "qwen2_base"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("spare", [0, 1, 16])
def test_the_new_token_takes_a_spare_row_or_exactly_one_more(
    request: pytest.FixtureRequest, base: str, tied: bool, spare: int
) -> None:
    tokenizer = base_tokenizer(request.getfixturevalue(base))
    size = len(tokenizer)
    others = set(tokenizer.all_special_tokens) | set(tokenizer.extra_special_tokens)
    model = tiny_network(size + spare, tied)
    before = weights(model)
    index = add_embed_token(model, tokenizer)
    assert index == size == embed_token_id(tokenizer)
    assert len(tokenizer) == size + 1
    assert others < set(tokenizer.all_special_tokens) | set(tokenizer.extra_special_tokens)
    rows = max(size + spare, size + 1)
    for old, layer in zip(before, (model.get_input_embeddings(), model.get_output_embeddings()), strict=True):
        assert layer.weight.shape == (rows, 16)
        kept = [row for row in range(len(old)) if row != index]
        assert torch.equal(layer.weight[kept], old[kept])
        torch.testing.assert_close(layer.weight[index], old[:index].mean(dim=0))
    assert model.config.vocab_size == rows
    same = model.get_input_embeddings().weight.data_ptr() == model.get_output_embeddings().weight.data_ptr()
    assert same == tied
    assert model(torch.tensor([[index]])).logits.shape == (1, 1, rows)


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("base", ["tiny_base", "qwen2_base"])
def test_a_known_token_is_kept_and_becomes_special(
    request: pytest.FixtureRequest, base: str, special: bool
) -> None:
    tokenizer = base_tokenizer(request.getfixturevalue(base))
    tokenizer.add_tokens([AddedToken(EMBED_TOKEN, special=special, normalized=False)])
    known = embed_token_id(tokenizer)
    model = tiny_network(len(tokenizer) + 3, tied=True)
    before, _ = weights(model)
    assert add_embed_token(model, tokenizer) == known == len(tokenizer) - 1
    assert torch.equal(model.get_input_embeddings().weight, before)
    (rendered,) = Conversation(tokenizer).documents([f"a {EMBED_TOKEN} b"])
    assert rendered.ids.count(known) == 1
    assert add_embed_token(model, tokenizer) == known  # twice is once
    assert torch.equal(model.get_input_embeddings().weight, before)
    assert tokenizer.extra_special_tokens.count(EMBED_TOKEN) == 1


@pytest.mark.parametrize("base", ["tiny_base", "qwen2_base"])
def test_a_checkpoint_with_the_token_as_an_ordinary_one(
    request: pytest.FixtureRequest, base: str, tmp_path: Path
) -> None:
    folder = request.getfixturevalue(base)
    tokenizer = base_tokenizer(folder)
    tokenizer.add_tokens([AddedToken(EMBED_TOKEN, special=False, normalized=False)])
    spelt = tokenizer(EMBED_TOKEN, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert spelt == [embed_token_id(tokenizer)]  # so a text could spell it
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    conversation = Conversation(loaded)
    assert conversation.embed_id == spelt[0]
    assert conversation.documents([EMBED_TOKEN * 3])[0].ids.count(spelt[0]) == 1
    assert len(loaded) == len(tokenizer)


def test_a_known_token_without_a_row_gets_one(tiny_base: Path) -> None:
    tokenizer = base_tokenizer(tiny_base)
    tokenizer.add_special_tokens({"extra_special_tokens": [EMBED_TOKEN]}, replace_extra_special_tokens=False)
    model = tiny_network(len(tokenizer) - 1, tied=True)
    index = add_embed_token(model, tokenizer)
    embeddings = model.get_input_embeddings().weight
    assert len(embeddings) == index + 1 == len(tokenizer)
    torch.testing.assert_close(embeddings[index], embeddings[:index].mean(dim=0))


def test_a_row_in_half_precision_is_finite(qwen2_base: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(qwen2_base, dtype="bfloat16")
    index = add_embed_token(model, base_tokenizer(qwen2_base))
    row = model.get_input_embeddings().weight[index]
    assert row.dtype == torch.bfloat16
    assert row.isfinite().all()
    assert row.abs().sum() > 0


# -- chats of several turns

TURNS = [("system", "Be brief."), ("user", "Hello"), ("assistant", "Yes?"), ("user", "Go on")]


def test_a_chat_is_that_of_the_template(conversation: Conversation) -> None:
    for count in (2, 4):
        messages = [{"role": role, "content": content} for role, content in TURNS[:count]]
        whole = conversation.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        expected = conversation.tokenizer(whole, add_special_tokens=False)["input_ids"]
        assert conversation.chat(TURNS[:count]) == expected


@given(contents=st.lists(texts, min_size=12, max_size=12))
@settings(max_examples=30)
def test_contents_of_a_chat_are_only_text(conversation: Conversation, contents: list[str]) -> None:
    roles = ["user", "assistant"] * 6
    turns = list(zip(roles, contents, strict=True))
    plain = conversation.chat([(role, "") for role in roles])
    special = set(conversation.tokenizer.all_special_ids)
    assert [one for one in conversation.chat(turns) if one in special] == [
        one for one in plain if one in special
    ]


def test_turns_that_the_template_does_not_take(tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    chat = Conversation(tokenizer)
    tokenizer.chat_template = "{{ messages[0].content }}"
    with pytest.raises(ModelError, match="it must show each once"):
        chat.chat(TURNS)
    tokenizer.chat_template = "{{ raise_exception('no system turn') }}"
    with pytest.raises(ModelError, match="fails on turns of system, user, assistant, user: no system"):
        chat.chat(TURNS)


def test_reasoning_prompts_begin_alike(conversation: Conversation) -> None:
    for instruction in (None, "Find code."):
        first, second = conversation.reasoning_prompts(["parse a date", "<|im_end|> x"], instruction)
        start = conversation.reasoning_start(instruction)
        assert 0 < start < len(first) and first[:start] == second[:start]
