"""Reading and writing files so that nothing half-written is ever left under its final name."""

from __future__ import annotations

import contextlib
import difflib
import errno
import gzip
import hashlib
import json
import math
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from searchr3.errors import DataError, SearchR3Error

NO_SPACE = "no space left on the disk; free some or choose another place"
LOCK = ".lock"  # in a folder that one process holds, see `searchr3.locks`


def nearest(word: str, choices: Iterable[str]) -> str | None:
    """The choice that looks most like `word`, or None when none is close.

    >>> nearest("temprature", ["temperature", "seed"])
    'temperature'
    """
    return next(iter(difflib.get_close_matches(word, list(choices), n=1)), None)


def read_jsonl(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield `(line number, object)` of a JSON Lines file, plain or `.gz`. Blank lines are skipped.

    Raises:
        DataError: the file is missing or unreadable, or a line is not a JSON object; the line is named.
    """
    path = Path(path)
    with read_errors(path), open_bytes(path) as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield number, json_object(line, f"{path}:{number}")


def open_bytes(path: Path) -> BinaryIO:
    """Open a file to read its bytes, or those inside where it ends in `.gz`: positions count the latter."""
    opener: Any = gzip.open if path.suffix == ".gz" else open
    return opener(path, "rb")


@contextlib.contextmanager
def read_errors(path: Path) -> Iterator[None]:
    """Turn what goes wrong with opening and reading `path` into a DataError of one clear line."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; check the path") from None
    except (gzip.BadGzipFile, EOFError, zlib.error):
        raise DataError(f"{path}: not a complete gzip file; make it again") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from None


def json_object(line: bytes, where: str) -> dict[str, Any]:
    """The object on a line of a JSON Lines file; `where` names the line in a DataError."""
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise DataError(f"{where}: not UTF-8 text; convert the file to UTF-8") from None
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where}: not valid JSON ({error.msg} at column {error.colno}); each line must be one object"
        ) from None
    except RecursionError:
        raise DataError(f"{where}: nested too deeply to be read; make it flatter") from None
    except ValueError:  # Python reads no whole number of more than 4,300 digits
        raise DataError(f"{where}: a number has too many digits; put it in quotes") from None
    if not isinstance(row, dict):
        kind = type(row).__name__
        raise DataError(f"{where}: expected a JSON object, found {kind}; write one {{...}} a line")
    return row


def full_disk(error: BaseException | None) -> BaseException | None:
    """The full disk behind an error, if there is one.

    Libraries wrap it: safetensors keeps only its words, torch none, and may only find its file too short.
    """
    words = ("No space left on device", "PytorchStreamWriter failed writing file", ". unexpected pos ")
    while error is not None:
        if getattr(error, "errno", None) == errno.ENOSPC or any(one in str(error) for one in words):
            return error
        error = error.__cause__ or error.__context__
    return None


@contextlib.contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk, or a place that cannot be written, into one clear line about `path`."""
    try:
        yield
    except SearchR3Error:
        raise
    except Exception as error:
        if full_disk(error):
            fault = NO_SPACE
        elif isinstance(error, OSError) and error.errno is not None:
            fault = f"cannot be written ({_obstacle(path) or error.strerror}); choose another place"
        else:
            raise
        raise SearchR3Error(f"{path}: {fault}") from error


def _obstacle(path: Path) -> str | None:
    """What the system calls "File exists" or "Not a directory": a file on the way to `path`."""
    found = (one for one in path.parents if os.path.lexists(one) and not os.path.isdir(one))
    return next((f"{one} is no folder" for one in found), None)


def check_writable(path: str | Path) -> None:
    """Raise SearchR3Error unless `path` can be written: before long work, not after it.

    The nearest folder that exists is tried, with a name like those that writing will take; nothing is made.
    """
    path = Path(path)
    with disk_errors(path):
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise SearchR3Error(f"{path}: is a device, no file; choose another place")
        # A folder that is there is written into, a file is replaced from beside it.
        there = path if path.is_dir() else next(one for one in path.parents if os.path.lexists(one))
        longest = max(path.relative_to(there).parts, key=len, default="")
        with tempfile.NamedTemporaryFile(dir=there, prefix=f".{longest}."):
            pass


@contextlib.contextmanager
def new_file(path: str | Path) -> Iterator[Path]:
    """Yield the path of an empty temporary file beside `path`, which takes its place only on success.

    By then the disk has the content. The temporary name begins with a dot.
    """
    path = Path(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        try:
            os.close(handle)
            yield temporary
            temporary.chmod(0o644)  # mkstemp's files, and those of some libraries, are for their owner alone
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[TextIO]:
    """Open a text file under a temporary name beside `path`; it takes its final name only on success."""
    with new_file(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        yield file


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path`, whole or not at all."""
    with replacing(path) as file:
        file.write(text)


