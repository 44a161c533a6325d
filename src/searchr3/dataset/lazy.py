"""Sequences and mappings whose values are made when they are asked for: large data are never held at once."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar, overload

T = TypeVar("T")
U = TypeVar("U")


class Lazy(Sequence[T]):
    """A sequence whose item `n` is `get(n)`.

    >>> list(Lazy(3, lambda n: n * n))
    [0, 1, 4]
    """

    def __init__(self, length: int, get: Callable[[int], T]):
        self._length, self._get = length, get

    def __len__(self) -> int:
        return self._length

    @overload
    def __getitem__(self, index: int) -> T: ...
    @overload
    def __getitem__(self, index: slice) -> list[T]: ...
    def __getitem__(self, index: int | slice) -> T | list[T]:
        if isinstance(index, slice):
            return [self._get(n) for n in range(*index.indices(self._length))]
        if not -self._length <= index < self._length:
            raise IndexError(index)
        return self._get(int(index) % self._length)


def joined(parts: Sequence[Sequence[T]]) -> Sequence[T]:
    """Sequences one behind the other."""
    if len(parts) == 1:
        return parts[0]
    first, rest = parts[0], joined(parts[1:])
    own = len(first)
    return Lazy(own + len(rest), lambda n: first[n] if n < own else rest[n - own])


class View(Mapping[str, T], Generic[T]):
    """A mapping without the keys of `hidden`, and with its values changed.

    Args:
        hidden: keys of `source`.
    """

    def __init__(
        self,
        source: Mapping[str, T],
        hidden: Collection[str] = frozenset(),
        change: Callable[[T], T] | None = None,
    ):
        self.source, self.hidden, self._change = source, hidden, change

    def _changed(self, value: T) -> T:
        return self._change(value) if self._change else value

    def __getitem__(self, key: str) -> T:
        if key in self.hidden:
            raise KeyError(key)
        return self._changed(self.source[key])

    def __contains__(self, key: Any) -> bool:
        return key not in self.hidden and key in self.source

    def __iter__(self) -> Iterator[str]:
        return (key for key in self.source if key not in self.hidden) if self.hidden else iter(self.source)

    def __len__(self) -> int:
        return len(self.source) - len(self.hidden)


class Mapped(Mapping[str, U], Generic[T, U]):
    """A mapping whose values are made of those of another one.

    >>> dict(Mapped({"a": 2}, lambda n: n * n))
    {'a': 4}
    """

    def __init__(self, source: Mapping[str, T], make: Callable[[T], U]):
        self.source, self._make = source, make

    def __getitem__(self, key: str) -> U:
        return self._make(self.source[key])

    def __iter__(self) -> Iterator[str]:
        return iter(self.source)

    def __len__(self) -> int:
        return len(self.source)
