"""Nothing half-written under a final name, and errors that name the place."""

from __future__ import annotations

import errno
import gzip
import json
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from searchr3 import files
from searchr3.errors import DataError, SearchR3Error
from searchr3.files import (
    check_writable,
    nearest,
    new_folder,
    occupied,
    put_folder,
    read_jsonl,
    refuse_occupied,
    replacing,
    write_json,
    write_jsonl,
    write_text,
)

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def listing(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_nearest_suggests_only_what_is_close() -> None:
    assert nearest("temprature", ["temperature", "seed"]) == "temperature"
    assert nearest("xyzzy", ["temperature", "seed"]) is None
    assert nearest("seed", []) is None


@given(rows=st.lists(st.dictionaries(st.text(), JSON_VALUES, max_size=4), max_size=5))
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, rows: list[dict]) -> None:
    path = tmp_path_factory.mktemp("jsonl") / "rows.jsonl"
    write_jsonl(path, rows)
    assert list(read_jsonl(path)) == list(enumerate(rows, start=1))


def test_gz_and_plain_read_alike_and_blank_lines_keep_their_number(tmp_path: Path) -> None:
    text = '{"a": 1}\n\n  \n{"a": "é"}\n'
    (tmp_path / "rows.jsonl").write_text(text, encoding="utf-8")
    with gzip.open(tmp_path / "rows.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(text)
    expected = [(1, {"a": 1}), (4, {"a": "é"})]
    assert list(read_jsonl(tmp_path / "rows.jsonl")) == expected
    assert list(read_jsonl(str(tmp_path / "rows.jsonl.gz"))) == expected


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("{'a': 1}", "not valid JSON"),
        ('{"a": 1', "not valid JSON"),
        ("[1, 2]", "found list"),
        ("3", "found int"),
        ('{"a": ' + "[" * 100_000, "nested too deeply"),
        ('{"a": ' + "1" * 5000 + "}", "a number has too many digits; put it in quotes"),
    ],
)
def test_malformed_line_is_named(tmp_path: Path, line: str, fault: str) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n\n' + line + "\n")
    with pytest.raises(DataError, match=fault) as caught:
        list(read_jsonl(path))
    assert str(caught.value).startswith(f"{path}:3: ")
    assert "\n" not in str(caught.value)


