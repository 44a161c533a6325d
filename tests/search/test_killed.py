"""Whoever dies when: a search is right at once, and after the next indexing no chunk is lost or doubled."""

import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from qdrant_client import QdrantClient

from searchr3.search.index import index
from searchr3.search.lance_store import LanceStore
from searchr3.search.qdrant_store import QdrantStore
from searchr3.search.search import StoreSearch
from searchr3.search.store import FileRecord, Filter

from desk import DIMENSION, WordModel, some_facts  # isort: skip

KILLED = Path(__file__).with_name("killed.py")
CHANGES = ("put", "drop", "add", "remove", "remember", "settle")


class Died(BaseException):
    """The process is gone."""


class Dying:
    """A store whose process dies where it would make change number `moment`; half of the rows are added."""

    def __init__(self, store, moment: int):
        self.store, self.moment, self.made = store, moment, 0

    def __getattr__(self, name: str):
        real = getattr(self.store, name)
        if name not in CHANGES:
            return real

        def change(*arguments):
            self.made += 1
            if self.made > self.moment:
                if name == "add":
                    real(arguments[0][: len(arguments[0]) // 2])
                raise Died
            return real(*arguments)

        return change


def text_of(name: str, parts: int) -> str:
    return "\n\n".join(
        f"Part {i} of {name} tells of {name} and of part {i} alone, {'and ' * 9}" for i in range(parts)
    )


def write(folder: Path, texts: dict[str, str]) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for name, text in texts.items():
        (folder / name).write_text(text)


BEFORE = {"a.md": text_of("apples", 9), "b.md": text_of("bananas", 2), "c.md": text_of("cherries", 5)}
AFTER = {
    "a.md": text_of("apricots", 12),  # changed, of several batches
    "d.md": BEFORE["c.md"],  # moved
    "e.md": text_of("elderberries", 6),  # new; b is gone
}


def held(store) -> dict[str, list[tuple[str, int, str]]]:
    """All rows of any version, by path, in order."""
    found = store.nearest(np.ones(DIMENSION, dtype=np.float32), 10_000, Filter())
    rows: dict[str, list[tuple[str, int, str]]] = {}
    for one in sorted(found, key=lambda one: (one.row.path, one.row.version, one.row.number)):
        rows.setdefault(one.row.path, []).append((one.row.version, one.row.number, one.row.text))
    return rows


def seen(store) -> dict[str, str]:
    """What searching shows of each file: all its chunks, put together."""
    hits = StoreSearch(store, WordModel()).rows("tells", np.ones(DIMENSION, dtype=np.float32) / 12, 10_000)
    texts: dict[str, dict[int, str]] = {}
    for row, _ in hits:
        assert row.number not in texts.setdefault(row.path, {}), "doubled"
        texts[row.path][row.number] = row.text
    return {path: squeezed(parts[i] for i in sorted(parts)) for path, parts in texts.items()}


def squeezed(parts: Iterable[str]) -> str:
    return "".join("".join(part.split()) for part in parts)


def expected(folder: Path, texts: dict[str, str]) -> dict[str, str]:
    return {f"{folder}/{name}": "".join(text.split()) for name, text in texts.items()}


def bring_up_to_date(store, folder: Path):
    return index(store, some_facts(), [folder], WordModel, batch=4)


def die_and_look(store, folder: Path, moment: int) -> bool:
    """Let an indexing die; whether it did."""
    write(folder, BEFORE)
    bring_up_to_date(store, folder)
    write(folder, AFTER)
    before, after = expected(folder, BEFORE), expected(folder, AFTER)
    try:
        index(Dying(store, moment), some_facts(), [folder], WordModel, batch=4)
        died = False
    except Died:
        died = True
        for path, text in seen(store).items():
            assert text in (before.get(path), after.get(path)), "neither what was nor what is"
        for path in before.keys() & after.keys():
            assert path in seen(store), "what was there before and is there now is found at any moment"
    bring_up_to_date(store, folder)
    assert seen(store) == after
    rows = held(store)
    assert {path: squeezed(text for *_, text in some) for path, some in rows.items()} == after
    records = store.files()
    assert records == {
        path: FileRecord(path, str(folder), some[0][0], len(some), True) for path, some in rows.items()
    }
    return died


def test_dying_before_any_change_to_a_qdrant_store(tmp_path: Path) -> None:
    moment = 0
    while die_and_look(QdrantStore(QdrantClient(":memory:"), "notes"), tmp_path / "docs", moment):
        moment += 1
    assert moment > 12


@pytest.mark.parametrize("moments", [range(5, 40, 6), pytest.param(range(40), marks=pytest.mark.slow)])
def test_dying_before_any_change_to_a_folder(tmp_path: Path, moments: range) -> None:
    for moment in moments:
        with_store = LanceStore(tmp_path / f"store{moment}", create=True)
        died = die_and_look(with_store, tmp_path / "docs", moment)
        with_store.close()
        if not died:
            break
    assert moment > 12


def start(store: Path, folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, str(KILLED), str(store), str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout and process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_kill_9_at_any_moment(tmp_path: Path, kills: int) -> None:
    folder, place, rng = tmp_path / "docs", tmp_path / "store", random.Random(kills)
    texts = {f"{i}.md": text_of(f"matter{i}", 1 + i % 7) for i in range(30)}
    write(folder, texts)
    started = time.perf_counter()
    assert start(tmp_path / "other", folder).wait(120) == 0
    took = time.perf_counter() - started
    met, stale = 0, set[str]()
    for kill in range(kills):
        process = start(place, folder)
        time.sleep(rng.uniform(0, took))
        process.kill()
        met += process.wait() == -9
        store = LanceStore(place, create=True)
        if store.facts():
            now = expected(folder, texts)
            old = {path: text for path, text in seen(store).items() if text != now[path]}
            assert old.keys() <= stale  # as they were before they were changed, not yet read again
        store.close()
        changed = f"{rng.randrange(30)}.md"
        stale.add(f"{folder}/{changed}")
        texts[changed] = text_of(f"again{kill}", 1 + kill % 7)
        (folder / changed).write_text(texts[changed])
    assert met
    store = LanceStore(place, create=True)
    bring_up_to_date(store, folder)
    assert seen(store) == expected(folder, texts)
    assert sum(map(len, held(store).values())) == sum(one.chunks for one in store.files().values())
