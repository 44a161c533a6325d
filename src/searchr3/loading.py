"""From a folder or a Hub id to a model, its tokenizer and our settings, or to one line that says why not."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from searchr3.adaptive import load_rule
from searchr3.conversation import Prompts
from searchr3.errors import ModelError, first_line

SETTINGS = "searchr3.json"  # prompts and length, saved beside the weights
LENGTH = 1024  # most tokens of template and text, where nothing else was saved
EXPORTED = "searchr3_export.json"  # in a folder for other libraries: what was exported
# What a model's repository is asked for: weights, configurations, the files of a tokenizer.
HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model"]
_NO_WEIGHTS = HUB_FILES[1:]
# What decides a model's vectors: weights, shape, tokenizer, our own settings.
_VECTOR_FILES = (
    *("*.safetensors", "config.json", SETTINGS),
    *("tokenizer*", "chat_template*", "special_tokens_map.json", "added_tokens.json"),
    *("vocab*", "merges.txt", "*.model"),
)


def load_parts(
    path: str | Path, dtype: str, products: torch.dtype | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, Any]]:
    """Model, tokenizer and our settings from a folder or the Hub, safetensors only, no remote code.

    Where a rule of adaptive thinking lies there it is in the settings too, as "adaptive".

    Args:
        products: type of linear layers; then all else is float32, see `hold`, whatever `dtype` says.

    Raises:
        ModelError: nothing usable at `path`.
    """
    folder, tokenizer = _opened(path)
    dtype = "auto" if products else dtype  # main memory need not hold more than lies there
    with _load_errors(path):
        model, report = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, output_loading_info=True, trust_remote_code=False
        )
    if report["missing_keys"]:  # transformers would make them up
        raise ModelError(
            f"{path}: the weights are incomplete, {min(report['missing_keys'])} is missing; copy them again"
        )
    if products:
        hold(model, products)
    return model, tokenizer, _all_settings(folder)


def load_skeleton(
    path: str | Path,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, dict[str, Any]]:
    """As `load_parts`, but the model is on the meta device: of the right shape, with no numbers in it.

    A folder's weights must be there, but are not read; those of a Hub model are not downloaded.

    Raises:
        ModelError: nothing usable at `path`.
    """
    folder = model_folder(path, _NO_WEIGHTS)
    if Path(path).exists():
        _check_weights(path, folder)
    with _load_errors(path):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        model = on_meta(config)
    _check_tokenizer(path, tokenizer)
    return model, tokenizer, _all_settings(folder)


def products(model: torch.nn.Module) -> Iterator[torch.nn.Linear]:
    """The layers whose matrices autocast rounds at every product; a head tied to the embedding is none."""
    looked_up = {id(one.weight) for one in model.modules() if isinstance(one, torch.nn.Embedding)}
    for layer in model.modules():
        if isinstance(layer, torch.nn.Linear) and id(layer.weight) not in looked_up:
            yield layer


def hold(model: PreTrainedModel, dtype: torch.dtype | None) -> None:
    """Make all weights float32, but those of `products` `dtype`, if one is given.

    Under an autocast to that type passes stay the same, bit for bit: it would round these matrices to it
    before each product. Embedding, norms and what flows between the layers are float32 as ever.
    """
    rounded = {id(weight) for layer in products(model) for weight in layer.parameters()} if dtype else set()
    for weight in model.parameters():
        weight.data = weight.data.to(dtype if id(weight) in rounded else torch.float32)


def on_meta(config: Any) -> PreTrainedModel:
    """A causal language model of this shape without numbers."""
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)


class Outline(NamedTuple):
    """What can be known of a model without its weights; `dimension` is that of its vectors."""

    folder: Path
    tokenizer: PreTrainedTokenizerBase
    settings: dict[str, Any]
    dimension: int


def load_outline(path: str | Path) -> Outline:
    """A model's folder, tokenizer, settings and dimension; its weights are there, but are not read.

    Raises:
        ModelError: nothing usable at `path`.
    """
    folder, tokenizer = _opened(path)
    with _load_errors(path):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    return Outline(folder, tokenizer, load_settings(folder / SETTINGS), config.get_text_config().hidden_size)


def model_files(folder: Path) -> list[Path]:
    """The files of a model's folder that decide its vectors, by name."""
    return sorted({file for pattern in _VECTOR_FILES for file in folder.glob(pattern) if file.is_file()})


def _opened(path: str | Path) -> tuple[Path, PreTrainedTokenizerBase]:
    """Folder and tokenizer of a model whose weights are there."""
    folder = model_folder(path)
    _check_weights(path, folder)
    with _load_errors(path):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    _check_tokenizer(path, tokenizer)
    return folder, tokenizer