def test_rows_before_a_malformed_line_are_still_yielded(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\noops\n')
    rows = read_jsonl(path)
    assert next(rows) == (1, {"a": 1})
    with pytest.raises(DataError):
        next(rows)


def test_missing_file_and_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nothing\.jsonl: no such file"):
        list(read_jsonl(tmp_path / "nothing.jsonl"))
    with pytest.raises(DataError, match=str(tmp_path)):
        list(read_jsonl(tmp_path))


def test_text_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": "\xe9"}\n')
    with pytest.raises(DataError, match="not UTF-8"):
        list(read_jsonl(path))


def test_truncated_or_false_gz_is_named(tmp_path: Path) -> None:
    whole = gzip.compress(
        b"".join(json.dumps({"n": n, "x": os.urandom(40).hex()}).encode() + b"\n" for n in range(500))
    )
    truncated, flipped, false = (
        tmp_path / "cut.jsonl.gz",
        tmp_path / "flip.jsonl.gz",
        tmp_path / "false.jsonl.gz",
    )
    truncated.write_bytes(whole[: len(whole) // 2])
    flipped.write_bytes(whole[:-6] + bytes([whole[-6] ^ 0xFF]) + whole[-5:])  # a bit of the checksum
    false.write_bytes(b'{"a": 1}\n')
    for path in (truncated, flipped, false):
        with pytest.raises(DataError, match=rf"{path.name}: not a complete gzip file"):
            list(read_jsonl(path))


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    write_jsonl(path, [{"old": True}])

    def rows():
        yield {"new": 1}
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_jsonl(path, rows())
    assert listing(tmp_path) == ["out.jsonl"]
    assert list(read_jsonl(path)) == [(1, {"old": True})]


def test_failed_first_write_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write_json(tmp_path / "new.json", {"x": object()})
    with pytest.raises(ValueError, match="inside"), replacing(tmp_path / "new.txt") as file:
        file.write("half")
        raise ValueError("inside")
    assert listing(tmp_path) == []


def test_write_makes_parents_and_a_file_that_others_may_read(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "out.txt"
    write_text(path, "naïve ×\n")
    assert path.read_text(encoding="utf-8") == "naïve ×\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def test_json_ends_with_a_newline_and_keeps_letters(tmp_path: Path) -> None:
    write_json(tmp_path / "out.json", {"é": [1, 2]})
    text = (tmp_path / "out.json").read_text(encoding="utf-8")
    assert text.endswith("}\n")
    assert "é" in text
    assert json.loads(text) == {"é": [1, 2]}


def test_figures_that_are_no_numbers_become_null(tmp_path: Path) -> None:
    rows = [{"loss": float("nan"), "parts": [1.5, float("inf"), {"x": -float("inf")}], "pair": (1, 2)}]
    expected = {"loss": None, "parts": [1.5, None, {"x": None}], "pair": [1, 2]}
    write_json(tmp_path / "one.json", rows)
    write_jsonl(tmp_path / "rows.jsonl", rows)
    assert json.loads((tmp_path / "one.json").read_text()) == [expected]
    assert json.loads((tmp_path / "rows.jsonl").read_text()) == expected


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_full_disk_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    path = tmp_path / "out.json"
    write_json(path, 1)
    monkeypatch.setattr(os, call, full_disk)
    says = r"out\.json: no space left on the disk; free some or choose another place"
    with pytest.raises(SearchR3Error, match=says):
        write_json(path, 2)
    monkeypatch.undo()
    assert listing(tmp_path) == ["out.json"]
    assert json.loads(path.read_text()) == 1


def test_a_folder_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[tuple[str, str]] = []
    real, rename = files.sync, os.replace
    monkeypatch.setattr(files, "sync", lambda path: done.append(("sync", str(path))) or real(path))
    monkeypatch.setattr(os, "replace", lambda a, b: done.append(("name", str(b))) or rename(a, b))
    new = tmp_path / "new"
    (new / "inner").mkdir(parents=True)
    (new / "inner" / "one.txt").write_text("1")

    put_folder(new, tmp_path / "run")

    named = done.index(("name", str(tmp_path / "run")))
    assert {path for what, path in done[:named]} == {str(new), f"{new}/inner", f"{new}/inner/one.txt"}
    assert done[named + 1 :] == [("sync", str(tmp_path))]


def test_an_old_folder_stays_when_the_new_one_cannot_have_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And never is a part of it there: it is moved away before it is deleted."""
    target, rename = tmp_path / "run", os.replace
    with new_folder(target) as folder:
        write_text(folder / "one.txt", "1")

    def fails_at_last(source: Path, goal: Path) -> None:
        if Path(goal) == target and listing(Path(source)) != ["one.txt"]:
            assert not target.exists()
            raise OSError(errno.EIO, "Input/output error")
        rename(source, goal)

    monkeypatch.setattr(os, "replace", fails_at_last)
    with pytest.raises(SearchR3Error, match="run: cannot be written"), new_folder(target, True) as folder:
        folder.joinpath("two.txt").write_text("2")

    assert listing(target) == ["one.txt"]
    assert listing(tmp_path) == ["run"]


def test_full_disk_inside_a_new_folder(tmp_path: Path) -> None:
    with pytest.raises(SearchR3Error, match="run: no space left"), new_folder(tmp_path / "run") as folder:
        write_text(folder / "first.txt", "x")
        full_disk()
    assert listing(tmp_path) == []


@pytest.mark.parametrize(
    "words",
    [
        "I/O error: No space left on device (os error 28)",  # as safetensors says it
        "[enforce fail at inline_container.cc:672] . unexpected pos 296000 vs 295892",  # and torch
    ],
)
def test_a_full_disk_that_a_library_wraps_is_named_too(tmp_path: Path, words: str) -> None:
    with pytest.raises(SearchR3Error, match="run: no space left"), new_folder(tmp_path / "run"):
        raise RuntimeError(words)


def make_folder(path: Path) -> None:
    with new_folder(path):
        pass


@pytest.mark.parametrize("write", [lambda path: write_text(path, "x"), make_folder, check_writable])
@pytest.mark.parametrize("place", ["file/out", "file/deeper/out"])
def test_a_file_where_a_folder_should_be_is_named(
    tmp_path: Path, write: Callable[[Path], None], place: str
) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(SearchR3Error) as caught:
        write(tmp_path / place)
    obstacle = f"cannot be written ({tmp_path}/file is no folder); choose another place"
    assert str(caught.value) == f"{tmp_path / place}: {obstacle}"
    assert listing(tmp_path) == ["file"]


@pytest.mark.parametrize("write", [lambda path: write_text(path, "x"), make_folder, check_writable])
@pytest.mark.parametrize("number", [errno.ENOENT, errno.EROFS, errno.EACCES, errno.EDQUOT])
def test_a_place_that_cannot_be_written_is_one_line(
    tmp_path: Path, write: Callable[[Path], None], number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    for call in ("mkstemp", "mkdtemp", "NamedTemporaryFile"):
        monkeypatch.setattr(tempfile, call, refuse)
    with pytest.raises(SearchR3Error) as caught:
        write(tmp_path / "out")
    fault = f"cannot be written ({os.strerror(number)}); choose another place"
    assert str(caught.value) == f"{tmp_path}/out: {fault}"


def test_a_folder_where_a_file_should_be_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "out.json").mkdir()
    with pytest.raises(SearchR3Error, match=r"out\.json: cannot be written \(Is a directory\)"):
        write_json(tmp_path / "out.json", 1)
    assert listing(tmp_path) == ["out.json"]


def test_what_is_no_fault_of_the_disk_keeps_its_name(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="a library's own"), replacing(tmp_path / "out.txt"):
        raise OSError("a library's own words, without a number")


@pytest.mark.parametrize("name", ["n" * 300, "n" * 250, "n" * 250 + "/results.json"])
def test_a_name_that_is_too_long_is_told_before_the_work(tmp_path: Path, name: str) -> None:
    with pytest.raises(SearchR3Error, match=r"cannot be written \(File name too long\)"):
        check_writable(tmp_path / name)
    check_writable(tmp_path / ("n" * 240))


def test_a_device_is_no_file_to_replace(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for place in (tmp_path / "pipe", Path(os.devnull)):
        with pytest.raises(SearchR3Error, match="is a device, no file; choose another place"):
            check_writable(place)


def test_checking_a_place_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "there.json").write_text("old")
    for place in ("new.json", "deep/er/new.json", "there.json", "."):
        check_writable(tmp_path / place)
    assert listing(tmp_path) == ["there.json"]
    assert (tmp_path / "there.json").read_text() == "old"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="the system has no /proc")
def test_a_place_that_even_root_cannot_write(tmp_path: Path) -> None:
    for write in (make_folder, check_writable, lambda path: write_text(path, "x")):
        with pytest.raises(SearchR3Error, match=r"/proc/x/out: cannot be written \(.*\); choose another"):
            write(Path("/proc/x/out"))


def test_new_folder_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "run"
    with new_folder(target) as folder:
        write_text(folder / "a" / "b.txt", "x")
        assert not target.exists()
    assert (target / "a" / "b.txt").read_text() == "x"
    assert listing(tmp_path / "deep") == ["run"]
    assert stat.S_IMODE(target.stat().st_mode) == 0o755


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_new_folder_disappears_on_failure(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), new_folder(tmp_path / "run") as folder:
        write_text(folder / "half.txt", "x")
        raise error
    assert listing(tmp_path) == []


def test_new_folder_refuses_an_occupied_place_before_any_work(tmp_path: Path) -> None:
    target = tmp_path / "run"
    write_text(target / "precious.txt", "x")
    with pytest.raises(SearchR3Error, match="exists already"), new_folder(target):
        pytest.fail("the body must not run")
    assert listing(tmp_path) == ["run"]
    assert listing(target) == ["precious.txt"]


def test_what_is_occupied(tmp_path: Path) -> None:
    assert not occupied(tmp_path / "new")
    assert not occupied(tmp_path)
    write_text(tmp_path / "file", "x")
    assert occupied(tmp_path) and occupied(tmp_path / "file")
    with pytest.raises(SearchR3Error, match="file: exists already; choose another folder"):
        refuse_occupied(tmp_path / "file")


def test_new_folder_takes_an_empty_place_and_overwrites_when_told(tmp_path: Path) -> None:
    target = tmp_path / "run"
    target.mkdir()
    with new_folder(target) as folder:
        write_text(folder / "one.txt", "1")
    with new_folder(target, overwrite=True) as folder:
        write_text(folder / "two.txt", "2")
    assert listing(target) == ["two.txt"]
    with pytest.raises(ValueError, match="late"), new_folder(target, overwrite=True) as folder:
        write_text(folder / "three.txt", "3")
        raise ValueError("late")
    assert listing(target) == ["two.txt"]
    assert listing(tmp_path) == ["run"]
