"""Source files of the libraries installed here, as documents of one's own."""

from __future__ import annotations

import random
import shutil
import sys
from pathlib import Path

from searchr3.errors import SearchR3Error
from searchr3.search.chunks import SIZE, fitted
from searchr3.search.documents import File, find_files
from searchr3.search.encoder import ModelEncoder
from searchr3.search.readers import read


def documents(folder: Path, chunks: int, encoder: ModelEncoder, skip: int = 0) -> int:
    """Copy source files into `folder` until they make so many chunks; returns how many they make.

    Raises:
        SearchR3Error: there are not enough of them here.
    """
    found = 0
    libraries = [Path(path) for path in sys.path if path.endswith("-packages")]
    sources = sorted(path for library in libraries for path in library.rglob("*.py"))
    random.Random(0).shuffle(sources)
    folder.mkdir(parents=True)
    for number, path in enumerate(sources[skip:], start=skip):
        target = folder / f"{number // 1000:03}" / f"{number:06}.py"
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(path, target)
        made = len(chunks_of_file(target, encoder))
        if found + made > chunks:
            target.unlink()
            continue
        found += made
        if found > 0.999 * chunks:
            return found
    if found < 0.9 * chunks:
        raise SearchR3Error(f"the libraries here make {found} chunks, not {chunks}; install more")
    return found


def chunks_of_file(path: Path, encoder: ModelEncoder) -> list[tuple[str, str]]:
    """Text and passage of each chunk of a file."""
    (one,) = find_files({str(path): path})
    if not isinstance(one, File):
        return []
    pairs: list[tuple[str, str]] = []
    try:
        for section in read(path.read_bytes(), one.kind.form):
            made = fitted(section, one.kind, SIZE, encoder.render)
            pairs += [(chunk.text, chunk.passage) for chunk, _ in made]
    except SearchR3Error:  # no text: `index` passes over it too
        return []
    return pairs
