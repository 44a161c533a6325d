"""The command `searchr3 serve`. Rooms are imported inside it, as in `cli.py`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from searchr3.errors import SearchR3Error
from searchr3.options import Device, PromptsFile

if TYPE_CHECKING:
    from searchr3.model import SearchR3
    from searchr3.serving.searchers import StoreSearcher


def serve(
    context: typer.Context,
    model: Annotated[
        str | None,
        typer.Option(help="A searchr3 model: a folder or a Hub id.  [default: that of --store or --run]"),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(metavar="DIR|URL", help="A store made by `searchr3 index`; /search looks into it."),
    ] = None,
    run: Annotated[Path | None, typer.Option(help="Folder of a run; /search looks into its corpus.")] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen at; 0.0.0.0: the whole network.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")] = 8000,
    name: Annotated[
        str | None, typer.Option(help="What requests call the model.  [default: its folder's name or Hub id]")
    ] = None,
    instruction: Annotated[
        str | None, typer.Option(help="Task instruction of queries.  [default: the data set's]")
    ] = None,
    api_keys_file: Annotated[
        Path | None, typer.Option(help="API keys, one a line; SEARCHR3_API_KEYS has them too, with commas.")
    ] = None,
    allow_unauthenticated: Annotated[
        bool, typer.Option("--allow-unauthenticated", help="Listen beyond this machine without a key.")
    ] = False,
    max_body: Annotated[
        int | None, typer.Option(min=1, help="Most bytes of a request.  [default: 8,000,000]")
    ] = None,
    max_batch: Annotated[
        int | None, typer.Option(min=1, help="Most texts in a request.  [default: 2048]")
    ] = None,
    max_text_tokens: Annotated[
        int | None, typer.Option(min=1, help="Most tokens of a text or a chat so far.  [default: 8192]")
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Most tokens that a request may let the model say.  [default: 1024]"),
    ] = None,
    thinking_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Of a thought, unless a request says.  [default: the run's, else 128]"),
    ] = None,
    max_requests: Annotated[
        int | None,
        typer.Option(min=1, help="Most requests in work and waiting; the next gets 429.  [default: 128]"),
    ] = None,
    max_seconds: Annotated[
        float | None, typer.Option(help="Most seconds of a request.  [default: 60]")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="Most thoughts and chats in one step of the model.")] = 32,
    batch_size: Annotated[int, typer.Option(min=1, help="Most texts in one encoding forward.")] = 32,
    max_length: Annotated[
        int | None, typer.Option(min=1, help="Most tokens of prompt and text.  [default: as saved]")
    ] = None,
    prompts: PromptsFile = None,
    device: Device = None,
) -> None:
    """Serve a model over HTTP, as OpenAI's API.

    Embeddings with and without thinking, chat, search, metrics; /docs describes all.
    """
    from searchr3.serving.settings import read_keys, settings

    bounds = settings(
        host=host,
        port=port,
        keys=read_keys(os.environ, api_keys_file),
        allow_unauthenticated=allow_unauthenticated,
        body_bytes=max_body,
        batch=max_batch,
        text_tokens=max_text_tokens,
        new_tokens=max_new_tokens,
        requests=max_requests,
        seconds=max_seconds,
        rows=rows,
        thinking_tokens=thinking_tokens,
    )
    if model is None and run is None and store is None:
        raise SearchR3Error("which model? give --model MODEL, or --store or --run to search there")
    if store is not None and (run is not None or prompts is not None or max_length is not None):
        raise SearchR3Error("a store has its prompts and length; leave out --run, --prompts and --max-length")
    try:
        from searchr3.serving import server
    except ModuleNotFoundError as error:
        raise SearchR3Error(f"{error.name} is not installed; pip install 'searchr3[serve]'") from None
    from searchr3 import SearchR3
    from searchr3.progress import hush_transformers
    from searchr3.serving.searchers import RunSearcher
    from searchr3.serving.service import Service
    from searchr3.serving.worker import Worker

    hush_transformers()
    with server.listen(bounds) as listening:
        searcher: RunSearcher | StoreSearcher | None = None
        if store is not None:
            loaded, searcher = _stored(store, model, batch_size=batch_size, device=device)
            model = model or loaded.tokenizer.name_or_path
        else:
            if run is not None:
                searcher = RunSearcher(run, model)
                model = str(searcher.model)
                if thinking_tokens is None:
                    bounds = bounds.model_copy(update={"thinking_tokens": searcher.max_new_tokens})
            assert model is not None
            loaded = SearchR3(model, max_length, batch_size, device, prompts=prompts)
        service = Service(
            Worker(loaded, bounds.rows, bounds.text_tokens),
            name or _name(model, run),
            bounds,
            searcher,
            getattr(loaded, "adaptive", None),
            instruction if instruction is not None else searcher.instruction if searcher else None,
        )
        server.log_to_stderr(bool(context.parent and context.parent.params.get("debug")))
        place, port = listening.getsockname()[:2]
        shown = f"[{place}]" if ":" in place else place
        at = f"http://{shown}:{port}"
        print(f"{service.name} at {at}/v1, described at {at}/docs; its page is {at}/", flush=True)
        server.server(service).run(sockets=[listening])


def _stored(store: str, model: str | None, **options: Any) -> tuple[SearchR3, StoreSearcher]:
    """A store's model, loaded, and what searches it."""
    from searchr3.search.encoder import load_for
    from searchr3.search.search import StoreSearch
    from searchr3.search.store import open_store
    from searchr3.serving.searchers import StoreSearcher

    opened = open_store(store)
    facts = opened.facts()
    assert facts is not None  # `open_store` makes sure
    loaded = load_for(facts, store, model, **options)
    return loaded, StoreSearcher(StoreSearch(opened, loaded))


def _name(model: str, run: Path | None) -> str:
    """What a model is called: a run's by the run's folder, a folder by its own, one of the Hub by its id.

    >>> _name("runs/mine/stage2", None), _name("someone/model", None), _name("x/stage2", Path("runs/mine"))
    ('mine-stage2', 'someone/model', 'mine')
    """
    if run:
        return run.resolve().name
    folder = Path(model)
    if folder.name in ("stage1", "stage2"):
        return f"{folder.resolve().parent.name}-{folder.name}"
    return folder.resolve().name if folder.is_dir() else model
