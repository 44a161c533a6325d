"""Which files there are below the given paths, in an order that does not hang on the disk."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pathspec

from searchr3.search.kinds import TEXT, Kind, kind_of

LARGEST = {"pdf": 100_000_000}  # bytes of a file, by its form
LARGEST_TEXT = 10_000_000
_GENERATED = {"__pycache__", "node_modules"}  # folders that nobody wrote
# by names in it
_MADE = {"a Python environment": {"pyvenv.cfg"}, "a store": {"files.sqlite", "chunks.lance"}}
_RULES = ".gitignore"


@dataclass(frozen=True)
class File:
    """A file to be read.

    Attributes:
        name: what the store and the hits call it: its root's name and the way from there, with slashes.
        root: the name of its root.
    """

    name: str
    root: str
    place: Path
    kind: Kind


@dataclass(frozen=True)
class Skipped:
    """What is not read, and why. `lost`: it could not be, so what is known of it may still be true."""

    name: str
    why: str
    lost: bool = False


Rules = tuple[tuple[Path, pathspec.GitIgnoreSpec], ...]


def find_files(roots: Mapping[str, Path]) -> Iterator[File | Skipped]:
    """The files at and below each root (name → place), in the order of roots and of names.

    Below a folder these are left out: what is hidden, what a .gitignore names, folders of installed packages
    and caches, stores, links (so that there are no loops), kinds that are not known, and what is too large. A
    root itself is taken whatever its name, a folder also if a .gitignore above names it, which then says
    nothing of what is in it. Nothing that goes wrong with one file ends it.
    """
    for name, place in roots.items():
        if place.is_dir():
            rules = _rules_above(place)
            yield from _below(name, name, place, () if _ignored(place, True, rules) else rules)
        else:
            yield _checked(name, name, place, kind_of(place.name) or TEXT)


def joined(root: str, rest: str) -> str:
    """The name of what lies at `rest` below a root; the folder that one stands in has the name ".".

    >>> joined("docs", "a/b.md"), joined(".", "b.md"), joined("/", "etc")
    ('docs/a/b.md', 'b.md', '/etc')
    """
    if root == "." or not rest or rest == ".":
        return rest if root == "." and rest else root
    return f"{root.rstrip('/')}/{rest}"


def _below(root: str, name: str, folder: Path, rules: Rules) -> Iterator[File | Skipped]:
    try:
        with os.scandir(folder) as listed:
            entries = sorted(listed, key=lambda entry: entry.name)
    except OSError as error:
        yield Skipped(name, f"cannot be read ({error.strerror})", lost=True)
        return
    names = {entry.name for entry in entries}
    for what, marks in _MADE.items():
        if marks <= names:
            yield Skipped(name, what)
            return
    rules = (*rules, *_rules_in(folder))
    for entry in entries:
        if entry.name.startswith("."):
            continue
        inside, place = joined(name, entry.name), folder / entry.name
        if entry.is_symlink():
            yield Skipped(inside, "a link")
        elif _ignored(place, entry.is_dir(), rules):
            yield Skipped(inside, "named in a .gitignore")
        elif entry.is_dir():
            if entry.name not in _GENERATED:
                yield from _below(root, inside, place, rules)
        elif kind := kind_of(entry.name):
            yield _checked(inside, root, place, kind)
        else:
            yield Skipped(inside, f"of no known kind ({place.suffix or 'no ending'})")


def _checked(name: str, root: str, place: Path, kind: Kind) -> File | Skipped:
    try:
        name.encode()
    except UnicodeEncodeError:
        return Skipped(ascii(name)[1:-1], "its name is not UTF-8")
    try:
        status = place.stat()
    except OSError as error:
        return Skipped(name, f"cannot be read ({error.strerror})", lost=True)
    if not stat.S_ISREG(status.st_mode):
        return Skipped(name, "no regular file")
    most = LARGEST.get(kind.form, LARGEST_TEXT)
    if status.st_size > most:
        return Skipped(name, f"larger than {most // 1_000_000} MB")
    return File(name, root, place, kind)


def _rules_in(folder: Path) -> Rules:
    try:
        text = (folder / _RULES).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ()
    try:
        return ((folder, pathspec.GitIgnoreSpec.from_lines(text.splitlines())),)
    except ValueError:  # one bad pattern: git passes over it; we over the file
        return ()


def _rules_above(folder: Path) -> Rules:
    """What the folders above say, up to the top of the repository that `folder` is in, if it is in one."""
    above = folder.resolve()
    chain = [above, *above.parents]
    top = next((number for number, one in enumerate(chain) if (one / ".git").exists()), 0)
    return tuple(rule for one in reversed(chain[1 : top + 1]) for rule in _rules_in(one))


def _ignored(place: Path, is_folder: bool, rules: Rules) -> bool:
    """Whether the nearest rule that speaks of `place` says so."""
    for folder, rule in reversed(rules):
        rest = os.path.relpath(place.parent.resolve() / place.name, folder.resolve())
        verdict = rule.check_file(rest + "/" * is_folder).include
        if verdict is not None:
            return verdict
    return False
