"""`searchr3 evaluate` and `compare`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from searchr3.cli.options import (
    Backend,
    BatchSize,
    CacheFolder,
    Device,
    EmbedUrl,
    Json,
    NoCache,
    PromptsFile,
    SplitBy,
    ThoughtTokens,
    Url,
    check_backend,
    names,
    numbers,
    refuse_both,
)
from searchr3.cli.terminal import show
from searchr3.errors import SearchR3Error
from searchr3.files import check_writable, json_text

if TYPE_CHECKING:
    from searchr3.evaluation.cache import Cache
    from searchr3.evaluation.several import Plan
    from searchr3.progress import Screen


def evaluate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A searchr3 model: a folder or a Hub id.")],
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="A BEIR folder, a .jsonl file of triples, a Hub data set, `mteb:TASK`, or `python`. May be "
            "given several times."
        ),
    ] = None,
    suite: Annotated[
        Literal["paper", "bright", "followir", "beir"] | None,
        typer.Option(help="A named set of tasks of MTEB in the place of --data."),
    ] = None,
    split: Annotated[str, typer.Option(help="Whose queries to rank the whole corpus for.")] = "test",
    split_by: SplitBy = "hash",
    reasoning: Annotated[
        Literal["off", "on", "auto", "both", "all"],
        typer.Option(
            help="off: embed queries directly; on: after thinking; both; auto: off, and a run that thinks "
            "where the direct ranking is unsure (see `searchr3 adapt`); all: the three."
        ),
    ] = "both",
    baseline: Annotated[
        str,
        typer.Option(
            help="bm25; models of sentence-transformers or searchr3; URL#MODEL of a server of embeddings; "
            "rewrite: and such a model, which gets the query with its reasoning. Commas between them."
        ),
    ] = "bm25",
    output: Annotated[
        Path | None,
        typer.Option(
            help="File for the results; the values of each query go beside it. For several data a folder."
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace results that are there.")] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="With several data sets: keep the results that are there.")
    ] = False,
    instructions: Annotated[
        bool, typer.Option(help="Tell the model the task's instruction, where the data has one.")
    ] = True,
    key_variable: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Environment variable with the key of a server in --baseline or --url.  "
            "[default: OPENAI_API_KEY, by https or to this machine]",
        ),
    ] = None,
    prompts: PromptsFile = None,
    max_new_tokens: ThoughtTokens = 128,
    batch_size: BatchSize = 32,
    device: Device = None,
    cache: CacheFolder = None,
    no_cache: NoCache = False,
    as_json: Json = False,
    backend: Backend = "local",
    url: Url = None,
    embed_url: EmbedUrl = None,
    controls: Annotated[
        str,
        typer.Option(
            help="all, or some of other_trace, filler, repeated, bm25+trace: is it what the thoughts say?"
        ),
    ] = "",
    budget: Annotated[
        str, typer.Option(help="nDCG@10 at most so many tokens a thought, such as 0,4,8,16,32,64,128.")
    ] = "",
    samples: Annotated[
        str, typer.Option(help="nDCG@10 of the mean of so many sampled thoughts, such as 1,2,4,8.")
    ] = "",
) -> None:
    """Measure a model against baselines.

    Ranks the whole corpus for every query of a split, with 95 % intervals and paired differences.

    Several data sets, or a suite, get a file each in a folder, and suite.json for what they say together.
    """
    budgets, counts = numbers(budget, "--budget", 0), numbers(samples, "--samples", 1)
    if bool(data) == bool(suite):
        raise SearchR3Error("give either --data, once or several times, or --suite")
    several = suite is not None or len(data or ()) > 1
    if several and output is None:
        raise SearchR3Error("several data sets need --output: the folder for their results")
    if resume and (overwrite or not several):
        raise SearchR3Error("--resume is for several data sets, and not together with --overwrite")
    if output:
        _check_place(output, several, overwrite)
    check_backend(backend, url, embed_url)
    refuse_both(cache, no_cache)
    import functools

    from searchr3 import SearchR3
    from searchr3.adaptive import known_rule
    from searchr3.evaluation import (
        CONTROLS,
        check_baselines,
        check_controls,
        curve_tables,
        differences_table,
        results_table,
    )
    from searchr3.evaluation.results import REASONING
    from searchr3.evaluation.several import Plan
    from searchr3.evaluation.suites import SUITES
    from searchr3.progress import Screen, hush_transformers
    from searchr3.vllm_backend import VLLMModel

    hush_transformers()
    # what is not there is told before the model is loaded
    wanted = CONTROLS if controls == "all" else names(controls)
    check_controls(wanted, reasoning)
    baselines = names(baseline)
    check_baselines(baselines, reasoning, key_variable)
    kept = opened_cache(cache, no_cache)

    @functools.cache
    def thinker() -> Any:
        found: Any = (
            VLLMModel(model, url, embed_url, key_variable, prompts)
            if url
            else SearchR3(model, batch_size=batch_size, device=device, prompts=prompts)
        )
        if "auto" in REASONING[reasoning]:
            known_rule(found)
        return kept.over(found) if kept else found  # looked at once, however many data sets there are

    sources = list(SUITES[suite]) if suite else data or []
    options: dict[str, Any] = {
        "reasoning": reasoning,
        "baselines": baselines,
        "key_variable": key_variable,
        "max_new_tokens": max_new_tokens,
        "controls": wanted,
        "budgets": budgets,
        "samples": counts,
        "cache": kept,
    }
    plan = Plan(model, split, split_by, instructions, options, prompts)
    with kept or nullcontext(), _held(output, several, overwrite):
        if several and output:
            _several(thinker, sources, output, plan, suite, resume, overwrite, as_json)
            return
        with Screen() as screen:
            plan = replace(plan, options={**options, "progress": screen.work})
            dataset = plan.load(sources[0])
            ready = thinker()
            screen.phase("evaluation", f"{model} on {sources[0]}")
            results = plan.measure(ready, sources[0], dataset)
            tell_size(screen, kept)
    if output:
        results.save(output)
    if as_json:
        print(json_text(results.summary))
    else:
        summary = results.summary
        differences = differences_table(summary["differences"], ["ndcg@10", "p-mrr"])
        show(results_table(summary), differences, *curve_tables(summary))


def _several(
    model: Callable[[], Any],
    sources: list[str],
    output: Path,
    plan: Plan,
    suite: str | None,
    resume: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Measure on each, show them together; an error at the end names what could not be had."""
    from searchr3.evaluation.comparison import suite_tables
    from searchr3.evaluation.results import queries_path
    from searchr3.evaluation.several import evaluate_several, files_of, refuse_taken
    from searchr3.progress import Screen

    for file in files_of(sources, output).values():
        check_writable(queries_path(file))
    if not (resume or overwrite):
        refuse_taken(sources, output)
    with Screen() as screen:
        plan = replace(plan, options={**plan.options, "progress": screen.work})
        summary = evaluate_several(
            model,
            sources,
            output,
            plan,
            suite or "several data sets",
            resume,
            tell=lambda source: screen.phase("evaluation", f"{plan.model} on {source}"),
        )
        tell_size(screen, plan.options["cache"])
    if as_json:
        print(json_text(summary))
    elif summary["tasks"]:
        show(*suite_tables(summary, output))
    if missing := summary["missing"]:
        why = "; ".join(f"{one['task']} ({one['why']})" for one in missing)
        again = "the same command with --resume measures what is missing"
        raise SearchR3Error(f"{len(missing)} of {len(set(sources))} data sets are missing: {why}; {again}")


