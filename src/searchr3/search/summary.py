"""What an indexing tells of its work."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from searchr3.search.store import Store


@dataclass
class Summary:
    """What an indexing did.

    Attributes:
        files, chunks: in the store now.
        added, changed, unchanged, removed: files, of those that were looked through.
        encoded, reused: chunks; reused are those of files that have the content of another.
        skipped: name → why; `reasons` counts them.
        missing: roots that are followed, but are not there now: their files stay.
    """

    files: int = 0
    chunks: int = 0
    added: int = 0
    changed: int = 0
    unchanged: int = 0
    removed: int = 0
    encoded: int = 0
    reused: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    @property
    def reasons(self) -> dict[str, int]:
        return dict(Counter(self.skipped.values()).most_common())


def counted(store: Store, summary: Summary) -> Summary:
    """`summary` with what is in the store now."""
    records = [one for one in store.files().values() if one.version]
    summary.files, summary.chunks = len(records), sum(one.chunks for one in records)
    return summary
