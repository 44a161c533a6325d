"""`searchr3 index` and `searchr3 search`. Rooms are imported inside them, as in `commands.py`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from searchr3.cli.options import Device, Json, PromptsFile, names
from searchr3.errors import SearchR3Error
from searchr3.files import json_text
from searchr3.words import printable

if TYPE_CHECKING:
    from searchr3.answers import SearchAnswer, Thinks
    from searchr3.search.summary import Summary

_STORE = typer.Option("--store", metavar="DIR|URL", help="Folder, or http://host:6333/collection of Qdrant.")


def index(
    store: Annotated[str, _STORE],
    paths: Annotated[
        list[Path] | None, typer.Argument(metavar="PATH...", help="Files and folders.", show_default=False)
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="A searchr3 model, for a new store; later it is remembered.")
    ] = None,
    forget: Annotated[
        list[str] | None, typer.Option("--forget", metavar="PATH", help="Take this out of the store.")
    ] = None,
    chunk_size: Annotated[
        int | None, typer.Option(min=50, help="Most characters of a chunk.  [default: 1000, or as before]")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(min=1, help="Most tokens of prompt and chunk.  [default: as saved]")
    ] = None,
    prompts: PromptsFile = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Most chunks in one forward.")] = 32,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Index your own documents: text, Markdown, HTML, PDF, source code.

    Later runs encode only what has changed, and follow what was removed. An interrupted one goes on.
    """
    if not paths and not forget:
        raise typer.BadParameter("nothing to index; give files or folders, or --forget PATH")
    for path in paths or []:
        if not path.exists():
            raise SearchR3Error(f"{path}: no such file or folder; check it, or take it out with --forget")
    from searchr3.progress import Screen
    from searchr3.search.stores import needed, open_store

    with needed("semantic_text_splitter"):
        from searchr3.search import index as room
        from searchr3.search.work import opened_for_writing

    with Screen() as screen:
        if not paths:
            opened = open_store(store)
            summary = room.forget(opened, forget or [])
        else:
            screen.phase("index", " ".join(map(str, paths)))
            opened, facts, encoder = opened_for_writing(
                store, model, prompts, max_length, chunk_size, batch_size=batch_size, device=device
            )
            if forget:
                room.forget(opened, forget)
            summary = room.index(opened, facts, paths, encoder, screen.work)
    opened.close()
    _report(summary, store, as_json)
    if paths and not (summary.files or summary.removed):
        raise SearchR3Error(f"{store}: nothing is in it yet: no file of {_listed(paths)} can be read")


