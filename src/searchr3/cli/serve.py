"""The command `searchr3 serve`. Rooms are imported inside it, as in `commands.py`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from searchr3.cli.options import Backend, Device, EmbedUrl, PromptsFile, Url, check_backend
from searchr3.errors import SearchR3Error

if TYPE_CHECKING:
    from searchr3.conversation import Prompts
    from searchr3.serving.remote import Remote
    from searchr3.serving.searchers import RunSearcher, StoreSearcher
    from searchr3.serving.settings import Settings
    from searchr3.serving.worker import Worker

    Loaded = tuple[Worker | Remote, Any]  # the backend, and its model


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
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Most texts in one encoding forward.  [default: 32]")
    ] = None,
    max_length: Annotated[
        int | None, typer.Option(min=1, help="Most tokens of prompt and text.  [default: as saved]")
    ] = None,
    prompts: PromptsFile = None,
    device: Device = None,
    backend: Backend = "local",
    url: Url = None,
    embed_url: EmbedUrl = None,
    key_variable: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Environment variable with the key of --url.  "
            "[default: OPENAI_API_KEY, by https or to this machine]",
        ),
    ] = None,
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
    check_backend(backend, url, embed_url)
    if url and (device or batch_size):
        raise SearchR3Error("with --backend vllm its servers compute; leave out --device and --batch-size")
    try:
        from searchr3.serving import server
    except ModuleNotFoundError as error:
        raise SearchR3Error(f"{error.name} is not installed; pip install 'searchr3[serve]'") from None
    from searchr3.progress import hush_transformers
    from searchr3.serving.searchers import RunSearcher
    from searchr3.serving.service import Service

    hush_transformers()
    with server.listen(bounds) as listening:
        searcher: RunSearcher | StoreSearcher | None = None
        options = _Options(bounds, url, embed_url, key_variable, batch_size or 32, device)
        if store is not None:
            model, searcher, loaded = _stored(store, model, options)
        else:
            if run is not None:
                searcher = RunSearcher(run, model)
                model = str(searcher.model)
                if thinking_tokens is None:
                    bounds = bounds.model_copy(update={"thinking_tokens": searcher.max_new_tokens})
            assert model is not None
            loaded = options.load(model, max_length, prompts)
        service = Service(
            loaded[0],
            name or _name(model, run),
            bounds,
            searcher,
            loaded[1].adaptive,
            instruction if instruction is not None else searcher.instruction if searcher else None,
        )
        server.log_to_stderr(bool(context.parent and context.parent.params.get("debug")))
        place, port = listening.getsockname()[:2]
        shown = f"[{place}]" if ":" in place else place
        at = f"http://{shown}:{port}"
        print(f"{service.name} at {at}/v1, described at {at}/docs; its page is {at}/", flush=True)
        server.server(service).run(sockets=[listening])


class _Options(NamedTuple):
    """What decides who computes, and how much."""

    bounds: Settings
    url: str | None
    embed_url: str | None
    key_variable: str | None
    batch_size: int
    device: str | None

    def load(self, model: str, max_length: int | None, prompts: Prompts | Path | None) -> Loaded:
        """A model behind its backend, which is not begun yet."""
        rows, tokens, seconds = self.bounds.rows, self.bounds.text_tokens, self.bounds.seconds
        if self.url is None:
            from searchr3 import SearchR3
            from searchr3.serving.worker import Worker

            here = SearchR3(model, max_length, self.batch_size, self.device, prompts=prompts)
            return Worker(here, rows, tokens, seconds), here
        from searchr3.serving.remote import Remote
        from searchr3.vllm_backend import VLLMModel

        there = VLLMModel(model, self.url, self.embed_url, self.key_variable, prompts, max_length)
        return Remote(there, rows, tokens, seconds), there


def _stored(store: str, model: str | None, options: _Options) -> tuple[str, StoreSearcher, Loaded]:
    """A store's model, where it is, and what searches the store."""
    from searchr3.search.encoder import model_of
    from searchr3.search.search import StoreSearch
    from searchr3.search.stores import open_store
    from searchr3.serving.searchers import StoreSearcher

    opened = open_store(store)
    facts = opened.facts()
    assert facts is not None  # `open_store` makes sure
    place, prompts = model_of(facts, store, model)
    loaded = options.load(place, facts.max_length, prompts)
    return place, StoreSearcher(StoreSearch(opened, loaded[1])), loaded


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
