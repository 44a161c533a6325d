"""One of two processes fails while the other waits for it, and cannot end by itself.

python failing.py train
"""

import threading
import time

import numpy as np
import typer

from searchr3 import group
from searchr3.cli.terminal import OneLineErrors
from searchr3.errors import DataError

app = typer.Typer(cls=OneLineErrors, pretty_exceptions_enable=False)


@app.callback()
def start() -> None:
    group._FAREWELL = 1


@app.command()
def train() -> None:
    together = group.start_group()
    together.gather(np.zeros(1))
    if together.rank:
        threading.Thread(target=time.sleep, args=[600]).start()  # as a library that waits for the others
        raise DataError("data.jsonl:17: no text; give it one")
    together.gather(np.zeros(1))


if __name__ == "__main__":
    app()
