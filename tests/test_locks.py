"""One process at a time, whatever the one before it left."""

import errno
from pathlib import Path

import pytest

from searchr3.errors import SearchR3Error
from searchr3.locks import alone, locked


def test_a_folder_is_held_by_one_and_goes_if_it_stays_empty(tmp_path: Path) -> None:
    place = tmp_path / "deep" / "run"
    with alone(place, "run: taken"):
        with pytest.raises(SearchR3Error, match="run: taken"), alone(place, "run: taken"):
            pass
        assert (place / ".lock").is_file(), "who is refused takes nothing away"
    assert not place.exists()

    with alone(place, "taken"):
        (place / "mine.txt").touch()
    assert [path.name for path in place.iterdir()] == ["mine.txt"]


def test_a_fault_within_ends_it_too(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), alone(tmp_path / "run", "taken"):
        raise ZeroDivisionError
    assert not list(tmp_path.iterdir())


def test_what_a_killed_process_leaves_locks_nobody_out(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    with alone(tmp_path, "taken"):
        pass
    assert not (tmp_path / ".lock").exists()


def test_who_opens_a_lock_that_is_just_removed_does_not_hold_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a third, who makes it anew, would hold it at the same time."""
    lock = tmp_path / "x.lock"
    monkeypatch.setattr("searchr3.locks.hold", lambda *_: lock.unlink())
    with pytest.raises(SearchR3Error, match="taken"), locked(lock, "taken"):
        pass


def test_a_file_system_without_locks_locks_nobody_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", without)
    with locked(tmp_path / "x.lock", "taken"):
        pass


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SearchR3Error, match="file is no folder"), alone(tmp_path / "file" / "run", "taken"):
        pass
