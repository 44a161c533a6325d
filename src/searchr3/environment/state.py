"""Saved state: a flat dict of arrays and JSON values, as safetensors and JSON files, never a pickle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from searchr3.errors import DataError
from searchr3.files import new_folder, write_json

State = dict[str, Any]  # name → numpy array, or a JSON value


def save_state(folder: str | Path, state: State) -> None:
    """Write `state` into `folder`, whole or not at all; what the folder held before is replaced."""
    with new_folder(folder, overwrite=True) as unfinished:
        arrays = {
            name: np.ascontiguousarray(value)
            for name, value in state.items()
            if isinstance(value, np.ndarray)
        }
        save_file(arrays, unfinished / "state.safetensors")
        write_json(
            unfinished / "state.json", {name: value for name, value in state.items() if name not in arrays}
        )


def load_state(folder: str | Path) -> State:
    """Read what `save_state` wrote.

    Raises:
        DataError: a file is missing or damaged; it is named.
    """
    values, arrays = Path(folder) / "state.json", Path(folder) / "state.safetensors"
    for file in (values, arrays):
        if not file.is_file():
            raise DataError(f"{file}: no such file, so this is no saved state; check the path")
    try:
        return {**json.loads(values.read_text(encoding="utf-8")), **load_file(arrays)}
    except ValueError:  # JSON or UTF-8
        raise DataError(f"{values}: damaged; go back to an earlier checkpoint") from None
    except SafetensorError as error:
        raise DataError(f"{arrays}: damaged ({error}); go back to an earlier checkpoint") from None


def nested(prefix: str, state: State) -> State:
    """`state` with every name put behind `prefix` and a dot."""
    return {f"{prefix}.{name}": value for name, value in state.items()}


def unnested(prefix: str, state: State) -> State:
    """The part of `state` that `nested(prefix, …)` made, under its own names."""
    return {
        name.removeprefix(f"{prefix}."): value
        for name, value in state.items()
        if name.startswith(f"{prefix}.")
    }