def _check_tokenizer(path: str | Path, tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.name_or_path = str(path)
    if not tokenizer("text", add_special_tokens=False)["input_ids"]:  # transformers makes up an empty one
        raise ModelError(
            f"{path}: the tokenizer knows no words (is tokenizer.json missing?); copy its files there"
        )
    if not tokenizer.chat_template:
        raise ModelError(f"{path}: the tokenizer has no chat template; use a chat (instruct) model")


@contextlib.contextmanager
def _load_errors(path: str | Path) -> Iterator[None]:
    """Turn what transformers says of a folder into one line.

    `from_pretrained` is told `trust_remote_code=False`, else it asks on the terminal whether to run code of
    the model's own.
    """
    try:
        yield
    except Exception as error:  # broken files fail in a dozen ways
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"{path}: needs code of its own, which searchr3 does not run; "
                "use a model of a kind that transformers knows"
            ) from None
        raise ModelError(f"{path}: cannot load a model ({first_line(error)})") from None


def _check_weights(path: str | Path, folder: Path) -> None:
    """Look whether weights are there and whole by their heads, which tell their size."""
    if any(folder.glob("*.safetensors")):
        for file in _weight_files(path, folder):
            try:
                with safe_open(file, "numpy"):
                    pass
            except (SafetensorError, OSError) as error:
                raise ModelError(
                    f"{path}: {file.name} is missing or incomplete ({first_line(error)}); copy it again"
                ) from None
        return
    if pickle := next(folder.glob("pytorch_model*.bin"), None):
        raise ModelError(
            f"{path}: the weights are pickles ({pickle.name}), which may run code when they are read; "
            "save the model again as safetensors, with save_pretrained of transformers"
        )
    raise ModelError(
        f"{path}: no weights (model.safetensors); copy them there or give a model saved as safetensors"
    )


def _weight_files(path: str | Path, folder: Path) -> list[Path]:
    """The files that transformers reads the weights from, where they have their usual names."""
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").exists():
        return [folder / "model.safetensors"]
    if not index.is_file():
        return []
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return sorted(folder / name for name in names)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ModelError(f"{path}: {index.name} is damaged; copy it again") from None


def _all_settings(folder: Path) -> dict[str, Any]:
    """Our settings, and the rule of adaptive thinking as "adaptive" where one lies there."""
    rule = load_rule(folder)
    return load_settings(folder / SETTINGS) | ({"adaptive": rule} if rule else {})


def load_settings(file: Path) -> dict[str, Any]:
    """Our settings beside the weights; empty when there are none, as in a base or a published checkpoint."""
    if not file.is_file():
        return {}
    try:
        settings = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise ModelError(f"{file}: not valid JSON; copy it again from the original model") from None
    if not isinstance(settings, dict) or not isinstance(settings.get("max_length", 1), int):
        raise ModelError(
            f"{file}: expected 'prompts' and a whole number 'max_length'; copy it again from the original"
        )
    return settings


def wording(
    settings: Mapping[str, Any],
    prompts: Prompts | str | Path | None,
    max_length: int | None,
    where: str | Path,
) -> tuple[Prompts, int]:
    """Prompts and length that a model is used with: those given, else those saved with it, else ours.

    Args:
        prompts: or a YAML or JSON file with them.
        where: the model's folder, for errors.

    Raises:
        ModelError: the prompts are none.
    """
    if isinstance(prompts, (str, Path)):
        prompts = Prompts.load(prompts)
    if prompts is None:
        prompts = Prompts.from_dict(settings.get("prompts", {}), f"{where}/{SETTINGS}")
    return prompts, max_length or settings.get("max_length") or LENGTH


def model_folder(path: str | Path, files: list[str] = HUB_FILES) -> Path:
    """`path` itself, or the local copy of `files` of the Hub's model of that name, downloaded if need be.

    Raises:
        ModelError: neither. Without a network at once, where `from_pretrained` would retry for a minute.
    """
    if not str(path).strip():
        raise ModelError("the name of the model is empty; give a folder, e.g. RUN/stage2, or a Hub id")
    folder = Path(path)
    if folder.exists():
        if not (folder / "config.json").is_file():
            raise ModelError(
                f"{path}: not a model folder (no config.json); give that of a trained model, e.g. RUN/stage2"
            )
    else:
        folder = hub_folder(path, files)
    if (folder / EXPORTED).is_file():
        raise ModelError(
            f"{path}: was exported for other libraries and cannot think any more; load it with "
            "sentence-transformers, or give the model that it was exported from"
        )
    return folder


def hub_folder(path: str | Path, files: list[str]) -> Path:
    """The local copy of a Hub model's `files`, downloaded if need be; a cached copy may hold others too.

    Raises:
        ModelError: it cannot be had.
    """
    try:
        return Path(snapshot_download(str(path), allow_patterns=files, ignore_patterns=["*/*"]))
    except HFValidationError:
        raise ModelError(f"{path}: no such folder; check the path") from None
    except LocalEntryNotFoundError:
        raise ModelError(
            f"{path}: no such folder, and the Hub cannot be reached; check the path or the network"
        ) from None
    except Exception as error:  # whatever the Hub or the way to it says
        raise ModelError(
            f"{path}: no such folder, and the Hub does not give it ({first_line(error)})"
        ) from None
