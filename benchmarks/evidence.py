"""Does thinking help, on data of several kinds? Tiny models by both stages against what else one would use.

    python benchmarks/evidence.py --packs DIR --output benchmarks/results/evidence.json
    python benchmarks/evidence.py --packs DIR --parts tldr mixed --output …       these parts alone
    python benchmarks/evidence.py --packs DIR --from BASE --output …              a base that goes on from it

DIR holds a BEIR folder for each of tldr, nl2bash, medquad, and, to be tested on alone, scifact, cosqa and
mbxp_code. Without it only the part on installed Python code is made. What is done is kept in the work folder,
what a model found beside the model; what was interrupted goes on where it was. A part that was made by
another recipe, or from another base, is refused.

base      one base for all: causal pretraining on the installed Python code, the documents of the four data
          sets and, as conversations, training queries with their answers, as a large model has read many.
          "Few labels" is therefore about the contrastive loss alone. Nothing of the three other packs. 3,000
          steps from nothing; with --from 600 from the weights of a base that was made before, such as one
          of Python code, with as many rows of each data set's documents, for it has read the code:
          whatever that one has read was read, and its `base.json` is part of this one's. No
          pair of dev and test queries, be they of these three packs (--hold-out); make that one so, too
python, tldr, nl2bash, medquad   both stages and control (a), each on its own data, tested there
mixed     the same on the four data sets as one, of each a part, tested on all seven packs as they are:
          on three of them zero-shot
checks    of all packs that DIR holds: metrics against trec_eval's, with ties and missing queries; BM25 at the
          field's k1 0.9, b 0.4 against the figures of DIR/README.md and the published one of SciFact (see
          metrics.py, whose figures these are)

Arms, nDCG@10 on the test split with the whole corpus searched; one seed:

direct1, reasoned1, direct2, reasoned2   both stages, without and with a thought
auto        stage 2 thinking where its direct ranking is unsure, by a rule chosen on the dev queries of the
            part's own data
control_a   stage 1 continued on the queries of stage 2 by InfoNCE alone, for as many gradient tokens, at the
            learning rate of stage 2 or of stage 1, whichever is better on dev
st_mnrl     the base trained by sentence-transformers (MultipleNegativesRankingLoss, its own trainer, batches
            without duplicates, last token pooled): stage 1's pairs, steps, batch, temperature, conversations
            and schedule. Its learning rate is the best of four on the first part's dev queries, ours the best
            of three on the Python code's; both are then used for all parts. Of both the last step counts
bm25        tuned on dev
rival       all-MiniLM-L6-v2 as it comes, if it is installed

A pack counts once: the first four with the model made for it, the three others with the mixed one. What the
mixed model does on the first four is told beside them. `packs_reasoned_significantly_better` is the number
of packs on which reasoned2 is above direct1, direct2 and control_a; the largest p of the three counts,
corrected over the packs.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from _cells import Case, figures
from _corpus import code_corpus
from _measured import choose_rule, measure
from _minilm import minilm
from _packs import measured_queries, merged, reduced
from _result import arguments, write

from searchr3.adaptive import RULE
from searchr3.dataset import RetrievalDataset, load_dataset
from searchr3.errors import SearchR3Error
from searchr3.evaluation.saved import read_json
from searchr3.files import write_json
from searchr3.progress import hush_transformers
from searchr3.runs.evidence import Plan, gather
from searchr3.runs.findings import chosen_direct_only
from searchr3.training.base_facts import read_facts
from searchr3.training.recipe_file import load_recipe

RECIPE = Path(__file__).with_suffix(".yaml")
ELSEWHERE = "remove it, or choose another folder with --work"
OWN = ("python", "tldr", "nl2bash", "medquad")
FOREIGN = ("scifact", "cosqa", "mbxp_code")
PARTS = (*OWN, "mixed", "checks")
LENGTHS = {"python": 128, "tldr": 96, "nl2bash": 96, "medquad": 192, "mixed": 160}
RATES = (0.25, 0.5, 1.0, 2.0)  # times the recipe's

FULL = {
    "documents": 16_000,  # of the Python code
    "base": ("--steps=3000", "--size=5m"),
    "continued": ("--steps=600",),  # the base, where it goes on from another one
    "share": 0.4,  # of the base's rows, conversations
    "of_each": 8_000,  # documents, in the mixed data set
    "stage1_of_each": 500,
    "recipe": (),
}
QUICK = {
    "documents": 600,
    "base": ("--steps=2", "--tokens=1024", "--width=64", "--layers=1", "--heads=2", "--vocabulary=2048"),
    "continued": ("--steps=2", "--tokens=1024"),
    "share": 0.4,
    "of_each": 200,
    "stage1_of_each": 50,
    "recipe": (
        *("data.stage1_queries=100", "data.dev_queries=20", "data.dev_documents=100", "model.max_length=64"),
        *("stage1.steps=2", "stage1.evaluate_every=2", "stage1.batch_size=8", "stage2.steps=2"),
        *("stage2.evaluate_every=2", "stage2.queries=4", "stage2.rollouts=4", "stage2.contrastive_pairs=8"),
    ),
}


def data_of(name: str, options: Namespace) -> RetrievalDataset:
    """A test set, whole; in the short form a small part of it."""
    if name == "python":
        return code_corpus(options.work / "data" / name, options.quick, options.size["documents"])
    dataset = load_dataset(options.packs / name)
    if not options.quick:
        return dataset
    return reduced(dataset, {"stage1": 100, "stage2": 30, "dev": 20, "test": 20}, 200)


def folder_of(name: str, options: Namespace) -> Path:
    """A training set as a BEIR folder."""
    place: Path = options.work / "data" / name
    if name == "mixed" and not place.is_dir():
        most = options.size["of_each"]
        few = {
            "stage1": options.size["stage1_of_each"],
            "stage2": most // 8,
            "dev": most // 80,
            "test": most // 80,
        }
        whole = {one: data_of(one, options) for one in tests_of(name, options)}
        parts = {one: reduced(whole[one], few, most) for one in own(options)}
        merged(name, parts, measured_queries(whole.values())).save(place)
    elif not place.is_dir():
        if name != "python" and not options.quick:
            return Path(options.packs / name)
        dataset = data_of(name, options)
        if not place.is_dir():
            dataset.save(place)
    return place


def own(options: Namespace) -> tuple[str, ...]:
    """The data sets that are trained on and are there."""
    return OWN if options.packs else OWN[:1]


def make_base(options: Namespace) -> Path:
    """The base of all parts."""
    from searchr3.training.base import main as make

    place: Path = options.work / "base"
    start = options.start
    if known := read_facts(place):
        if known.get("from") != (read_facts(start) if start else None):
            raise SearchR3Error(f"{place}: goes on from another base than is named with --from; {ELSEWHERE}")
    else:
        data = [
            f"--data={folder_of(name, options)}" for name in own(options) if name != "python" or options.quick
        ]
        python = ["--no-python"] if options.quick else ["--python"]  # to read all code takes minutes
        share = options.size["share"] / len(own(options))
        rest = (1 - options.size["share"]) / len(own(options)) if start else None
        training = [f"--from={start}", *options.size["continued"]] if start else options.size["base"]
        shares = [f"--share={name}-pairs={share}" for name in own(options)]
        shares += [f"--share={name}={rest}" for name in own(options) if rest]
        make(
            [
                str(place),
                *python,
                "--pairs",
                *data,
                *(f"--hold-out={options.packs / name}" for name in FOREIGN if options.packs),
                *shares,
                "--dev-share=0.01",
                "--resume",
                *training,
            ]
        )
    return place


def overrides(part: str, options: Namespace) -> list[str]:
    """What the recipe of a part changes in `evidence.yaml`."""
    places = (f"data.source={folder_of(part, options)}", f"model.base={make_base(options)}")
    labels = (
        [f"data.stage1_queries={options.size['stage1_of_each'] * len(own(options))}"]
        if part == "mixed"
        else []
    )
    return [
        *places,
        f"model.max_length={LENGTHS[part]}",
        *options.size["recipe"],
        *labels,
        *options.overrides,
    ]


def train(part: str, options: Namespace) -> Path:
    """Both stages and control (a), measured on the part's own test split; the folder of the evidence."""
    place: Path = options.work / part
    keys, known = overrides(part, options), place / "evidence.json"
    if known.is_file() and read_json(known, ELSEWHERE).get("complete"):
        if not load_recipe(RECIPE, keys).trains_as(load_recipe(place / "recipe.yaml")):
            raise SearchR3Error(f"{place}: was made by another recipe; {ELSEWHERE}")
    else:
        gather(
            RECIPE, keys, place, Plan(seeds=1, stage2_arms=False), resume=(place / "recipe.yaml").is_file()
        )
    own = read_facts(place / "base")  # of an older version: none
    if own and own != read_facts(options.work / "base"):
        raise SearchR3Error(f"{place}: was made from another base; {ELSEWHERE}")
    return place


