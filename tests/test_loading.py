"""What a model folder or a Hub id gives, and the one line that says why it gives nothing."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from searchr3.conversation import Prompts
from searchr3.errors import ModelError
from searchr3.loading import SETTINGS
from searchr3.model import SearchR3


def refused(path: str | Path, **options: object) -> str:
    with pytest.raises(ModelError) as caught:
        SearchR3(path, **options)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_name(name: str) -> None:
    assert refused(name).startswith("the name of the model is empty; give a folder")


def test_code_beside_a_model_that_transformers_knows_is_not_asked_about(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked on the terminal"))
    folder = shutil.copytree(tiny_model, tmp_path / "with-code")
    for name in ("config.json", "tokenizer_config.json"):
        values = json.loads((folder / name).read_text())
        values["auto_map"] = {"AutoConfig": "mine.C", "AutoModelForCausalLM": "mine.M"}
        (folder / name).write_text(json.dumps(values))
    (folder / "mine.py").write_text("raise SystemExit('this code ran')")
    assert SearchR3(folder).dimension == 32


def test_a_base_without_the_token(tiny_base: Path) -> None:
    assert "the tokenizer has no <|embed_token|>" in refused(tiny_base)


def test_a_folder_without_config_and_a_file(tmp_path: Path) -> None:
    assert "not a model folder (no config.json)" in refused(tmp_path)
    (tmp_path / "weights.bin").write_text("")
    assert "not a model folder" in refused(tmp_path / "weights.bin")


@pytest.mark.parametrize("path", ["runs/quick/stage2", "./stage2", "/no/such/folder", "../x"])
def test_a_path_that_is_not_there(path: str) -> None:
    assert refused(path) == f"{path}: no such folder; check the path"


def test_a_hub_id_offline() -> None:
    assert "no such folder, and the Hub cannot be reached" in refused("nobody/nothing-at-all")


def test_a_hub_id_without_a_network_fails_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    started = time.monotonic()
    assert "no such folder" in refused("nobody/nothing-at-all")
    assert time.monotonic() - started < 10  # from_pretrained alone retries for 45 seconds


def truncate(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])


def drop_a_weight(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def lose_a_part(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    parts = {"model.norm.weight": "model-1.safetensors", "lm_head.weight": "model-2.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))


def lose_the_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


def break_the_index(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text("[]")


def change_config(**values: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | values))

    return change


@pytest.mark.parametrize(
    ("harm", "complaint"),
    [
        (truncate, "model.safetensors is missing or incomplete"),
        (lose_a_part, "model-2.safetensors is missing or incomplete"),
        (
            lambda folder: (lose_a_part(folder), break_the_index(folder)),
            "index.json is damaged; copy it again",
        ),
        (lose_the_tokenizer, "the tokenizer knows no words"),
        (drop_a_weight, "model.norm.weight is missing"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no weights (model.safetensors); copy them"),
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
            "the weights are pickles (pytorch_model.bin), which may run code when they are read; save the",
        ),
        (
            change_config(
                model_type="mine", auto_map={"AutoConfig": "mine.C", "AutoModelForCausalLM": "mine.M"}
            ),
            "needs code of its own, which searchr3 does not run; use a model of a kind that",
        ),
        (lambda folder: (folder / SETTINGS).write_text("[" * 100_000), f"{SETTINGS}: not valid JSON"),
        (lambda folder: (folder / "config.json").write_text("{"), "cannot load a model"),
        (lambda folder: (folder / "config.json").write_text("[]"), "cannot load a model"),
        (lambda folder: (folder / "tokenizer.json").write_text("{"), "cannot load a model"),
        (change_config(model_type="unheard-of"), "cannot load a model"),
        (change_config(hidden_size=64), "cannot load a model"),
        (lambda folder: (folder / "chat_template.jinja").unlink(), "no chat template"),
        (lambda folder: (folder / SETTINGS).write_text("{"), f"{SETTINGS}: not valid JSON"),
        (lambda folder: (folder / SETTINGS).write_text("[]"), f"{SETTINGS}: expected 'prompts'"),
        (
            lambda folder: (folder / SETTINGS).write_text('{"max_length": "x"}'),
            f"{SETTINGS}: expected 'prompts'",
        ),
        (lambda folder: (folder / SETTINGS).write_text('{"prompts": {"embd": ""}}'), "did you mean 'embed'"),
    ],
)
def test_a_broken_folder(
    tiny_model: Path, tmp_path: Path, harm: Callable[[Path], object], complaint: str
) -> None:
    shutil.copytree(tiny_model, tmp_path / "broken")
    harm(tmp_path / "broken")
    assert complaint in refused(tmp_path / "broken")


def test_a_wrong_dtype_and_a_wrong_device(tiny_model: Path) -> None:
    assert "float33" in refused(tiny_model, dtype="float33")
    assert "cannot be put on device 'toaster'" in refused(tiny_model, device="toaster")


def test_a_model_of_the_hub_comes_from_the_cache_with_its_prompts(
    tiny_base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "a" * 40
    cache = tmp_path / "models--someone--searcher"
    model = SearchR3.from_base(tiny_base, prompts=Prompts("Embed."), max_length=55)
    model.save_pretrained(cache / "snapshots" / commit)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    again = SearchR3("someone/searcher")
    assert again.conversation.prompts == Prompts("Embed.")
    assert again.conversation.max_length == 55
    assert again.tokenizer.name_or_path == "someone/searcher"
