"""The file behind the cache: nothing is lost or wrong, whoever else writes and whatever the disk does."""

import multiprocessing
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from searchr3.errors import SearchR3Error
from searchr3.evaluation.shelf import Entry, Shelf

ENTRIES = {bytes([n]) * 32: Entry(bytes(range(n, n + 100)), n / 7) for n in range(20)}


def opened(path: Path, entries: dict[bytes, Entry]) -> Shelf:
    shelf = Shelf(path)
    shelf.put(entries)
    return shelf


def test_what_is_put_is_there_also_for_the_next_one(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.sqlite"
    shelf = opened(path, ENTRIES)
    assert shelf.get([b"none", *ENTRIES]) == ENTRIES
    shelf.close()
    assert Shelf(path).get([*ENTRIES]) == ENTRIES
    assert [file.name for file in path.parent.iterdir()] == ["a.sqlite"]


def test_all_or_nothing(tmp_path: Path) -> None:
    shelf = Shelf(tmp_path / "a.sqlite")
    with pytest.raises(SearchR3Error, match="the cache cannot be used"):
        shelf.put({b"good": Entry(b"1", 1.0), b"bad": Entry(b"2", float("nan"))})
    assert shelf.get([b"good", b"bad"]) == {}
    shelf.put(ENTRIES)  # it still works
    assert shelf.get([*ENTRIES]) == ENTRIES


@settings(max_examples=40)
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7), cut=st.booleans())
def test_a_damaged_file_never_gives_a_wrong_value(
    tmp_path_factory: pytest.TempPathFactory, place: float, bit: int, cut: bool
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "a.sqlite"
    opened(path, ENTRIES).close()
    content = bytearray(path.read_bytes())
    where = int(place * len(content))
    if cut:
        del content[where:]
    else:
        content[where] ^= 1 << bit
    path.write_bytes(content)
    try:
        shelf = Shelf(path)
        found = shelf.get([*ENTRIES])
    except SearchR3Error as error:
        assert str(path) in str(error) and "\n" not in str(error)
        return
    assert found.items() <= ENTRIES.items()
    shelf.close()


def test_a_damaged_entry_is_said_and_made_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "a.sqlite"
    opened(path, ENTRIES).close()
    key, entry = [*ENTRIES.items()][5]
    with sqlite3.connect(path) as base:
        base.execute("UPDATE entries SET value = ? WHERE key = ?", (entry.value[::-1], key))
    shelf = Shelf(path)
    assert shelf.get([*ENTRIES]).keys() == ENTRIES.keys() - {key}
    assert caplog.messages == [f"{path}: 1 entries are damaged and are computed again; is the disk sound?"]
    shelf.put({key: entry})
    assert shelf.get([*ENTRIES]) == ENTRIES


def test_a_file_that_is_no_cache_is_named_with_the_mend(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    path.write_bytes(b"no data base at all, but long enough to be looked at" * 100)
    with pytest.raises(SearchR3Error, match=r"a\.sqlite: the cache is damaged .*; remove the file"):
        Shelf(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(SearchR3Error, match=r"cannot be used .*; choose another place with --cache"):
        Shelf(path)


def fill(path: Path, own: int) -> None:
    shelf = Shelf(path)
    for block in range(20):
        shared = {f"shared {block}".encode(): Entry(b"x" * 5000, 1.0)}
        shelf.put({f"{own} {block} {n}".encode(): Entry(b"%d" % n, 2.0) for n in range(10)} | shared)


def test_two_processes_lose_nothing_of_each_other(tmp_path: Path) -> None:
    path = tmp_path / "a.sqlite"
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=fill, args=(path, own)) for own in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert [one.exitcode for one in both] == [0, 0]
    shelf = Shelf(path)
    own = {f"{own} {block} {n}".encode() for own in range(2) for block in range(20) for n in range(10)}
    shared = {f"shared {block}".encode() for block in range(20)}
    assert shelf.get([*own, *shared]).keys() == own | shared