def train_rival(part: str, options: Namespace) -> Path:
    """The model by sentence-transformers, on the labels that stage 1 had."""
    from _mnrl import best_rate, train_mnrl

    from searchr3.runs.preparation import limited

    folder = train(part, options)
    place, rates = folder / "mnrl", options.work / "base" / "rates.json"  # gone when the base is
    if not place.is_dir():
        recipe = load_recipe(folder / "recipe.yaml")
        dataset, base = limited(load_dataset(folder / "data"), recipe), folder / "base"
        if not rates.is_file():
            print(f"{part}: learning rates of sentence-transformers", flush=True)
            asked = [factor * recipe.stage1.learning_rate for factor in RATES]
            write_json(rates, best_rate(base, dataset, recipe, asked))
        rate = read_json(rates, ELSEWHERE)["best"]
        print(f"{part}: sentence-transformers at {rate:g}", flush=True)
        train_mnrl(base, dataset, recipe, rate).save_pretrained(place)
    return place


def measured(part: str, test: str, options: Namespace) -> dict[str, Path]:
    """Model of a part → what `evaluate` found on a test set; what is there is kept, beside the model."""
    seed = train(part, options) / "seed-0"
    direct_only = chosen_direct_only(seed)
    models = {name: seed / name for name in ("stage1", "stage2")}
    models |= {"control_a": seed / direct_only / "stage1", "st_mnrl": train_rival(part, options)}
    found = {}
    recipe = load_recipe(seed.parent / "recipe.yaml")
    for name, folder in models.items():
        known = seed / "results" / f"{direct_only if name == 'control_a' else name}.json"
        place = found[name] = seed / "results" / f"{name}-on-{test}.json"
        if part == test and name != "stage2" and known.is_file():
            found[name] = known  # measured when it was trained
        elif not place.is_file():
            if name == "stage2" and not (folder / RULE).is_file():
                print(f"{part}: when to think", flush=True)
                choose_rule(folder, load_dataset(seed.parent / "data"), recipe, options.work)
            print(f"{part}: {name} on {test}", flush=True)
            measure(folder, name, data_of(test, options), recipe, options.work).save(place)
    return found


