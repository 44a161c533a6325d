"""Our metrics against trec_eval's own and against its formulas written out; BM25 against published figures.

    python benchmarks/metrics.py --packs FOLDER --output benchmarks/results/metrics.json

FOLDER holds data sets in BEIR's layout, and a README.md whose table has the column `BM25 nDCG@10`. A made
data set is measured as well; `--quick` measures that alone, and the folder's smallest two.

For each data set BM25 (k1 0.9, b 0.4, Porter stems, not tuned) ranks the test queries, and four things are
measured: the hits as they are; with scores rounded to whole numbers, so that most tie; with judgements and
queries taken out, every third each; with grades from 0 to 3 drawn for the judged documents. `agreement.…` is
the largest difference of any metric of any query to pytrec_eval (trec_eval's code) or to the formulas here.
`difference_most` is the largest of all, `bm25_off_most` how far BM25's nDCG@10 is from the README's at most,
`scifact_outside` how far that of scifact is outside what is published for it, 0.665 to 0.679.
"""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import numpy as np
from _checks import measured, stated
from _result import arguments, write

from searchr3.dataset import Document, Query, RetrievalDataset, load_dataset
from searchr3.errors import SearchR3Error

FEW = 2


def made(documents: int = 2000, queries: int = 300) -> RetrievalDataset:
    """Documents of made words, common and rare; a query holds words of its first relevant document."""
    draw = np.random.default_rng(0)
    words = draw.zipf(1.3, (documents, 30)) % 5000
    texts = [" ".join(f"w{word}" for word in row) for row in words]
    corpus = {f"d{number}": Document("", text) for number, text in enumerate(texts)}
    asked, judged = {}, {}
    for number in range(queries):
        asked[f"q{number}"] = Query(" ".join(draw.choice(texts[number].split(), 3)))
        others = draw.choice(documents, 3, replace=False)
        judged[f"q{number}"] = {f"d{number}": 1} | {f"d{other}": 1 for other in others}
    return RetrievalDataset("made", corpus, asked, {"test": judged})


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--packs", type=Path, help="folder of data sets in BEIR's layout")
    options = parser.parse_args()
    folders = sorted(options.packs.glob("*/")) if options.packs else []
    if options.quick:
        folders = sorted(folders, key=lambda one: (one / "corpus.jsonl.gz").stat().st_size)[:FEW]
    known = stated(options.packs / "README.md") if options.packs else {}
    try:
        packs = ((folder.name, load_dataset(folder)) for folder in folders)
        figures = measured(chain([("made", made())], packs), known)
    except SearchR3Error as error:
        raise SystemExit(f"error: {error}") from None
    write(options.output, "metrics", {**figures, "packs": len(folders)})


if __name__ == "__main__":
    main()
