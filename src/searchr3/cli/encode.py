"""The command `searchr3 encode`. Rooms are imported inside it, as in `commands.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from searchr3.cli.options import BatchSize, PromptsFile, finite
from searchr3.errors import SearchR3Error


def encode(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A searchr3 model: a folder or a Hub id.")],
    source: Annotated[
        Path, typer.Argument(metavar="INPUT", help="A .jsonl or .jsonl.gz file, or a BEIR folder.")
    ],
    output: Annotated[Path, typer.Option(help="Folder for the vectors; if a part is there, it goes on.")],
    engine: Annotated[
        Literal["local", "ray"], typer.Option(help="This process, or workers of Ray Data.")
    ] = "local",
    queries: Annotated[bool, typer.Option("--queries", help="Encode direct queries, not documents.")] = False,
    instruction: Annotated[str | None, typer.Option(help="Task instruction of the queries.")] = None,
    format: Annotated[
        Literal["safetensors", "parquet"], typer.Option(help="Format of the shards.")
    ] = "safetensors",
    dtype: Annotated[
        Literal["float32", "float16"], typer.Option(help="Type of the stored vectors.")
    ] = "float32",
    dim: Annotated[int | None, typer.Option(min=1, help="Keep the first dimensions.  [default: all]")] = None,
    shard_size: Annotated[int, typer.Option(min=1, help="Most texts in a shard.")] = 10_000,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="With ray.  [default: one for each GPU, or for every 4 cores]"),
    ] = None,
    gpus_per_worker: Annotated[
        float | None, typer.Option(min=0, callback=finite, help="With ray.  [default: 1 if there are GPUs]")
    ] = None,
    batch_size: BatchSize = 32,
    precision: Annotated[
        Literal["auto", "float32", "bfloat16"], typer.Option(help="Of the weights; auto: as saved.")
    ] = "auto",
    max_length: Annotated[
        int | None, typer.Option(min=1, help="Most tokens of prompt and text.  [default: as saved]")
    ] = None,
    prompts: PromptsFile = None,
    device: Annotated[
        str | None, typer.Option(help="With local: such as cpu or cuda:1.  [default: GPU if any]")
    ] = None,
) -> None:
    """Encode a whole corpus to vectors on disk.

    Shards that are finished stay: after an interruption the same command goes on.
    """
    if engine == "local" and (workers is not None or gpus_per_worker is not None):
        raise SearchR3Error("--workers and --gpus-per-worker are for workers of Ray; add --engine ray")
    if engine == "ray" and device is not None:
        raise SearchR3Error("--device is for the local engine; with ray set --gpus-per-worker")
    from searchr3.encoding.job import encode_file
    from searchr3.encoding.ray_engine import RayEngine
    from searchr3.encoding.worker import run_local
    from searchr3.progress import Screen, hush_transformers

    hush_transformers()
    chosen = RayEngine(workers, gpus_per_worker) if engine == "ray" else run_local
    with Screen() as screen:
        screen.phase("encode", f"{source} by {model}")
        done = encode_file(
            model,
            source,
            output,
            engine=chosen,
            prompts=prompts,
            max_length=max_length,
            dim=dim,
            batch_size=batch_size,
            device=device,
            progress=screen.work,
            kind="queries" if queries else "documents",
            instruction=instruction,
            precision=precision,
            dtype=dtype,
            format=format,
            shard_size=shard_size,
        )
    settings, shards = done.manifest.settings, done.manifest.shards
    kept = f", {len(shards) - done.shards} were there" if done.shards < len(shards) else ""
    print(
        f"{output}: {done.manifest.rows} vectors of {settings.dimension} {settings.dtype} numbers; "
        f"shards: {done.shards} encoded{kept}"
    )
