"""Encoding documents against sentence-transformers: the same model, texts, precision and threads.

    python benchmarks/encode.py --output benchmarks/results/encode.json
    python benchmarks/encode.py --pack FOLDER --output …      also a data set of long texts, in BEIR's layout

`SearchR3.encode_document` against `SentenceTransformer.encode` over the exported model: its transformer, the
last token, unit length. Theirs gets the conversations written out, so that both make the same tokens, and
their vectors are compared: none may be further than 1e-4 from ours in any dimension. Documents that are too
long are cut for both beforehand; those that theirs reads as other tokens (texts that spell special tokens)
are left out, and counted. Both sort by length. Ours runs with its default batch size, theirs with that of
8, 16, 32, 64 and 128 which is fastest on a tenth of the documents (median of three).

Arms are measured in turn: the functions installed here (`code`) and the pack's documents (`pack`), each with
the default prompts and with an empty system prompt (`…_bare`). Seconds are those of the call, tokenizing
included; documents a second times their mean tokens is `tokens_a_second`. `encode_ratio` is of `code`.
"""

from __future__ import annotations

import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import numpy as np
import torch
from _corpus import code_corpus
from _result import arguments, write
from _timing import in_turn, now, ratio

from searchr3.conversation import Prompts
from searchr3.dataset import load_dataset
from searchr3.errors import SearchR3Error
from searchr3.model import SearchR3
from searchr3.progress import hush_transformers
from searchr3.runs.preparation import bundled_base

FULL = {"documents": 2000, "rounds": 5, "length": 1024, "sizes": (8, 16, 32, 64, 128), "tries": 3}
QUICK = {"documents": 40, "rounds": 1, "length": 128, "sizes": (8, 32), "tries": 1}
TOLERANCE = 1e-4


def spread(texts: Sequence[str], count: int) -> list[str]:
    """`count` of the texts, evenly spread."""
    return [texts[int(row)] for row in np.linspace(0, len(texts) - 1, min(count, len(texts)))]


def compare(name: str, folder: Path, texts: Sequence[str], options: Namespace) -> dict[str, float]:
    """The figures of one model and corpus.

    Raises:
        SearchR3Error: the vectors differ.
    """
    from _rival import as_text, cut, read_alike, rival_of

    ours = SearchR3(folder, dtype=options.dtype)
    theirs = rival_of(folder, ours.dimension, options.dtype)
    chat = ours.conversation
    fitting = cut(chat, texts)
    alike = read_alike(chat, fitting)
    texts = [text for text, same in zip(fitting, alike, strict=True) if same]
    written = as_text(chat, texts)

    def their_vectors(some: list[str], batch_size: int) -> np.ndarray:
        return theirs.encode(some, batch_size=batch_size, show_progress_bar=False)

    def seconds(call: Callable[..., object], *given: object) -> float:
        start = now()
        call(*given)
        return now() - start

    few = written[::10]
    their_vectors(few, 32)
    sizes = {size: lambda size=size: seconds(their_vectors, few, size) for size in options.size["sizes"]}
    tried = in_turn(sizes, options.size["tries"])
    best = min(tried, key=lambda size: median(tried[size]))
    off = float(np.abs(ours.encode_document(texts) - their_vectors(written, best)).max())
    if off > options.tolerance:
        raise SearchR3Error(
            f"{name}: a vector is {off:.1e} from sentence-transformers', more than {options.tolerance}"
        )
    found = in_turn(
        {
            "ours": lambda: len(texts) / seconds(ours.encode_document, texts),
            "theirs": lambda: len(texts) / seconds(their_vectors, written, best),
        },
        options.size["rounds"],
    )
    lengths = [len(one.ids) for one in chat.documents(texts)]
    figures = {
        "documents": len(texts),
        "left_out": len(alike) - len(texts),
        "tokens_mean": float(np.mean(lengths)),
        "tokens_median": float(np.median(lengths)),
        "tokens_most": max(lengths),
        "their_batch_size": best,
        "difference_most": off,
        "documents_a_second": median(found["ours"]),
        "documents_a_second_theirs": median(found["theirs"]),
        "tokens_a_second": median(found["ours"]) * float(np.mean(lengths)),
        **ratio("ratio", found["ours"], found["theirs"]),
    }
    return {f"encode.{name}.{key}": value for key, value in figures.items()}


def exported(model: Path | None, place: Path, length: int, bare: bool) -> Path:
    """`model`, or the bundled base with the embed token, saved with its prompts or an empty one."""
    prompts = Prompts(embed="") if bare else None
    make = SearchR3 if model else SearchR3.from_base
    make(model or bundled_base(), prompts=prompts, max_length=length, dtype="float32").save_pretrained(place)
    return place


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--data", type=Path, help="folder of the code; made where it is missing")
    parser.add_argument("--pack", type=Path, help="a data set in BEIR's layout, for long texts")
    parser.add_argument("--model", type=Path, help="a model of ours; default: the bundled base")
    parser.add_argument("--dtype", default="float32", help="of both models' weights")
    options = parser.parse_args()
    options.size = QUICK if options.quick else FULL
    options.tolerance = TOLERANCE if options.dtype == "float32" else 0.05  # bf16 keeps 8 bits
    data = options.data or Path("runs") / ("encode-quick" if options.quick else "encode") / "data"
    hush_transformers()
    started, figures = time.perf_counter(), {"threads": float(torch.get_num_threads())}
    try:
        corpora = {"code": code_corpus(data, options.quick)}
        if options.pack:
            corpora["pack"] = load_dataset(options.pack)
        with tempfile.TemporaryDirectory() as work:
            for bare in (False, True):
                folder = exported(options.model, Path(work) / str(bare), options.size["length"], bare)
                for name, dataset in corpora.items():
                    texts = spread(
                        [one.content for one in dataset.corpus.values()], options.size["documents"]
                    )
                    figures |= compare(name + "_bare" * bare, folder, texts, options)
                    print(f"{name}{'_bare' * bare}: {time.perf_counter() - started:.0f} s", flush=True)
    except SearchR3Error as error:
        raise SystemExit(f"error: {error}") from None
    figures["encode_ratio"] = figures["encode.code.ratio"]
    figures["encode_ratio_bare"] = figures["encode.code_bare.ratio"]
    figures["difference_most"] = max(
        value for key, value in figures.items() if key.endswith(".difference_most")
    )
    write(options.output, "encode", figures)


if __name__ == "__main__":
    main()
