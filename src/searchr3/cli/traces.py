"""The command `searchr3 traces`. Rooms are imported inside it, as in `commands.py`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from searchr3.cli.options import SplitBy, finite, names
from searchr3.errors import SearchR3Error
from searchr3.files import refuse_occupied
from searchr3.words import printable


def traces(
    data: Annotated[str, typer.Argument(metavar="DATA", help="As for `searchr3 evaluate --data`.")],
    output: Annotated[Path, typer.Option(help="Folder for the data set with its traces.")],
    split: Annotated[
        str, typer.Option(help="Splits whose queries get traces; commas between them.")
    ] = "stage1",
    split_by: SplitBy = "hash",
    words: Annotated[
        int | None, typer.Option(min=1, help="Most words in a trace.  [default: 8; with --endpoint 64]")
    ] = None,
    kind: Annotated[
        Literal["words", "beginning"],
        typer.Option(help="The most telling words of the document, or its beginning; not with --endpoint."),
    ] = "words",
    endpoint: Annotated[
        str | None, typer.Option(metavar="URL", help="Ask the OpenAI-compatible server there.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="The server's name of the model.")] = None,
    prompt: Annotated[
        Path | None,
        typer.Option(help="Text file to ask with; {query}, {words} and {document} are filled in."),
    ] = None,
    show_document: Annotated[
        bool, typer.Option("--show-document/--blind", help="Show the model a relevant document.")
    ] = False,
    max_tokens: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 128,
    temperature: Annotated[float, typer.Option(min=0, callback=finite, help="Of sampling.")] = 0.7,
    body: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any other key of a request; null leaves one out."),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first so many queries.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, max=1024, help="Requests at a time.")] = 8,
    timeout: Annotated[float, typer.Option(min=0.1, callback=finite, help="Seconds for an answer.")] = 120.0,
    max_failed: Annotated[
        float, typer.Option(min=0, max=1, callback=finite, help="Share of queries that may get no trace.")
    ] = 0.1,
    key_variable: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Environment variable with the key.  [default: OPENAI_API_KEY, by https or to this machine]",
        ),
    ] = None,
    price_in: Annotated[
        float | None, typer.Option(min=0, callback=finite, help="Price of a million prompt tokens.")
    ] = None,
    price_out: Annotated[
        float | None, typer.Option(min=0, callback=finite, help="Price of a million answer tokens.")
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Ask the server without a question first.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only the estimate.")] = False,
) -> None:
    """Write reasoning traces into a data set.

    A trace is made of the relevant document, or written by a model: of any server that speaks OpenAI's chat
    completions. Then an estimate comes first. Answers are kept beside the output as
    they come, so that the same command goes on after an interruption. Traces that are there stay.
    """
    refuse_occupied(output)
    if endpoint is None:
        if model or prompt or limit or show_document or key_variable or dry_run:
            raise SearchR3Error("these options are for a server to ask; name it with --endpoint")
        from searchr3 import load_dataset
        from searchr3.dataset.traces import make_traces

        dataset = make_traces(load_dataset(data, split_by=split_by), names(split), words or 8, kind)
        dataset.save(output)
        made = sum(query.reasoning is not None for query in dataset.queries.values())
        print(f"{output}: {made} of {len(dataset.queries)} queries have a trace")
        return
    if kind != "words":
        raise SearchR3Error(f"--kind {kind}: a server is asked with --prompt; leave one out")
    if model is None:
        raise SearchR3Error("--endpoint needs --model: the server's name of the model to ask")
    if (price_in is None) != (price_out is None):
        raise SearchR3Error("--price-in and --price-out go together; give both, 0 for what is free")
    from searchr3 import load_dataset
    from searchr3.dataset.asked_traces import ask_for_traces, closing_lines, estimate_for
    from searchr3.dataset.endpoint import ChatEndpoint, chat_url
    from searchr3.dataset.trace_plan import AskSettings, Prices, TracePlan, read_body
    from searchr3.dataset.trace_text import TracePrompt
    from searchr3.progress import Screen
    from searchr3.server_address import find_key

    url = chat_url(endpoint)
    key = find_key(url, key_variable)
    wording = TracePrompt.load(prompt, show_document)
    settings = AskSettings(model, wording, words or 64, max_tokens, temperature, read_body(body or []))
    prices = None if price_in is None or price_out is None else Prices(price_in, price_out)
    plan = TracePlan(load_dataset(data, split_by=split_by), names(split), settings, limit)
    estimate = estimate_for(plan, output)
    print(f"endpoint:       {url}, model {printable(model)}, key: {key.variable if key else 'none'}")
    print("\n".join(estimate.lines(prices)))
    if dry_run:
        return
    if estimate.requests and not yes:
        if not sys.stdin.isatty():
            raise SearchR3Error("nobody is there to agree; add --yes to ask without a question")
        typer.confirm("Ask?", abort=True)
    with Screen() as screen:
        screen.phase("traces", f"{data} by {model}")
        asked = ChatEndpoint(url, key, timeout, concurrency=concurrency)
        outcome = ask_for_traces(plan, asked, output, max_failed, screen.work)
    result, more = closing_lines(outcome, output, prices)
    for line in more:
        print(printable(line), file=sys.stderr)
    print(result)
