"""Serving: one pass, a server under more load than it bears, its API, indexing and searching, and kills.

    python benchmarks/serving.py --output benchmarks/results/serving.json
    python benchmarks/serving.py --parts engine load --output …      these parts alone

The model is the bundled base with the embed token, untrained: what is measured does not hang on what it has
learnt. Each part is kept in the work folder, under the code and the sizes that it was measured with; what was
interrupted goes on with the first that is missing, and indexing within itself.

engine    Every query is given a thought of exactly 64 tokens (stop tokens are forbidden, for all arms alike).
          `one_pass_overhead`: the time of thinking and embedding over that of the same engine's thinking
          alone, less 1, the median of many pairs of runs. `throughput_vs_two_pass`: that of the engine at 32
          requests over `generate` and then `encode_query` in batches of 32; `batched_vs_single` over the
          engine with one row. Seconds are from a request's beginning to its vector, 32 of them always on
          their way, percentiles those of a round, of which the median counts; tokenizing is left out for
          all. Arms are measured in turn
load      `searchr3 serve` as a process of its own. 32 clients that wait for their answers tell what it
          sustains; then twice that rate comes for minutes, at random moments. Half of the requests think (16
          tokens), a quarter are direct queries, a quarter eight documents each. `errors_other_than_429`: all
          other statuses and connections without a whole answer; `memory_growth`: MiB an hour, by a line
          through the second half
api       schemathesis asks a server with a store whatever its OpenAPI page allows: `api_5xx`
indexing  Source files of the libraries installed here, as many as make 100,000 chunks.
          `indexing_over_encoding`: the wall time of `index` (reading, chunking, encoding, writing, making
          quick to search) over that of `SearchR3.encode_document` alone on the same passages, in the same
          process, slice by slice, see `_indexing.py`. `search_p50_ms`: a whole question without thinking, in
          a process that has the store open: embedding the query, searching all chunks, reading the hits; the
          first, which reads all rows, stands by itself (`search_first_ms`). `hybrid_p50_ms` with full text
kills     Indexing is killed with SIGKILL at random moments, see `_kills.py`: `chunks_lost_or_doubled` at the
          end, and `searches_failed`, after a kill, that raise or show a file in part
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from shutil import rmtree

import torch
from _api import api_figures
from _corpus import code_corpus
from _engine import engine_figures, no_stops
from _indexing import indexing_figures
from _kills import kill_figures
from _load import server_figures
from _result import arguments, part, parts_folder, write

from searchr3.errors import SearchR3Error
from searchr3.model import SearchR3
from searchr3.progress import hush_transformers
from searchr3.runs.preparation import bundled_base

PARTS = ("engine", "load", "api", "indexing", "kills")
FULL = {
    **{"requests": 128, "rounds": 7, "minutes": 10.0, "warm": 30.0, "examples": 200},
    **{"chunks": 100_000, "questions": 300, "kills": 20, "killed_chunks": 1500},
}
QUICK = {
    **{"requests": 32, "rounds": 1, "minutes": 0.1, "warm": 3.0, "examples": 4},
    **{"chunks": 200, "questions": 10, "kills": 1, "killed_chunks": 60},
}


def measured(name: str, options: Namespace) -> dict[str, float]:
    """The figures of a part."""
    size, model, work = options.size, options.model, options.folder
    if name == "indexing":
        return indexing_figures(work, model, int(size["chunks"]), int(size["questions"]))
    alone = work / name
    rmtree(alone, ignore_errors=True)  # of one that was interrupted
    alone.mkdir()
    if name == "kills":
        return kill_figures(alone, model, int(size["kills"]), int(size["killed_chunks"]))
    if name == "api":
        return api_figures(alone, model, int(size["examples"]))
    corpus = code_corpus(options.data, options.quick)
    texts = [query.text for query, _ in zip(corpus.queries.values(), range(2000), strict=False)]
    if name == "load":
        return server_figures(model, texts, size)
    search = SearchR3(model)
    with no_stops(search):
        return engine_figures(search, texts, size)


def figures_of(options: Namespace) -> dict[str, float]:
    """Those of all parts that are asked for; of the others too, where they are known."""
    figures: dict[str, float] = {"threads": float(torch.get_num_threads())}
    for name in PARTS:
        place = options.folder / f"{name}.json"
        if place.is_file() or name in options.parts:
            figures |= part(place, lambda name=name: measured(name, options))
    return figures


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--model", type=Path, help="a model of ours; default: the bundled base")
    parser.add_argument("--data", type=Path, help="folder of the queries' code; made where it is missing")
    parser.add_argument("--work", type=Path, help="default runs/benchmark-serving, with -quick if short")
    parser.add_argument("--minutes", type=float, help="of the load")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    options = parser.parse_args()
    options.size = dict(QUICK if options.quick else FULL)
    if options.minutes:
        options.size["minutes"] = options.minutes
    options.work = options.work or Path("runs") / ("benchmark-serving" + "-quick" * options.quick)
    options.data = options.data or options.work / "data"
    options.folder = parts_folder(options.work, size=options.size, model=str(options.model))
    hush_transformers()
    try:
        if options.model is None:
            options.model = options.folder / "model"
            if not options.model.is_dir():
                SearchR3.from_base(bundled_base()).save_pretrained(options.model)
        figures = figures_of(options)
    except SearchR3Error as error:
        raise SystemExit(f"error: {error}") from None
    write(options.output, "serving", figures)


if __name__ == "__main__":
    main()