def others(test: str, options: Namespace) -> dict[str, Path]:
    """BM25, and the rival where it is installed, on a test set."""
    from searchr3.evaluation.runner import evaluate_baseline

    found = {}
    for name, asked in (("bm25", "bm25"), ("rival", minilm())):
        place = found[name] = options.work / "results" / test / f"{name}.json"
        if asked and not place.is_file():
            print(f"{name} on {test}", flush=True)
            evaluate_baseline(asked, data_of(test, options)).save(place)
    return {name: place for name, place in found.items() if place.is_file()}


def case_of(part: str, test: str, options: Namespace) -> Case:
    """All arms of a part on a test set."""
    from searchr3.evaluation.saved import read_queries, read_results

    values: dict[str, Mapping[str, float]] = {}
    tokens, emission = dict[str, float](), dict[str, Any]()
    for name, place in others(test, options).items():
        (run,) = read_queries(place).values()
        values[name] = run["ndcg@10"]
    for model, place in measured(part, test, options).items():
        queries = read_queries(place)
        for run in read_results(place)["runs"]:
            if run["name"] not in ("direct", "reasoned", "auto"):
                continue  # something else in the thought's place
            arm = f"{run['name']}{model[-1]}" if model.startswith("stage") else model
            arm = "auto" if arm == "auto2" else arm
            values[arm] = queries[run["name"]]["ndcg@10"]
            if run["name"] != "direct":  # a rule may be never to think: 0 tokens
                tokens[arm], emission[arm] = run["thinking_tokens_mean"], run["emission_rate"]
    return Case(values, tokens, emission, counts=part != "mixed" or test in FOREIGN)


def tests_of(part: str, options: Namespace) -> Sequence[str]:
    """The test sets of a part."""
    return (*own(options), *(FOREIGN if options.packs else ())) if part == "mixed" else (part,)


def checks(options: Namespace) -> dict[str, float]:
    """Metrics against trec_eval, and BM25 as the field sets it, on the Python code and on every pack."""
    from _checks import measured, stated

    packs = sorted(place.name for place in options.packs.glob("*/")) if options.packs else []
    known = stated(options.packs / "README.md") if packs and not options.quick else None
    return measured(((name, data_of(name, options)) for name in (OWN[0], *packs)), known)


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--packs", type=Path, help="folder of the packs, a BEIR folder each")
    parser.add_argument("--work", type=Path, help="default runs/benchmark-evidence, with -quick if short")
    parser.add_argument(
        "--from", dest="start", type=Path, metavar="BASE", help="base that the base of all parts goes on from"
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, help="only these")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="keys of the recipe")
    options = parser.parse_args()
    options.size = QUICK if options.quick else FULL
    options.work = options.work or Path("runs") / ("benchmark-evidence" + "-quick" * options.quick)
    parts = options.parts or (PARTS if options.packs else ["python", "checks"])
    hush_transformers()
    try:
        missing = [
            name for name in (*OWN[1:], *FOREIGN) if not (options.packs and (options.packs / name).is_dir())
        ]
        if options.packs and missing:
            raise SearchR3Error(
                f"{options.packs}: no pack {', '.join(missing)}; give their folder with --packs"
            )
        if missing and not {*parts} <= {"python", "checks"}:
            raise SearchR3Error("--packs: the other parts want the folder of the packs")
        if missing:
            print("without --packs only the part on installed Python code is made", flush=True)
        load_recipe(RECIPE, [*options.size["recipe"], *options.overrides])  # what is wrong is told now
        if options.start and not read_facts(options.start):
            raise SearchR3Error(f"{options.start}: no base (there is no base.json); give another with --from")
        cases = {
            part if part == test else f"{part}-{test}": case_of(part, test, options)
            for part in parts
            if part != "checks"
            for test in tests_of(part, options)
        }
        found = figures(cases) if cases else {}
        if "checks" in parts:
            found |= checks(options)
    except SearchR3Error as error:
        raise SystemExit(f"error: {error}") from None
    write(options.output, "evidence", found)


if __name__ == "__main__":
    main()