def json_text(value: Any, indent: int | None = None) -> str:
    """`value` as JSON that every program reads: a figure that is no number (NaN, infinite) becomes null.

    >>> json_text({"loss": float("nan")})
    '{"loss": null}'
    """
    try:
        return json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    except ValueError:
        return json.dumps(_finite(value), indent=indent, ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, list | tuple) else value


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all; NaN becomes null."""
    write_text(path, json_text(value, indent=2) + "\n")


def write_jsonl(path: str | Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object a line, whole or not at all; NaN becomes null."""
    with replacing(path) as file:
        for row in rows:
            file.write(json_text(row) + "\n")


def sha256(path: Path) -> str:
    """The digest of a file's content, as `sha256sum` prints it."""
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def sha256_of(files: Sequence[Path]) -> str:
    """A stable name of what files hold: of one file that of `sha256sum`, of several that of their list.

    Raises:
        DataError: a file cannot be read.
    """
    digests = []
    for path in files:
        with read_errors(path):
            digests.append(sha256(path))
    if len(digests) == 1:
        return digests[0]
    listed = "".join(f"{digest}  {path.name}\n" for digest, path in zip(digests, files, strict=True))
    return hashlib.sha256(listed.encode()).hexdigest()


def sync(path: Path) -> None:
    """Return once the disk has what was written to `path`: a file's content, or the names in a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Return once the disk has everything in `folder` and below it."""
    for place, _, names in os.walk(folder):
        for name in names:
            sync(Path(place, name))
        sync(Path(place))


def put_folder(new: Path, path: Path) -> None:
    """Give the folder `new`, on the same disk, the name `path` once all that is in it is on the disk.

    A folder that had the name is moved aside first and deleted after: never does a part of it bear the name.
    """
    sync_tree(new)
    if not path.is_dir():
        os.replace(new, path)
        sync(path.parent)
        return
    aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        os.replace(path, aside / path.name)
        os.replace(new, path)
        sync(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):  # back, if it was moved and nothing has its name
            os.replace(aside / path.name, path)
        with contextlib.suppress(OSError):
            aside.rmdir()
        raise
    shutil.rmtree(aside, ignore_errors=True)


def occupied(path: Path) -> bool:
    """Whether something would be written over or into: anything but an empty folder. A lock is nothing."""
    with disk_errors(path):
        return path.exists() and not (path.is_dir() and all(one.name == LOCK for one in path.iterdir()))


def refuse_occupied(path: Path) -> None:
    """Raise SearchR3Error when `path` is occupied."""
    if occupied(path):
        raise SearchR3Error(f"{path}: exists already; choose another folder or remove it first")


@contextlib.contextmanager
def new_folder(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary sibling folder that becomes `path` on success and disappears on failure.

    Raises:
        SearchR3Error: `path` exists, is not empty and `overwrite` is False.
    """
    path = Path(path)
    if not overwrite:
        refuse_occupied(path)
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        temporary.chmod(0o755)
        try:
            yield temporary
            put_folder(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
