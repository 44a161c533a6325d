"""What encodes shards: one model, in this process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from searchr3.conversation import Prompts
from searchr3.encoding.manifest import Settings, Shard
from searchr3.encoding.shard_files import write_shard
from searchr3.encoding.source import Source
from searchr3.errors import ModelError
from searchr3.model import Progress, SearchR3

Tell = Callable[[int], None]
"""Called with the number of rows that were encoded so far."""


@dataclass(frozen=True)
class Work:
    """What a worker needs to know; it may run on another machine, where the paths mean the same files."""

    model: str
    source: Path
    folder: Path
    settings: Settings
    batch_size: int = 32
    device: str | None = None


class Encoder:
    """Encodes shards, and writes them itself."""

    def __init__(self, work: Work):
        settings = work.settings
        self.work = work
        self.source = Source(work.source, settings.kind)
        self.search = SearchR3(
            work.model,
            max_length=settings.max_length,
            batch_size=work.batch_size,
            device=work.device,
            dtype=settings.precision,
            prompts=Prompts(**settings.prompts),
        )

    def encode(self, shard: Shard, progress: Progress | None = None) -> None:
        """Read a shard's texts, encode them, write its file."""
        settings = self.work.settings
        ids, texts = self.source.read(shard)
        if settings.kind == "documents":
            vectors = self.search.encode_document(texts, dim=settings.dimension, progress=progress)
        else:
            vectors = self.search.encode_query(
                texts, instruction=settings.instruction, dim=settings.dimension, progress=progress
            )
        if not np.isfinite(vectors).all():
            raise ModelError(
                f"{self.work.model}: gives vectors that are no numbers; try --precision float32, "
                "or another checkpoint"
            )
        write_shard(self.work.folder, shard, settings, ids, vectors)


def run_local(work: Work, shards: list[Shard], tell: Tell) -> None:
    """Encode shards one after the other, in this process; memory for one is enough."""
    encoder = Encoder(work)
    done = 0

    def within(rows: int, _: int) -> None:
        tell(done + rows)

    for shard in shards:
        encoder.encode(shard, within)
        done += shard.rows
