"""The one form of a benchmark result.

python benchmarks/_result.py        renders benchmarks/RESULTS.md and the tables of pages, see _tables.py
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import python_version
from statistics import fmean, stdev
from typing import Any

from searchr3.errors import SearchR3Error
from searchr3.files import check_writable, write_json
from searchr3.machine import machine

HERE = Path(__file__).parent
LIBRARIES = (
    *("python", "torch", "transformers", "trl", "peft", "accelerate", "tokenizers", "datasets"),
    *("sentence-transformers", "numpy", "faiss-cpu", "bm25s", "ray"),
)
"""On which what is measured hangs."""


def arguments(description: str | None) -> argparse.ArgumentParser:
    """A parser with the two options that every benchmark has."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="a short form that ends within 5 minutes on 2 cores"
    )
    parser.add_argument("--output", type=_writable, required=True, help="JSON file for the result")
    return parser


def _writable(text: str) -> Path:
    """The path of a result, which is looked at before the work, not after it."""
    path = Path(text)
    try:
        check_writable(path)
    except SearchR3Error as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{path}: is a folder; name a file in it")
    return path


def write(
    output: Path, name: str, figures: Mapping[str, float | None], measured_on: Mapping[str, str] | None = None
) -> None:
    """Write `{"name", "commit", "command", "machine", "figures"}`.

    Args:
        measured_on: what a run ran on, as its recipe.yaml says; by default this machine.
    """
    on = measured_on or machine()
    place = ", ".join([on["processor"], f"{on['cores']} cores"] if "processor" in on else [on["platform"]])
    result = {
        "name": name,
        "commit": commit(),
        "command": " ".join(["python", *map(without_folders, sys.argv)]),
        "machine": f"{place}, Python {on['python']}",
        "figures": dict(figures),
    }
    write_json(output, result)
    print(f"{output}: {len(result['figures'])} figures")


def without_folders(argument: str) -> str:
    """An argument as others can read it: of an absolute path, which is one machine's own, the name alone.

    >>> without_folders("--from=/home/me/base"), without_folders("docs/a.png"), without_folders("a=1/2")
    ('--from=…/base', 'docs/a.png', 'a=1/2')
    """
    key, equals, value = argument.rpartition("=")
    return f"{key}{equals}…/{Path(value).name}" if Path(value).is_absolute() else argument


def commit() -> str:
    """The commit at hand, with "+changes" where the source differs from it."""
    found = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True, check=False
    )
    sources = ["git", "status", "--porcelain", "src", "benchmarks/*.py"]
    changed = subprocess.run(sources, cwd=HERE.parent, capture_output=True, text=True, check=False)
    return (found.stdout.strip() or "unknown") + ("+changes" if changed.stdout.strip() else "")


def interval(differences: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Mean of paired differences and Student's 95 % interval; no interval for a single pair."""
    from scipy.stats import t

    mean = fmean(differences)
    if len(differences) < 2:
        return mean, None, None
    half = float(t.ppf(0.975, len(differences) - 1)) * stdev(differences) / len(differences) ** 0.5
    return mean, mean - half, mean + half


def code() -> str:
    """A digest of what benchmarks run: the source, theirs and ours, committed or not, and the libraries.

    Comments and docstrings are left out. Parts measured by another are never mixed with new ones.
    """
    digest = hashlib.sha256("".join(f"{name} {versions(name)}\n" for name in LIBRARIES).encode())
    for path in sorted([*(HERE.parent / "src").rglob("*.py"), *HERE.glob("*.py")]):
        tree = ast.parse(path.read_bytes())
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
                del node.body[0]
        digest.update(f"{path.name} {ast.dump(tree)}\n".encode())
    return digest.hexdigest()[:16]


def parts_folder(work: Path, **about: Any) -> Path:
    """Where this code keeps the parts that it measures of something; never another's.

    Args:
        work: of the benchmark.
        about: what is measured, such as its sizes; told in the folder's about.json.
    """
    told = {"code": code(), **about}
    digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]
    folder = work / f"by-{digest}"
    write_json(folder / "about.json", told)
    return folder


def part(place: Path, measure: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The figures in a file of a `parts_folder`; measured where there are none yet."""
    if not place.is_file():
        print(f"part {place.stem}", flush=True)
        write_json(place, measure())
    found: dict[str, Any] = json.loads(place.read_text(encoding="utf-8"))
    return found


def versions(library: str) -> str:
    """Of Python or an installed library; empty where it is not installed."""
    if library == "python":
        return python_version()
    try:
        return version(library)
    except PackageNotFoundError:
        return ""


if __name__ == "__main__":
    from _tables import written

    written()
