"""Saved state: a flat dict of arrays and JSON values, as safetensors and JSON files, never a pickle."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from searchr3.errors import DataError
from searchr3.files import new_folder, write_json
from searchr3.group import ALONE, Group, on_first

State = dict[str, Any]  # name → numpy array, or a JSON value


class Rows(Protocol):
    """An array, or what gives one when it is sliced."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def __getitem__(self, rows: slice, /) -> np.ndarray: ...


class StoredRows:
    """An array in a safetensors file, of which only the rows that are asked for are read into memory."""

    def __init__(self, file: Path, name: str) -> None:
        self.file, self.name = file, name
        with safe_open(file, framework="np") as arrays:
            self.shape = tuple(arrays.get_slice(name).get_shape())
        self.dtype = self[:0].dtype

    def __getitem__(self, rows: slice, /) -> np.ndarray:
        start, stop, _ = rows.indices(self.shape[0])
        # opened each time: what an open file has read stays in memory
        with safe_open(self.file, framework="np") as arrays:
            return arrays.get_slice(self.name)[start:stop]


def save_state(folder: str | Path, state: State, group: Group = ALONE) -> None:
    """Write `state` into `folder`, whole or not at all; what the folder held before is replaced.

    In a group the first rank writes its state, and all return when that is done.
    """
    on_first(group, lambda: _write(folder, state))


def _write(folder: str | Path, state: State) -> None:
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


def load_state(folder: str | Path, in_parts: Collection[str] = ()) -> State:
    """Read what `save_state` wrote.

    Args:
        in_parts: names of large arrays; these come as `StoredRows`.

    Raises:
        DataError: a file is missing or damaged; it is named.
    """
    values, arrays = Path(folder) / "state.json", Path(folder) / "state.safetensors"
    for file in (values, arrays):
        if not file.is_file():
            raise DataError(f"{file}: no such file, so this is no saved state; check the path")
    try:
        state = json.loads(values.read_text(encoding="utf-8"))
        if not isinstance(state, dict):
            raise ValueError
        with safe_open(arrays, framework="np") as stored:
            for name in stored.keys():  # noqa: SIM118, it is no dict
                state[name] = StoredRows(arrays, name) if name in in_parts else stored.get_tensor(name)
        return state
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