def search(
    query: Annotated[str, typer.Argument(help="What you look for, in words.")],
    store: Annotated[str | None, _STORE] = None,
    run: Annotated[Path | None, typer.Option(help="Folder of a run; its own corpus is searched.")] = None,
    k: Annotated[int, typer.Option("-k", "--k", min=1, help="How many hits.")] = 10,
    reasoning: Annotated[
        bool, typer.Option("--reasoning/--no-reasoning", help="Think before embedding.")
    ] = True,
    auto: Annotated[
        bool, typer.Option("--auto", help="Think only where the direct ranking is unsure: `searchr3 adapt`.")
    ] = False,
    hybrid: Annotated[bool, typer.Option("--hybrid", help="Look for the query's words as well.")] = False,
    path: Annotated[
        list[str] | None,
        typer.Option("--path", metavar="GLOB", help="Only these files or folders; may be given again."),
    ] = None,
    kinds: Annotated[
        str | None, typer.Option("--type", help="Only files of these types, such as md,py.")
    ] = None,
    instruction: Annotated[
        str | None, typer.Option(help="Task instruction of the query; a run has its own.")
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Most tokens of a thought.  [default: the run's, else 128]")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Where the store's model is now, if it was moved.")
    ] = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Search your own documents (--store), or a run's corpus (--run).

    Shows what the model thought, and the best places.
    """
    if not query.strip():
        raise SearchR3Error("the query is empty; write what you look for")
    if auto and not reasoning:
        raise SearchR3Error("--auto may think and --no-reasoning may not; give one of them")
    if (store is None) == (run is None):
        raise typer.BadParameter("say what to search: --store DIR of your documents, or --run RUN")
    from searchr3.progress import hush_transformers

    thinks: Thinks = "auto" if auto else reasoning
    if run is not None:
        if hybrid or path or kinds or instruction or model:
            raise SearchR3Error("--hybrid, --path, --type, --instruction and --model are for --store")
        from searchr3.runs import pipeline

        hush_transformers()
        answer = pipeline.search(query, run, k, thinks, max_new_tokens, device)
    else:
        from searchr3.search.search import StoreSearch, check_query, known_kinds
        from searchr3.search.stores import open_store

        check_query(query)
        chosen = names(kinds or "")
        known_kinds(chosen)
        opened = open_store(str(store))
        facts = opened.facts()
        assert facts is not None  # `open_store` makes sure
        from searchr3.search.encoder import load_for
        from searchr3.thinking import check_room

        hush_transformers()
        loaded = load_for(facts, str(store), model, device=device)
        if max_new_tokens and thinks:
            check_room(loaded, query, max_new_tokens, instruction)
        asked = StoreSearch(opened, loaded, max_new_tokens or 128)
        answer = asked.ask(query, k, thinks, hybrid, path or [], chosen, instruction)
    if as_json:
        print(json_text(asdict(answer)))
    else:
        _show(answer, query, thinks)


def _show(answer: SearchAnswer, query: str, thinks: Thinks) -> None:
    if thinks == "auto" and not answer.thought:
        print("no thought: the direct ranking is sure enough\n")
    elif thinks:
        cut = "" if answer.emitted else ", cut off"
        print(f"thought ({answer.thinking_tokens} tokens{cut}): {printable(answer.reasoning)}\n")
    if not answer.hits:
        print("nothing found")
    words: Sequence[str] = ()
    if sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb":
        from searchr3.search.words import index_words

        words = index_words(f"{query} {answer.reasoning}")
    for hit in answer.hits:
        under = hit.metadata.get("heading")
        heading = f"  {printable(under)}" if under else ""
        print(f"{hit.rank:>3}  {hit.score:.3f}  {printable(hit.title or hit.document_id)}{heading}")
        print(f"            {_bright(printable(hit.snippet), words)}")


def _bright(text: str, words: Sequence[str]) -> str:
    """`text` with these words in bold."""
    if not words:
        return text
    from searchr3.search.snippet import marked

    parts, end = [], 0
    for start, stop in marked(text, words):
        parts += [text[end:start], f"\x1b[1;33m{text[start:stop]}\x1b[0m"]
        end = stop
    return "".join([*parts, text[end:]])


def _listed(paths: Sequence[Path]) -> str:
    return ", ".join(printable(str(path)) for path in paths[:3]) + (", …" if len(paths) > 3 else "")


def _report(summary: Summary, store: str, as_json: bool) -> None:
    if as_json:
        print(json_text({"store": store, **asdict(summary), "reasons": summary.reasons}))
        return
    print(f"{store}: {summary.files:,} files in {summary.chunks:,} chunks")
    parts = ("added", "changed", "removed", "unchanged")
    counts = ", ".join(f"{getattr(summary, part):,} {part}" for part in parts if getattr(summary, part))
    reused = f", {summary.reused:,} taken over from files with the same content" if summary.reused else ""
    print(f"files: {counts or 'none'}; chunks: {summary.encoded:,} encoded{reused}")
    for reason, count in summary.reasons.items():
        of = [name for name, why in summary.skipped.items() if why == reason]
        shown = ", ".join(printable(name) for name in of[:3]) + (", …" if len(of) > 3 else "")
        print(f"skipped: {count:,} {reason}: {shown}")
    for root in summary.missing:
        print(f"{root}: not there now; what was indexed of it stays, until --forget {root}")
