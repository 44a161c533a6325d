"""The folders that a store follows: what they are called in it, and where they are now."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from searchr3.errors import SearchR3Error
from searchr3.search.documents import joined


@dataclass(frozen=True)
class Plan:
    """What an indexing looks at.

    Attributes:
        roots: name → place of all that the store follows from now on.
        walks: name → place of what is looked through now: roots, or parts of them.
        absorbed: names of roots that were followed so far and lie inside one of these.
    """

    roots: dict[str, str]
    walks: dict[str, Path]
    absorbed: frozenset[str] = frozenset()

    def root_of(self, walk: str) -> str:
        """The root that a walk is, or is a part of."""
        return next(root for root in self.roots if walk == root or below(walk, root))

    def covers(self, name: str, root: str) -> bool:
        """Whether a file of this name and root is looked for now, so that it is gone if it is not found."""
        return root in self.absorbed or any(name == walk or below(name, walk) for walk in self.walks)


def plan(known: Mapping[str, str], given: Sequence[str | Path]) -> Plan:
    """What to call the given paths, and what becomes of the roots that are known (name → place).

    A path is called as it was given. One that is known by its place keeps its name, however it is spelled
    now; a part of a known root is looked through as that; a folder around a known root takes it over. A name
    whose place is gone moves to the new place with its files.

    Raises:
        SearchR3Error: a path is not there, or its name means another folder, which is still there.
    """
    roots, walks, absorbed = dict(known), {}, set()
    for path in given:
        place = os.path.realpath(path)
        if not os.path.exists(place):
            raise SearchR3Error(f"{path}: no such file or folder; check it, or take it out with --forget")
        name = Path(os.path.normpath(path)).as_posix()
        outer = next((root for root, at in roots.items() if place == at or _inside(place, at)), None)
        if outer is not None:
            walks[joined(outer, Path(os.path.relpath(place, roots[outer])).as_posix())] = Path(place)
            continue
        for root, at in [*roots.items()]:
            if _inside(at, place):
                absorbed.add(root)
                walks.pop(root, None)
                del roots[root]
            elif root == name or below(root, name) or below(name, root):
                if os.path.exists(at):
                    raise SearchR3Error(
                        f"{path}: {root} is {at} in this store; give this one by its whole path, {place}"
                    )
                if root == name:
                    del roots[root]
        roots[name] = place
        walks[name] = Path(place)
    return Plan(roots, walks, frozenset(absorbed - set(roots)))


def below(name: str, root: str) -> bool:
    """Whether a name lies below that of a folder.

    >>> below("docs/a.md", "docs"), below("docs2/a.md", "docs"), below("a.md", ".")
    (True, False, True)
    """
    if root == ".":
        return not name.startswith(("/", "../")) and name != ".."
    return name.startswith(f"{root.rstrip('/')}/")


def _inside(place: str, folder: str) -> bool:
    return place != folder and place.startswith(folder.rstrip("/") + "/")
