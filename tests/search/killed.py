"""Indexes in a process that is killed from outside: says when it begins, and when it is done.

    python killed.py STORE FOLDER

The model is one of words, and takes its time, so that a kill finds it at work.
"""

import sys
import time
from pathlib import Path

sys.path.append(str(Path(__file__).parent))

from desk import WordModel, some_facts

from searchr3.search.index import index
from searchr3.search.lance_store import LanceStore


def main() -> None:
    place, folder = sys.argv[1:]
    store = LanceStore(place, create=True)
    model = WordModel(on_batch=lambda size: time.sleep(0.005))
    print("ready", flush=True)
    summary = index(store, some_facts(), [folder], lambda: model, batch=8)
    print(summary.encoded, flush=True)


if __name__ == "__main__":
    main()