def opened_cache(folder: Path | None, none: bool) -> Cache | None:
    from searchr3.evaluation.cache import Cache, default_folder

    return None if none else Cache(folder or default_folder())


def tell_size(screen: Screen, cache: Cache | None) -> None:
    if cache and cache.size:
        screen.console.print(f"           cache: {cache}", style="dim", highlight=False, markup=False)


def _check_place(output: Path, several: bool, overwrite: bool) -> None:
    """Before the work: results can be written to `output`, and replace others only when asked to.

    Of several data sets the files have names of their own, which are looked at later.
    """
    from searchr3.evaluation.results import queries_path

    if several:
        check_writable(output / "suite.json")
        return
    if output.is_dir():
        raise SearchR3Error(f"{output}: is a folder; name a file in it, such as {output / 'results.json'}")
    check_writable(output)
    check_writable(queries_path(output))
    taken = next((path for path in (output, queries_path(output)) if path.exists()), None)
    if taken and not overwrite:
        raise SearchR3Error(f"{taken}: exists already; choose another file or replace it with --overwrite")


@contextmanager
def _held(output: Path | None, several: bool, overwrite: bool) -> Iterator[None]:
    """Hold the place of the results, so that no other evaluation writes there while this one measures."""
    from searchr3.locks import alone, locked

    if output is None:
        yield
        return
    refusal = f"{output}: another evaluation writes there; wait for its end, or choose another place"
    if several:
        with alone(output, refusal):
            yield
        return
    made = not output.parent.exists()
    try:
        with locked(output.with_name(f".{output.name}.lock"), refusal):
            _check_place(output, several, overwrite)  # another may just have ended
            yield
    finally:
        with suppress(OSError):
            if made:
                output.parent.rmdir()  # where it stayed empty


def compare(
    a: Annotated[Path, typer.Argument(metavar="A.json", help="Results that evaluate wrote.")],
    b: Annotated[Path, typer.Argument(metavar="B.json", help="Others, of the same data and split.")],
    as_json: Json = False,
) -> None:
    """Compare two evaluations, query by query.

    Prints for each run and metric the mean of A − B, its 95 % interval and p, also corrected (Holm) for
    the number of rows.
    """
    from searchr3.evaluation import compare as between
    from searchr3.evaluation import differences_table

    rows = between(a, b)
    if as_json:
        print(json_text(rows))
    else:
        show(differences_table(rows))
