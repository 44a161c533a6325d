"""`searchr3 encode`: plan the shards, keep those that are there, let an engine make the others."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from searchr3.conversation import Conversation
from searchr3.encoding.manifest import (
    MANIFEST,
    Manifest,
    Settings,
    Shard,
    load_manifest,
    origin,
    refuse_other,
)
from searchr3.encoding.shard_files import AGAIN, is_whole, record_path, recorded
from searchr3.encoding.source import Progress, input_file, scan
from searchr3.encoding.worker import Tell, Work, run_local
from searchr3.errors import DataError, SearchR3Error
from searchr3.files import LOCK, check_writable, occupied
from searchr3.loading import Outline, load_outline, model_files, wording
from searchr3.locks import alone

Engine = Callable[[Work, list[Shard], Tell], None]

_READERS = 4  # shards that are hashed at once


class Encoded(NamedTuple):
    """What `encode_file` did: the manifest, shards and rows that it encoded; the other shards were kept."""

    manifest: Manifest
    shards: int
    rows: int


def encode_file(
    model: str | Path,
    source: str | Path,
    output: str | Path,
    *,
    engine: Engine = run_local,
    prompts: str | Path | None = None,
    max_length: int | None = None,
    dim: int | None = None,
    batch_size: int = 32,
    device: str | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Encoded:
    """Encode the documents or queries of a file into a folder of shards; go on with what is there.

    A shard holds a contiguous range of the input, in its order. So what is written depends neither on the
    engine nor on the batch size, beyond the rounding of sums in other batches.

    Args:
        model: folder or Hub id.
        source: a .jsonl or .jsonl.gz file with `_id`, `title` and `text`, or a BEIR folder.
        output: the folder; it may hold a part of the same work, or all of it.
        engine: what encodes the shards that are missing, such as `run_local`.
        prompts: YAML or JSON file with the prompts of a checkpoint that is not ours.
        max_length: most tokens of template and text; default: what was saved with the model.
        dim: keep the first `dim` dimensions, again to unit length.
        batch_size: most texts in one forward.
        device: for the local engine, such as cpu.
        progress: called with what is done, how much of it, and how much there is.
        settings: others of `Settings`: kind, instruction, precision, dtype, format, shard_size.

    Raises:
        SearchR3Error: model or input cannot be used, or the folder holds something else.
    """
    output = Path(output).absolute()
    kind = settings.setdefault("kind", "documents")
    if settings.get("instruction") is not None and kind == "documents":
        raise SearchR3Error("an instruction is for queries; add --queries or leave it out")
    path = input_file(source, kind)
    check_writable(output)
    outline = load_outline(model)
    chosen = _settings(outline, prompts, max_length, dim, settings)
    with _alone(output):
        stamp = _stamp(path)
        wanted = Manifest(
            complete=False,
            rows=0,
            settings=chosen,
            model=origin(model, model_files(outline.folder)),
            input=origin(path, [path]),
            shards=[],
        )
        manifest = _plan(output, path, wanted, progress)
        place = str(outline.folder.absolute()) if Path(model).exists() else str(model)
        work = Work(place, path, output, chosen, batch_size, device)
        return _carry_out(manifest, work, engine, stamp, progress)


def _settings(
    outline: Outline,
    prompts: str | Path | None,
    max_length: int | None,
    dim: int | None,
    others: dict[str, Any],
) -> Settings:
    said, length = wording(outline.settings, prompts, max_length, outline.folder)
    # renders one text, so that a conversation that leaves no room is told now
    Conversation(outline.tokenizer, said, length).queries(["text"], others.get("instruction"))
    if dim is not None and not 1 <= dim <= outline.dimension:
        raise SearchR3Error(
            f"--dim {dim}: this model's vectors have {outline.dimension} dimensions; choose 1 to that many"
        )
    return Settings(prompts=said.to_dict(), max_length=length, dimension=dim or outline.dimension, **others)


def _plan(output: Path, path: Path, wanted: Manifest, progress: Progress | None) -> Manifest:
    """The manifest that the folder has, or a new one, for an input that was checked."""
    if (output / MANIFEST).exists():
        there = load_manifest(output)
        refuse_other(output, there, wanted)
        return there
    chosen = wanted.settings
    shards = scan(path, chosen.kind, chosen.shard_size, chosen.format, progress)
    return wanted.model_copy(update={"shards": shards, "rows": sum(shard.rows for shard in shards)})


def _carry_out(
    manifest: Manifest, work: Work, engine: Engine, stamp: tuple[int, int], progress: Progress | None
) -> Encoded:
    folder = work.folder
    shards = [recorded(folder, shard) for shard in manifest.shards]
    _sweep(folder, shards)
    whole = _whole(folder, shards, progress)
    missing = [shard for shard, there in zip(shards, whole, strict=True) if not there]
    rows = sum(shard.rows for shard in missing)
    if missing:
        # what is known of a shard that was damaged is not true of the one that takes its place
        blank = {shard.file: shard.model_copy(update={"bytes": None, "sha256": None}) for shard in missing}
        shards = [blank.get(shard.file, shard) for shard in shards]
        manifest.model_copy(update={"complete": False, "shards": shards}).save(folder)
        (folder / "shards").mkdir(exist_ok=True)
        engine(work, list(blank.values()), partial(_tell, progress, manifest.rows - rows, manifest.rows))
        if _stamp(work.source) != stamp:
            raise DataError(f"{work.source}: changed while it was encoded; begin again in another folder")
        shards = [recorded(folder, shard) for shard in shards]
        if lost := next((shard.file for shard in shards if not (folder / shard.file).is_file()), None):
            raise SearchR3Error(f"{folder / lost}: was written, but is missing; {AGAIN}")
    manifest = manifest.model_copy(update={"complete": True, "shards": shards})
    if missing or not load_manifest(folder).complete:
        manifest.save(folder)
    _sweep(folder, [])
    return Encoded(manifest, len(missing), rows)


def _tell(progress: Progress | None, before: int, total: int, done: int) -> None:
    if progress:
        progress("encoded", before + done, total)


def _whole(folder: Path, shards: list[Shard], progress: Progress | None) -> list[bool]:
    """Which shards are there and as they were written."""
    found = []
    with ThreadPoolExecutor(_READERS) as pool:
        for there in pool.map(partial(is_whole, folder), shards):
            found.append(there)
            if progress and there:
                progress("shards verified", len(found), len(shards))
    return found


def _sweep(folder: Path, shards: list[Shard]) -> None:
    """Remove hidden files but the records of these shards: what is half-written, or of no more use."""
    records = {record_path(folder / shard.file) for shard in shards}
    for place, pattern in ((folder, f".{MANIFEST}.*"), (folder / "shards", ".*")):
        for file in place.glob(pattern):
            if file not in records:
                file.unlink(missing_ok=True)


def _stamp(path: Path) -> tuple[int, int]:
    """Changes when a file is written to."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder for this process. It is made if it is missing, and goes again if it stays empty.

    Raises:
        SearchR3Error: another process has it, or it holds something that is not ours.
    """
    ours = (folder / MANIFEST).exists() or (folder / LOCK).exists()
    if not ours and occupied(folder):
        raise SearchR3Error(f"{folder}: exists already and holds no {MANIFEST}; choose another --output")
    with alone(folder, f"{folder}: another `searchr3 encode` is at work there; wait for it"):
        yield
