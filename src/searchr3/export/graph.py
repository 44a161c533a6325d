"""The graph for ONNX Runtime: token ids in, unit vectors out.

input_ids, attention_mask   int64 (n, length), padded on either side
sentence_embedding          float32 (n, d), unit length, read at the last token that is no padding
last_hidden_state           float32 (n, length, d), for those who pool by themselves
"""

from __future__ import annotations

import contextlib
import copy
import logging
import os
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from searchr3.embedding import backbone
from searchr3.errors import ModelError, first_line
from searchr3.generation import pad_ids, padding_id
from searchr3.model import SearchR3

VECTORS, HIDDEN = "sentence_embedding", "last_hidden_state"
INPUTS = ("input_ids", "attention_mask")
_NEEDED = ("onnx", "onnxscript", "onnxruntime")
_LIMIT = 0.9999  # cosine: the contract of float32
_PROBES = ["parse a date", "", "sort the lines of a file, longest first, and write them to another one"]


def check_onnx() -> None:
    """Raise ModelError unless what a graph is made and checked with is installed."""
    if any(find_spec(name) is None for name in _NEEDED):
        raise ModelError("the format onnx needs more libraries: pip install 'searchr3[onnx]'")


class Pooled(torch.nn.Module):
    """The transformer, and the unit vector at the last token that is no padding."""

    def __init__(self, transformer: torch.nn.Module):
        super().__init__()
        self.transformer = transformer

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        output = self.transformer(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)
        hidden = output.last_hidden_state
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        last = (attention_mask * places).argmax(dim=1)
        rows = torch.arange(hidden.shape[0], device=hidden.device)
        return F.normalize(hidden[rows, last], dim=-1), hidden


def write_onnx(model: SearchR3, path: Path) -> None:
    """Write the graph, in float32, and see that ONNX Runtime gives the model's vectors.

    Weights of more than 2 GB go into a file beside it, as the format asks for.

    Raises:
        ModelError: the architecture cannot be written as a graph, or its vectors are others.
    """
    merged = copy.deepcopy(model.merged()).to("cpu", torch.float32).eval()
    pooled = Pooled(backbone(merged))
    ids, mask = _batch(model)
    sizes = {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}
    path.parent.mkdir(parents=True, exist_ok=True)
    large = sum(weight.nbytes for weight in pooled.parameters()) > 1.9e9
    try:
        with _hushed():
            torch.onnx.export(
                pooled,
                (ids, mask),
                path,
                input_names=INPUTS,
                output_names=[VECTORS, HIDDEN],
                dynamic_shapes=dict.fromkeys(INPUTS, sizes),
                external_data=large,
                dynamo=True,
                verbose=False,
            )
    except Exception as error:  # the exporter fails in a dozen ways
        raise ModelError(
            f"{model.tokenizer.name_or_path}: cannot be written as an ONNX graph ({first_line(error)}); "
            "export it with --format st"
        ) from None
    _check(pooled, path, model)


def _batch(model: SearchR3, left: bool = False) -> tuple[Tensor, Tensor]:
    rendered = model.conversation.documents(_PROBES)
    return pad_ids([one.ids for one in rendered], padding_id(model.conversation), left)


def _check(pooled: Pooled, path: Path, model: SearchR3) -> None:
    """Padded on either side, and of another size than the graph was made with."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for ids, mask in (_batch(model), _batch(model, left=True), (ids[:1] for ids in _batch(model))):
        feed = dict(zip(INPUTS, (ids.numpy(), mask.numpy()), strict=True))
        (given,) = session.run([VECTORS], feed)
        with torch.no_grad():
            wanted = pooled(ids, mask)[0].numpy()
        if not (given * wanted).sum(axis=1).min() >= _LIMIT:
            raise ModelError(
                f"{model.tokenizer.name_or_path}: ONNX Runtime gives other vectors than the model"
            )


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Without what the exporter says on its way."""
    log = logging.getLogger("torch.onnx")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), open(os.devnull, "w") as nowhere:
            warnings.simplefilter("ignore")
            with contextlib.redirect_stdout(nowhere):
                yield
    finally:
        log.setLevel(level)
