"""The name of a model: equal where its vectors must be equal, another wherever they might not be."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from searchr3 import digest
from searchr3.conversation import Prompts
from searchr3.digest import folder_digest
from searchr3.model import SearchR3


def test_the_same_model_has_the_same_name_wherever_it_lies_and_whatever_it_did(
    tiny_model: Path, tmp_path: Path
) -> None:
    model = SearchR3(tiny_model)
    name = model.digest()
    assert len(name) == 32 and int(name, 16)
    model.encode_document(["a text", "and another, longer one"])
    model.generate(["a query"], max_new_tokens=2)
    assert model.digest() == name
    shutil.copytree(tiny_model, tmp_path / "copy")
    (tmp_path / "copy" / "README.md").write_text("what it is")
    assert SearchR3(tmp_path / "copy", batch_size=3).digest() == name
    model.save_pretrained(tmp_path / "saved")
    assert SearchR3(tmp_path / "saved").digest() == name


def nudged(model: SearchR3) -> None:
    with torch.no_grad():
        next(model.model.parameters()).view(-1)[-1] += 1e-3


def autocast(model: SearchR3) -> None:
    model.autocast = torch.bfloat16


def deeper(model: SearchR3) -> None:
    model.model.config.rms_norm_eps *= 2


def more_words(model: SearchR3) -> None:
    model.tokenizer.add_tokens(["parse"])


def other_template(model: SearchR3) -> None:
    model.tokenizer.chat_template += "{# a remark #}"


CHANGES = [nudged, autocast, deeper, more_words, other_template]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_another_state_is_another_name(tiny_model: Path, change) -> None:
    model = SearchR3(tiny_model)
    before = model.digest()
    change(model)
    assert model.digest() != before


def test_other_options_are_another_name(tiny_model: Path) -> None:
    options = [
        {},
        {"max_length": 90},
        {"prompts": Prompts(embed="Embed.")},
        {"prompts": Prompts(reason="Think.")},
        {"prompts": Prompts(answer="<|embed_token|>")},
        {"dtype": "bfloat16"},
    ]
    assert len({SearchR3(tiny_model, **chosen).digest() for chosen in options}) == len(options)


def test_our_own_code_and_the_libraries_count(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = SearchR3(tiny_model)
    names = {model.digest()}
    monkeypatch.setattr(digest, "ENCODING", digest.ENCODING + 1)
    names.add(model.digest())
    monkeypatch.setattr(digest, "version", lambda name: "0.0")
    names.add(model.digest())
    assert len(names) == 3


def test_an_adapter_counts_with_its_scale(tiny_model: Path) -> None:
    from peft import LoraConfig, get_peft_model

    names = set()
    for alpha in (8, 16):
        model = SearchR3(tiny_model)
        names.add(model.digest())
        torch.manual_seed(0)
        model.model = get_peft_model(model.model, LoraConfig(r=2, lora_alpha=alpha)).eval()
        names.add(model.digest())
        assert model.digest() in names
    assert len(names) == 3


def test_a_folder_is_what_its_files_hold(tmp_path: Path) -> None:
    def make(name: str, **files: str) -> Path:
        for file, text in files.items():
            place = tmp_path / name / file.replace("__", "/").replace("_json", ".json")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(text)
        return tmp_path / name

    parts = {"config_json": "{}", "1_Pooling__config_json": json.dumps({"mean": True})}
    plain = folder_digest(make("a", **parts))
    assert folder_digest(make("b", **parts)) == plain
    (tmp_path / "b" / "README.md").write_text("about it")
    (tmp_path / "b" / ".cache").mkdir()
    (tmp_path / "b" / ".cache" / "lock").write_text("")
    assert folder_digest(tmp_path / "b") == plain
    swapped = {"config_json": parts["1_Pooling__config_json"], "1_Pooling__config_json": "{}"}
    others = [
        folder_digest(make("c", **swapped)),
        folder_digest(make("d", **parts, modules_json="[]")),
        folder_digest(tmp_path / "a", ["numpy"]),
        folder_digest(tmp_path / "a", device="cuda"),
    ]
    assert len({plain, *others}) == 5
