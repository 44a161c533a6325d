"""A stable name of all that a model's vectors and thoughts depend on: of equal names, equal vectors.

What was computed under one name is never taken for what another would compute. So a name covers rather too
much than too little: what is the same but for the rounding of sums (another kind of device, another version
of torch) has another name too. It covers no path, no batch size and no file time.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import blake2b, file_digest
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from searchr3.conversation import Conversation
from searchr3.embedding import ENCODING

_READERS = 4  # tensors or files that are hashed at once
_LIBRARIES = ("torch", "transformers")
_NOT_OF_VECTORS = ("_name_or_path", "transformers_version")  # of a configuration


def model_digest(
    model: PreTrainedModel, conversation: Conversation, autocast: torch.dtype | None = None
) -> str:
    """Of a model as it is in memory: its numbers now, not those that a file once had.

    Args:
        conversation: tokenizer, prompts and most tokens of a text.
        autocast: precision of the forward passes, where it is not that of the weights.
    """
    config = {key: value for key, value in model.config.to_dict().items() if key not in _NOT_OF_VECTORS}
    adapters = {name: one.to_dict() for name, one in getattr(model, "peft_config", {}).items()}
    facts = {
        "encoding": ENCODING,
        "class": type(model).__qualname__,
        "config": config,
        "adapters": adapters,
        "attention": model.config._attn_implementation,
        "autocast": str(autocast),
        "device": model.device.type,
        "prompts": conversation.prompts.to_dict(),
        "max_length": conversation.max_length,
        # some chat templates tell the date, which then is part of what every vector depends on
        "frames": [
            conversation.documents(["text"])[0].ids,
            conversation.reasoning_prompts(["text"])[0],
        ],
    }
    with tempfile.TemporaryDirectory() as place:
        conversation.tokenizer.save_pretrained(place)
        tokenizer = list(_files(Path(place)))
    return _digest(facts, [*tokenizer, *_numbers(model)])


def folder_digest(folder: Path, libraries: Iterable[str] = (), **facts: Any) -> str:
    """Of a model that another library loads from `folder`: all its files but hidden ones and prose.

    Args:
        libraries: whose versions count, besides those of torch and transformers.
        facts: what else the vectors depend on, such as the device; JSON.
    """
    facts |= {name: version(name) for name in libraries}
    return _digest(facts, _files(folder))


def _digest(facts: dict[str, Any], parts: Iterable[tuple[str, str]]) -> str:
    known = facts | {name: version(name) for name in _LIBRARIES} | {"parts": sorted(parts)}
    text = json.dumps(known, sort_keys=True, default=_plain)
    return blake2b(text.encode(), digest_size=16).hexdigest()


def _plain(value: Any) -> Any:
    """What JSON does not know: a set (in no order of its own), a dtype, a choice."""
    return sorted(map(str, value)) if isinstance(value, set) else str(value)


def _numbers(model: PreTrainedModel) -> Iterator[tuple[str, str]]:
    tensors = [*model.named_parameters(), *model.named_buffers()]
    with ThreadPoolExecutor(_READERS) as pool:
        hashes = pool.map(_hash_of_tensor, (tensor for _, tensor in tensors))
        yield from ((name, found) for (name, _), found in zip(tensors, hashes, strict=True))


def _hash_of_tensor(tensor: Tensor) -> str:
    plain = tensor.detach().cpu().contiguous()
    numbers = plain.flatten().view(torch.uint8).numpy()
    return f"{plain.dtype} {list(plain.shape)} {blake2b(numbers.data).hexdigest()}"


def _files(folder: Path) -> Iterator[tuple[str, str]]:
    inside = sorted(file.relative_to(folder) for file in folder.rglob("*") if file.is_file())
    names = [
        name for name in inside if name.suffix != ".md" and not any(p.startswith(".") for p in name.parts)
    ]
    with ThreadPoolExecutor(_READERS) as pool:
        hashes = pool.map(partial(_hash_of_file, folder), names)
        yield from ((name.as_posix(), found) for name, found in zip(names, hashes, strict=True))


def _hash_of_file(folder: Path, name: Path) -> str:
    with (folder / name).open("rb") as content:
        return file_digest(content, blake2b).hexdigest()
