"""A tiny chat-format base model, made from nothing: tokenizer, and causal pretraining.

It stands where a Qwen2.5 checkpoint stands in real use, and runs through the same code: a `transformers`
causal LM with a ChatML template and spare embedding rows. The objective is causal language modelling alone,
over everything that is said.

    python -m searchr3.training.base OUTPUT                               the Python code installed here
    python -m searchr3.training.base OUTPUT --python --pairs --share python-pairs=0.3 --data DIR --text FILE
    python -m searchr3.training.base OUTPUT --from BASE --data DIR        go on from a base, on further texts

Python code is read with docstrings apart from their functions. With --pairs the base is also shown
conversations in which the user says a query and the assistant writes the answer: a docstring's summary and
its function, a data set's training query and a relevant document. Nothing of dev and test is among them, nor,
with --split-by package, of the packages that are held out. No conversation, whatever it is from, is shown in
which the user says a dev or test query of a data set that is named with --data or --hold-out: name those with
--hold-out that the model will be tested on and not trained on. `base.json` in OUTPUT says how it was made.

With --from the weights, tokenizer and shape are those of a base that was made before; the learning rate warms
up and decays anew. What that one has read counts as read, for good: name --data again that are to stay
familiar, and hold out what was held out there.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from searchr3.errors import SearchR3Error
from searchr3.training.base_model import SIZES, VOCABULARY, Shape
from searchr3.training.base_sources import data_sources, hold_out_source, python_source, text_source
from searchr3.training.base_start import Start
from searchr3.training.base_training import Settings, make_base


def _share(text: str) -> tuple[str, float]:
    name, _, number = text.rpartition("=")
    if not name:
        raise argparse.ArgumentTypeError(f"{text!r}: write NAME=NUMBER")
    return name, float(number)


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("output", type=Path)
    found.add_argument("--from", dest="start", type=Path, metavar="BASE", help="a base to go on from")
    reads = found.add_argument_group("what it reads")
    reads.add_argument(
        "--python",
        action=argparse.BooleanOptionalAction,
        help="the Python code installed here; by default where there is neither --data nor --text",
    )
    reads.add_argument("--split-by", choices=("hash", "package"), default="hash", help="as data.split_by")
    reads.add_argument("--data", action="append", default=[], help="documents of a data set; may come again")
    reads.add_argument(
        "--hold-out",
        action="append",
        default=[],
        metavar="DATA",
        help="a data set whose dev and test queries no pair may show; nothing of it is read; may come again",
    )
    reads.add_argument(
        "--text", action="append", default=[], help="JSON lines with text or messages; may come again"
    )
    reads.add_argument(
        "--pairs", action="store_true", help="also queries with their answers, as conversations"
    )
    reads.add_argument(
        "--share",
        action="append",
        default=[],
        type=_share,
        metavar="PART=NUMBER",
        help="of the training rows, such as python-pairs=0.3; other parts divide the rest by size",
    )
    reads.add_argument("--chat-share", type=float, default=0.1, help="of texts shown as a conversation")
    reads.add_argument(
        "--dev-share", type=float, default=0.0, help="of texts held out to measure the loss on"
    )
    shape = found.add_argument_group("its shape")
    shape.add_argument("--size", choices=[*SIZES], help="default 5m, or that of --from")
    shape.add_argument("--width", type=int)
    shape.add_argument("--layers", type=int)
    shape.add_argument("--heads", type=int)
    shape.add_argument("--vocabulary", type=int)
    training = found.add_argument_group("its training")
    training.add_argument("--steps", type=int, default=2400)
    training.add_argument("--tokens", type=int, default=8192, help="in one step")
    training.add_argument("--learning-rate", type=float, default=2e-3)
    training.add_argument("--seed", type=int, default=0)
    training.add_argument("--resume", action="store_true")
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    options = parser().parse_args(arguments)
    reads_python = options.python if options.python is not None else not (options.data or options.text)
    try:
        start = Start.read(options.start) if options.start else None
        whole = SIZES[options.size] if options.size else start.shape if start else Shape()
        named = {**vars(whole)}
        named |= {key: value for key in named if (value := getattr(options, key)) is not None}
        settings = Settings(
            shape=Shape(**named),
            vocabulary=options.vocabulary or (start.vocabulary if start else VOCABULARY),
            shares=dict(options.share),
            **{
                name: getattr(options, name)
                for name in (
                    "steps",
                    "tokens",
                    "learning_rate",
                    "chat_share",
                    "dev_share",
                    "seed",
                )
            },
        )
        sources = [python_source(options.split_by, options.pairs)] if reads_python else []
        sources += data_sources(options.data, options.pairs)
        sources += [text_source(path) for path in options.text]
        sources += [hold_out_source(data) for data in options.hold_out]
        make_base(sources, options.output, settings, options.resume, start)
    except SearchR3Error as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
