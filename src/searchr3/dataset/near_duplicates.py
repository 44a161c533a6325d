"""Groups of near-duplicate code: MinHash with banding finds candidates, exact Jaccard verifies them."""

from __future__ import annotations

import hashlib
import re
import zlib
from collections.abc import Iterator, Sequence

import numpy as np

_COMMENT = re.compile(r"#[^\n]*")
_TOKEN = re.compile(r"\w+|[^\w\s]")
_MARGIN = 0.15  # 80 values estimate a Jaccard of 0.8 with a standard deviation of 0.045


def shingles(code: str, size: int = 4, comments: bool = False) -> np.ndarray:
    """Hashes of all runs of `size` tokens, as a sorted set. White space does not count.

    Comments, from # to the end of the line, count only with `comments`; prose has none.

    Returns:
        uint64 of shape (n,), n ≥ 1: a text shorter than `size` tokens is one shingle.
    """
    tokens = _TOKEN.findall(code if comments else _COMMENT.sub("", code))
    hashes = np.array(
        [zlib.crc32(token.encode("utf-8", "surrogatepass")) for token in tokens], dtype=np.uint64
    )
    hashes = np.concatenate([hashes, np.zeros(max(size - len(hashes), 0), dtype=np.uint64)])
    count = len(hashes) - size + 1
    mixed = np.zeros(count, dtype=np.uint64)
    for offset in range(size):  # a polynomial in an odd number, modulo 2^64
        mixed = mixed * np.uint64(0x9E3779B97F4A7C15) + hashes[offset : offset + count]
    return np.unique(mixed)


def jaccard(a: np.ndarray, b: np.ndarray) -> float:
    """|a ∩ b| / |a ∪ b| of two sorted sets."""
    common = len(np.intersect1d(a, b, assume_unique=True))
    return common / (len(a) + len(b) - common)


def minhash(sets: Sequence[np.ndarray], size: int) -> np.ndarray:
    """MinHash signatures (Broder 1997): equal positions of two rows estimate the Jaccard similarity.

    Returns:
        uint32 of shape (len(sets), size).
    """
    flat = np.concatenate(sets)
    starts = np.cumsum([0] + [len(one) for one in sets[:-1]])
    # Multipliers from a hash, not from a random generator: the same on every machine and numpy version.
    numbers = np.frombuffer(hashlib.shake_256(b"searchr3 minhash").digest(16 * size), dtype="<u8").astype(
        np.uint64
    )
    signatures = np.empty((len(sets), size), dtype=np.uint32)
    for column, (factor, shift) in enumerate(numbers.reshape(size, 2)):
        permuted = ((flat * (factor | np.uint64(1)) + shift) >> np.uint64(32)).astype(np.uint32)
        signatures[:, column] = np.minimum.reduceat(permuted, starts)
    return signatures


def _buckets(signatures: np.ndarray, rows: int) -> Iterator[np.ndarray]:
    """Indices that agree in all `rows` values of some band, two or more at a time."""
    for first in range(0, signatures.shape[1], rows):
        band = np.ascontiguousarray(signatures[:, first : first + rows])
        _, label, sizes = np.unique(
            band.view(np.dtype((np.void, band.itemsize * rows))).ravel(),
            return_inverse=True,
            return_counts=True,
        )
        order = np.argsort(label, kind="stable")
        for end, size in zip(np.cumsum(sizes), sizes, strict=True):
            if size > 1:
                yield order[end - size : end]


def near_duplicate_groups(
    texts: Sequence[str], threshold: float = 0.8, bands: int = 20, rows: int = 4
) -> np.ndarray:
    """Group texts that are connected by pairs whose token shingles have a Jaccard similarity ≥ `threshold`.

    A pair at the threshold 0.8 is found with probability 1 − (1 − 0.8^rows)^bands = 0.9999; every pair that
    is found is verified exactly, so no two texts are joined by chance.

    Returns:
        int64 of shape (len(texts),): the smallest index of the group each text is in.
    """
    first_with: dict[bytes, int] = {}
    parent = np.arange(len(texts), dtype=np.int64)
    sets: list[np.ndarray] = []
    members: list[int] = []
    for index, text in enumerate(texts):
        one = shingles(text)
        parent[index] = first_with.setdefault(one.tobytes(), index)
        if parent[index] == index:
            sets.append(one)
            members.append(index)
    if not sets:
        return parent

    def find(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return int(index)

    signatures = minhash(sets, bands * rows)
    checked: set[tuple[int, int]] = set()
    for bucket in _buckets(signatures, rows):
        if len({find(members[index]) for index in bucket}) == 1:
            continue
        for position, one in enumerate(bucket[:-1]):
            others = bucket[position + 1 :]
            alike = (signatures[others] == signatures[one]).mean(axis=1) >= threshold - _MARGIN
            for other in others[alike]:
                pair = (int(one), int(other))
                if pair in checked:
                    continue
                checked.add(pair)
                a, b = find(members[one]), find(members[other])
                if a != b and jaccard(sets[one], sets[other]) >= threshold:
                    parent[max(a, b)] = min(a, b)
    return np.array([find(index) for index in range(len(texts))], dtype=np.int64)
