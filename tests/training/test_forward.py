"""One pass over mixed conversations gives what each of them gives alone."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from searchr3.conversation import EMBED_TOKEN
from searchr3.embedding import embed
from searchr3.generation import padding_id
from searchr3.model import SearchR3
from searchr3.training.forward import Item, Outputs
from searchr3.training.forward import run as forward

TEXTS = [
    "parse the date",
    "x",
    f"spell {EMBED_TOKEN} out",
    "merge two sorted lists lazily and count their lines",
]


@pytest.fixture(scope="module", params=["tiny_model", "qwen2_model"])
def search(request: pytest.FixtureRequest) -> SearchR3:
    return SearchR3(request.getfixturevalue(request.param))


@pytest.fixture
def items(search: SearchR3) -> list[Item]:
    """Direct and reasoned conversations, and chats without an embed token, of many lengths."""
    chat = search.conversation
    direct = [Item.of(one, chat.after_token(False), learn=True, anchor=True) for one in chat.documents(TEXTS)]
    silent = [
        Item.of(one, chat.after_token(False), learn=False, anchor=False) for one in chat.queries(TEXTS[:2])
    ]
    thoughts = [[40], [41, 42, 43], [], [44] * 9]
    reasoned = [
        Item.of(one, chat.after_token(True), learn=False, anchor=True)
        for one in chat.reasoned(TEXTS, thoughts)
    ]
    chats = [
        Item([*prompt, 50, 51], None, answer_start=len(prompt), anchor=True)
        for prompt in chat.chat_prompts(TEXTS[:2])
    ]
    return [direct[0], chats[0], silent[0], reasoned[3], *direct[1:], chats[1], silent[1], *reasoned[:3]]


def run(search: SearchR3, items: list[Item], speak: list[bool] | None = None) -> Outputs:
    return forward(search.model, items, padding_id(search.conversation), speak)


@torch.no_grad()
def alone(search: SearchR3, item: Item) -> tuple[torch.Tensor, torch.Tensor]:
    """Vector and assistant logits of one conversation, from the causal model itself."""
    output = search.model(torch.tensor([item.ids]), output_hidden_states=True)
    hidden = output.hidden_states[-1][0]
    vector = (
        torch.zeros(len(hidden[0])) if item.position is None else F.normalize(hidden[item.position], dim=-1)
    )
    return vector, output.logits[0, item.answer_start - 1 : -1]


def test_vectors_logits_and_labels_are_those_of_each_item_alone(search: SearchR3, items: list[Item]) -> None:
    with torch.no_grad():
        outputs = run(search, items)
    singles = [alone(search, item) for item in items]
    torch.testing.assert_close(
        outputs.vectors, torch.stack([vector for vector, _ in singles]), atol=1e-4, rtol=1e-3
    )
    speaking = [row for row, item in enumerate(items) if item.learn or item.anchor]
    expected = torch.cat([singles[row][1] for row in speaking])
    torch.testing.assert_close(outputs.logits, expected, atol=1e-3, rtol=1e-3)
    said = [items[row].ids[items[row].answer_start :] for row in speaking]
    assert outputs.labels.tolist() == [token for ids in said for token in ids]
    assert outputs.item.tolist() == [row for row, ids in zip(speaking, said, strict=True) for _ in ids]
    assert len(speaking) < len(items)


def test_labels_hold_the_answer_and_the_embed_token(search: SearchR3) -> None:
    chat = search.conversation
    (rendered,) = chat.documents(["x"])
    outputs = run(search, [Item.of(rendered, chat.after_token(False), learn=True, anchor=False)])
    said = rendered.ids[rendered.answer_start : rendered.position]
    assert outputs.labels.tolist() == [*said, chat.embed_id, *chat.after_token(False)]
    assert search.tokenizer.decode(said).strip().lower() == "the embedding is"


def test_vectors_equal_embed(search: SearchR3, items: list[Item]) -> None:
    chat = search.conversation
    rendered = chat.documents(TEXTS) + chat.reasoned(TEXTS, [[1, 2], [], [3], [4]])
    bare = [Item(one.ids, one.position, one.answer_start) for one in rendered]
    with torch.no_grad():
        outputs = run(search, bare)
        vectors = embed(search.model, rendered, padding_id(chat))
    assert (outputs.vectors * vectors).sum(dim=1).min() > 0.9999
    assert outputs.vectors.dtype == torch.float32


def test_items_without_a_token_have_zero_vectors(search: SearchR3, items: list[Item]) -> None:
    norms = run(search, items).vectors.norm(dim=1)
    for item, norm in zip(items, norms.tolist(), strict=True):
        assert norm == pytest.approx(0.0 if item.position is None else 1.0, abs=1e-5)


def test_speak_chooses_whose_logits_are_computed(search: SearchR3, items: list[Item]) -> None:
    rows = [1, 4]
    outputs = run(search, items, speak=[row in rows for row in range(len(items))])
    assert outputs.item.unique().tolist() == rows
    whole = run(search, items)
    torch.testing.assert_close(outputs.logits, whole.logits[torch.isin(whole.item, torch.tensor(rows))])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nobody_speaks(tiny_model: Path, dtype: torch.dtype) -> None:
    search = SearchR3(tiny_model, dtype=str(dtype).removeprefix("torch."))
    outputs = run(
        search, [Item(one.ids, one.position, one.answer_start) for one in search.conversation.queries(TEXTS)]
    )
    assert outputs.logits.shape == (0, 600)
    assert outputs.labels.shape == outputs.item.shape == (0,)
    assert outputs.vectors.dtype == torch.float32
    (outputs.vectors.sum() + outputs.logits.sum()).backward()


def test_gradients_equal_those_of_each_item_alone(search: SearchR3, items: list[Item]) -> None:
    weight = search.model.get_input_embeddings().weight
    target = torch.randn(len(items), search.dimension, generator=torch.Generator().manual_seed(0))

    def loss(part: list[Item], goal: torch.Tensor) -> torch.Tensor:
        outputs = run(search, part)
        return (outputs.vectors * goal).sum() + F.cross_entropy(
            outputs.logits, outputs.labels, reduction="sum"
        ) * 0.1

    speaking = [row for row, item in enumerate(items) if item.learn or item.anchor]
    chosen, goals = [items[row] for row in speaking], target[speaking]
    (together,) = torch.autograd.grad(loss(chosen, goals), weight)
    separate = sum(
        torch.autograd.grad(loss([one], goal[None]), weight)[0]
        for one, goal in zip(chosen, goals, strict=True)
    )
    torch.testing.assert_close(together, separate, atol=1e-3, rtol=1e-3)
    assert together.isfinite().all()


def test_an_adapter_speaks_and_embeds(search: SearchR3, items: list[Item]) -> None:
    peft = pytest.importorskip("peft")
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(search.tokenizer.name_or_path)
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    torch.manual_seed(0)
    adapted = peft.get_peft_model(base, config).eval()
    pad = padding_id(search.conversation)
    with torch.no_grad():
        outputs = forward(adapted, items, pad)
        with adapted.disable_adapter():
            without = forward(adapted, items, pad)
        expected = run(search, items)
        merged = forward(adapted.merge_and_unload(), items, pad)
    torch.testing.assert_close(without.logits, expected.logits, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(merged.logits, outputs.logits, atol=1e-2, rtol=1e-2)
    torch.testing.assert_close(merged.vectors, outputs.vectors, atol=1e-3, rtol=1e-2)
    assert (outputs.logits - expected.logits).abs().max() > 0.1
