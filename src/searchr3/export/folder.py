"""The folder that other libraries load: weights, the tokenizer that adds the conversation, and how to pool.

    config.json, model*.safetensors      the transformer as transformers saves it
    tokenizer.json, tokenizer_config.json   see `tokenizer.py`
    modules.json, 1_Pooling/, 2_Normalize/, sentence_bert_config.json, config_sentence_transformers.json
    onnx/model.onnx                      with the format "onnx": see `graph.py`
    README.md                            the model card
    searchr3_export.json                 what was exported; `SearchR3` refuses the folder by it

The class names and keys are those that every version of sentence-transformers reads: vLLM and
text-embeddings-inference look for them by name, not for those that version 6 writes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from searchr3.errors import ModelError
from searchr3.export.card import card
from searchr3.export.graph import check_onnx, write_onnx
from searchr3.export.tokenizer import save_framed
from searchr3.files import new_folder, write_json, write_text
from searchr3.generation import padding_id
from searchr3.loading import EXPORTED
from searchr3.model import SearchR3
from searchr3.version import __version__

Format = Literal["st", "onnx", "searchr3"]
FORMATS: tuple[Format, ...] = get_args(Format)

_MODULES = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
_POOLING = (
    *("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens"),
    "lasttoken",
)


def export(
    model: SearchR3,
    path: str | Path,
    format: Format = "st",
    overwrite: bool = False,
    instruction: str | None = None,
    name: str | None = None,
    base: str | None = None,
    results: Sequence[str | Path] = (),
) -> None:
    """Write a folder for other libraries, or for the Hub.

    Args:
        format: "st", a folder of sentence-transformers for documents and direct queries; "onnx", the same
            with the graph for ONNX Runtime; "searchr3", the model itself, which thinks.
        instruction: of "st" and "onnx": the task of the queries that are to be embedded. Documents have none,
            so the folder is for queries only then.
        name: of the model, for its card.
        base: Hub id of the model that it was trained from, for the card.
        results: what was measured, as `searchr3 report` takes it, for the card.

    Raises:
        ModelError: the tokenizer cannot be exported, or a library for ONNX is missing.
        DataError: a result cannot be read.
        SearchR3Error: the folder is there, or cannot be written.
    """
    if instruction and format == "searchr3":
        raise ModelError("the model itself gets its instruction with each query; leave it out here")
    if format == "onnx":
        check_onnx()
    text = card(model, format, name or Path(path).resolve().name, base, instruction, results)
    if format == "searchr3":
        model.save_pretrained(path, overwrite)
        write_text(Path(path) / "README.md", text)
        return
    with new_folder(path, overwrite) as folder:
        _save_transformer(model, folder)
        save_framed(model.conversation, folder, instruction)
        _save_modules(model, folder)
        if format == "onnx":
            write_onnx(model, folder / "onnx" / "model.onnx")
        about = {
            "searchr3": __version__,
            "prompts": model.conversation.prompts.to_dict(),
            "instruction": instruction,
            "max_length": model.conversation.max_length,
            "dimension": model.dimension,
        }
        write_json(folder / EXPORTED, about)
        write_text(folder / "README.md", text)


def _save_transformer(model: SearchR3, folder: Path) -> None:
    """Weights without the language head, and a configuration that older readers understand too."""
    merged = model.merged()
    weights = {
        name: weight for name, weight in merged.state_dict().items() if not name.startswith("lm_head.")
    }
    merged.save_pretrained(folder, state_dict=weights)
    (folder / "generation_config.json").unlink(missing_ok=True)
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    rope = config.get("rope_parameters") or {}
    if "rope_theta" in rope:  # where it stood before transformers 5
        config["rope_theta"] = rope["rope_theta"]
        config["rope_scaling"] = None if rope.get("rope_type", "default") == "default" else rope
    config["pad_token_id"] = padding_id(model.conversation)
    if isinstance(config.get("eos_token_id"), list):
        config["eos_token_id"] = config["eos_token_id"][0]
    write_json(file, config)


def _save_modules(model: SearchR3, folder: Path) -> None:
    """What sentence-transformers, text-embeddings-inference and vLLM read of pooling and length."""
    modules = [
        {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for place, (path, kind) in enumerate(_MODULES.items())
    ]
    pooling: dict[str, Any] = {"word_embedding_dimension": model.dimension}
    pooling |= {f"pooling_mode_{mode}": mode == "lasttoken" for mode in _POOLING}
    files: dict[str, Any] = {
        "modules.json": modules,
        "1_Pooling/config.json": pooling | {"include_prompt": True},
        "2_Normalize/config.json": {},
        "sentence_bert_config.json": {
            "max_seq_length": model.conversation.max_length,
            "do_lower_case": False,
        },
        "config_sentence_transformers.json": {
            "__version__": {"searchr3": __version__},
            "model_type": "SentenceTransformer",
            "prompts": {"query": "", "document": ""},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    }
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        write_json(folder / name, content)
