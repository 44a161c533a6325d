"""Splits by a stable hash: the same query falls into the same split on every machine and in every version."""

from __future__ import annotations

import hashlib
import heapq
import re
from collections.abc import Iterable, Mapping

SHARES: Mapping[str, float] = {"test": 0.14, "dev": 0.05, "stage2": 0.30, "stage1": 0.51}
"""Shares of the queries when a data set has no splits of its own."""

TRAIN_SHARES: Mapping[str, float] = {"stage2": 0.4, "stage1": 0.6}
"""How a foreign `train` split is divided."""

TRAIN_DEV_SHARES: Mapping[str, float] = {"dev": 0.10, "stage2": 0.35, "stage1": 0.55}
"""How a foreign `train` split is divided when the data set has no `dev`."""

_WORD = re.compile(r"[^\W_]+")


def query_key(text: str) -> str:
    """The query in lower case with single spaces and without punctuation: what the split of a query hangs on.

    >>> query_key("Return  the `name`.")
    'return the name'
    """
    return " ".join(_WORD.findall(text.lower())) or text.strip()


def digest(text: str, length: int = 8) -> str:
    """A stable hexadecimal name of `length` bytes for a text (BLAKE2b)."""
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=length).hexdigest()


def fraction(key: str, purpose: str = "split") -> float:
    """A stable number in [0, 1) for `key`; different purposes give independent numbers."""
    return int(digest(f"{purpose}\0{key}", 7), 16) / 2**56


def first_of(keys: Iterable[str], most: int, purpose: str) -> list[str]:
    """At most `most` keys, chosen by a stable hash; those of a smaller `most` are the first of them.

    >>> first_of("abcdef", 2, "toy") == first_of("fedcba", 4, "toy")[:2]
    True
    """
    return heapq.nsmallest(most, keys, key=lambda key: (fraction(key, purpose), key))


def split_of(key: str, shares: Mapping[str, float] = SHARES) -> str:
    """The split of `key`: the shares cut [0, 1) into intervals, and `fraction(key)` picks one.

    Args:
        key: usually `query_key(text)`.
        shares: split name → share, in this order; they sum to one, the last takes what rounding leaves.
    """
    position = fraction(key)
    for name, share in shares.items():
        position -= share
        if position < 0:
            return name
    return name
