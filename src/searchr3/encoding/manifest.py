"""What a folder of vectors says of itself: `manifest.json`.

It is written before the first shard, with every shard's place in the input, and again with sizes and hashes
once all of them are there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from searchr3.errors import DataError
from searchr3.files import sha256_of, write_json

MANIFEST = "manifest.json"


class Strict(BaseModel):
    """A part of the manifest: all of it is known, nothing else is there."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Shard(Strict):
    """A contiguous range of the input, and the file that holds its ids and vectors."""

    file: str = Field(description="path within the folder")
    first_row: int = Field(description="place of its first vector among all")
    rows: int = Field(gt=0, description="number of vectors")
    start: int = Field(description="first byte of its lines in the input (unpacked, if that is gzipped)")
    end: int = Field(description="first byte after them")
    line: int = Field(description="number of its first line, from 1")
    first_id: str
    last_id: str
    bytes: int | None = Field(default=None, description="size of the file; null until all shards are there")
    sha256: str | None = Field(default=None, description="of the file; null until all shards are there")


class Settings(Strict):
    """What the vectors are a function of, besides model and input, and how they are laid out."""

    kind: Literal["documents", "queries"] = Field(default="documents", description="what is encoded")
    instruction: str | None = Field(default=None, description="task instruction of queries")
    prompts: dict[str, str] = Field(description="wording of the conversations around the texts")
    max_length: int = Field(description="most tokens of template and text")
    precision: str = Field(default="auto", description="of the weights; auto: as they are saved")
    dimension: int = Field(gt=0, description="numbers in a vector")
    dtype: Literal["float32", "float16"] = Field(default="float32", description="of the stored vectors")
    format: Literal["safetensors", "parquet"] = Field(default="safetensors", description="of the shards")
    shard_size: int = Field(default=10_000, gt=0, description="most vectors in a shard")


class Origin(Strict):
    """A file, or a model's files, by content."""

    path: str = Field(description="where it lay; only for people")
    bytes: int
    sha256: str


class Manifest(Strict):
    """The whole `manifest.json`."""

    searchr3_vectors: Literal[1] = Field(default=1, description="version of this layout")
    complete: bool = Field(description="whether every shard is there")
    rows: int = Field(description="number of vectors")
    settings: Settings
    model: Origin
    input: Origin
    shards: list[Shard]

    def save(self, folder: Path) -> None:
        write_json(folder / MANIFEST, self.model_dump())


def load_manifest(folder: Path) -> Manifest:
    """Read the manifest of a folder.

    Raises:
        DataError: there is none, or it is damaged.
    """
    path = folder / MANIFEST
    try:
        return Manifest.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; give a folder that `searchr3 encode` made") from None
    except ValidationError as error:
        raise DataError(f"{path}: {'.'.join(map(str, error.errors()[0]['loc']))} is wrong; {_MEND}") from None
    except (OSError, ValueError, RecursionError):
        raise DataError(f"{path}: damaged; {_MEND}") from None


_MEND = "encode into another folder, or remove this one"


def refuse_other(folder: Path, there: Manifest, wanted: Manifest) -> None:
    """Raise DataError where the folder's vectors are of another model or input, or were made otherwise.

    Paths may differ: what counts is content.
    """
    for found, asked, words in _differences(there, wanted):
        raise DataError(
            f"{folder}: holds vectors of {words.format(found=found, asked=asked)}; "
            "choose another --output, or remove this folder"
        )


def _differences(there: Manifest, wanted: Manifest) -> Iterator[tuple[object, object, str]]:
    if there.model.sha256 != wanted.model.sha256:
        yield there.model.path, wanted.model.path, "another model ({found}, or other files of it now)"
    if there.input.sha256 != wanted.input.sha256:
        yield there.input.path, wanted.input.path, "another input ({found}, or other lines in it now)"
    for name in Settings.model_fields:
        found, asked = getattr(there.settings, name), getattr(wanted.settings, name)
        if found != asked:
            yield found, asked, f"{name} {{found!r}}, not {{asked!r}}"


def origin(path: str | Path, files: list[Path]) -> Origin:
    """Size and hash of a model's files, or of one file, for which it is that of `sha256sum`.

    Raises:
        DataError: a file cannot be read.
    """
    digest = sha256_of(files)
    return Origin(path=str(path), bytes=sum(file.stat().st_size for file in files), sha256=digest)
