"""The command `searchr3 export`. Rooms are imported inside it, as in `commands.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from searchr3.cli.options import PromptsFile
from searchr3.errors import SearchR3Error
from searchr3.files import check_writable, refuse_occupied


def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A searchr3 model: a folder or a Hub id.")],
    output: Annotated[Path, typer.Option(help="Folder to write.")],
    format: Annotated[
        Literal["st", "onnx", "searchr3"],
        typer.Option(
            help="st: a folder of sentence-transformers for documents and direct queries; onnx: the same, "
            "and a graph for ONNX Runtime; searchr3: the model itself, which thinks."
        ),
    ] = "st",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a folder that is there.")] = False,
    results: Annotated[
        list[Path] | None,
        typer.Option(
            help="What was measured, for the card, as for `searchr3 report`. May be given several times."
        ),
    ] = None,
    instruction: Annotated[
        str | None,
        typer.Option(help="Task of the queries to be embedded; the folder is then not for documents."),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(metavar="ID", help="The base model, for the card.  [default: of the run's recipe]"),
    ] = None,
    prompts: PromptsFile = None,
    max_length: Annotated[
        int | None, typer.Option(min=1, help="Most tokens of prompt and text.  [default: as saved]")
    ] = None,
    push: Annotated[
        str | None, typer.Option(metavar="OWNER/NAME", help="Upload the folder to the Hub as well.")
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="With --push: only you see a repository that is made.")
    ] = False,
) -> None:
    """Write a folder that other libraries load.

    sentence-transformers, vLLM and ONNX Runtime give the same vectors from it as `encode_document`.
    """
    if private and not push:
        raise SearchR3Error("--private is for a repository on the Hub; add --push OWNER/NAME")
    if not overwrite:
        refuse_occupied(output)
    check_writable(output)
    here = Path(model).resolve()
    if here.exists() and output.exists() and any(map(output.samefile, (here, *here.parents))):
        raise SearchR3Error(f"{output}: is the model itself, or a folder around it; choose another folder")
    from searchr3.export.hub import check_push
    from searchr3.export.hub import push as upload

    if push:
        check_push(push)
    from searchr3 import SearchR3
    from searchr3.export import export as write
    from searchr3.export.card import APPENDS, base_of_run
    from searchr3.progress import hush_transformers

    hush_transformers()
    found = SearchR3(model, device="cpu", prompts=prompts, max_length=max_length)
    base = base or base_of_run(Path(model))
    write(found, output, format, overwrite, instruction, push, base, results or [])
    print(f"wrote {output}")
    if format != "searchr3" and found.model.config.model_type in APPENDS:
        print("not for text-embeddings-inference: it puts a token behind every text of this architecture")
    if push:
        print(f"pushed {upload(output, push, private)}")
