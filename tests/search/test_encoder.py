"""Who a store's model is, and when it is refused."""

import os
import shutil
from pathlib import Path

import pytest

from searchr3.conversation import Prompts
from searchr3.errors import SearchR3Error
from searchr3.search.encoder import identify, load_for, refuse_other


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def test_a_copy_is_the_same_model_and_any_change_another(model: Path, tiny_model: Path) -> None:
    facts = identify(tiny_model)
    assert (facts.dimension, facts.max_length) == (32, 96)
    assert identify(model).digest == facts.digest
    assert identify(model, max_length=80).digest != facts.digest
    assert identify(model, Prompts(embed="Another.")).digest != facts.digest
    weights = model / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[-1] ^= 1
    weights.write_bytes(raw)
    assert identify(model).digest != facts.digest


def test_files_that_are_as_they_were_are_not_hashed_again(model: Path, monkeypatch) -> None:
    facts = identify(model)
    monkeypatch.setattr("searchr3.files.sha256_of", lambda files: "changed")
    assert identify(model, known=facts).digest == facts.digest
    os.utime(model / "model.safetensors", (1, 1))
    assert identify(model, known=facts).digest != facts.digest


def test_a_store_loads_its_model_with_its_prompts_and_length(model: Path, tmp_path: Path) -> None:
    facts = identify(model, Prompts(embed="Mine."), max_length=80)
    loaded = load_for(facts, "store", batch_size=4)
    assert loaded.conversation.prompts.embed == "Mine." and loaded.conversation.max_length == 80
    model.rename(tmp_path / "elsewhere")
    with pytest.raises(SearchR3Error, match=r"it is the model of store: if it was moved, give --model"):
        load_for(facts, "store")
    assert load_for(facts, "store", str(tmp_path / "elsewhere")).batch_size == 32


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": "other", "digest": "x"}, "of another model, .*, not of other"),
        ({"digest": "x"}, "of .* as it was before its files changed"),
        ({"digest": "x", "max_length": 80}, "of .* with other prompts or another length"),
    ],
)
def test_the_refusal_says_what_differs_and_the_mend(model: Path, change: dict, words: str) -> None:
    facts = identify(model)
    with pytest.raises(SearchR3Error, match=f"store: its vectors are {words}; index anew into another"):
        refuse_other(facts, facts.model_copy(update=change), "store")
    refuse_other(facts, facts.model_copy(update={"model": "moved"}), "store")
