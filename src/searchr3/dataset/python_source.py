"""Python files cut into functions without docstrings, class and module level code, and docstrings."""

from __future__ import annotations

import ast
import gc
import itertools
import multiprocessing
import os
import re
import signal
import sys
import sysconfig
import tokenize
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple, TypeVar

# Tests repeat the code that they test; idlelib and lib2to3 are old programs inside the standard library.
_SKIPPED_FOLDERS = {
    "tests",
    "test",
    "testing",
    "_tests",
    "__pycache__",
    "site-packages",
    "dist-packages",
    "idlelib",
}
_SKIPPED_FOLDERS |= {"lib2to3", "turtledemo", "node_modules"}
_SKIPPED_FILE = re.compile(r"test_.*|.*_test|conftest|tests?")
_MAX_FILE_BYTES = 2_000_000  # larger ones are tables
_MAX_CHARACTERS = 20_000  # of one function; longer ones are generated
_PIECE = 2_000  # characters of class or module level code that stay together

_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_T = TypeVar("_T")


class Function(NamedTuple):
    """One top-level function or method."""

    package: str
    path: str
    name: str
    line: int
    source: str
    """Dedented, without decorators and docstrings, comments kept."""
    docstring: str | None
    stub: bool
    """The body is nothing but `pass`, `...` or `raise`."""
    body_words: int
    """Names, keywords and numbers in the body: how much there is to find it by."""


class Module(NamedTuple):
    """What one file holds. Nested functions are part of the function around them."""

    package: str
    functions: list[Function]
    rest: list[str]
    """Class and module level code, in pieces."""
    docstrings: list[str]
    """Docstrings of the module and its classes."""


def installed_roots() -> list[Path]:
    """Folders of the standard library and of the installed packages of the running interpreter."""
    paths = (sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))
    return [Path(path) for path in dict.fromkeys(paths) if path and Path(path).is_dir()]


def source_files(roots: Sequence[Path]) -> list[tuple[Path, str]]:
    """`(root, path relative to it)` of every Python file below the roots, sorted, without tests.

    Of files with the same relative path the first root's is taken, as an import would.
    """
    files: dict[str, Path] = {}
    for root in roots:
        for folder, folders, names in os.walk(root):
            folders[:] = sorted(set(folders) - _SKIPPED_FOLDERS)
            relative = Path(folder).relative_to(root)
            for name in sorted(names):
                if name.endswith(".py") and not _SKIPPED_FILE.fullmatch(name[:-3]):
                    files.setdefault((relative / name).as_posix(), root)
    return [(root, path) for path, root in files.items()]


def scan(work: Callable[[Module], _T], roots: Sequence[Path]) -> Iterator[_T]:
    """Yield `work(module)` for every file below the roots, in order; files that do not parse are left out.

    On Linux the files are shared among all cores, so `work` is a module-level function or a partial of one.
    """
    jobs = [(work, root, path) for root, path in source_files(roots)]
    cores = min(len(os.sched_getaffinity(0)), 8) if sys.platform == "linux" else 1
    if cores == 1 or len(jobs) < 200:
        yield from (result for job in jobs for result in _run(job))
        return
    with warnings.catch_warnings():
        # The children only parse text; they touch nothing that a thread of the parent may hold locked.
        warnings.simplefilter("ignore", DeprecationWarning)
        pool = multiprocessing.get_context("fork").Pool(cores, _start_worker)
    with pool:
        for results in pool.imap(_run, jobs, chunksize=32):
            yield from results


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to answer
    gc.disable()  # trees have no cycles; collecting while they grow costs a third of the time


def _run(job: tuple[Callable[[Module], _T], Path, str]) -> list[_T]:
    work, root, path = job
    module = read_module(root, path)
    return [] if module is None else [work(module)]


def read_module(root: Path, path: str) -> Module | None:
    """Parse `root/path`, or None when it cannot be read or is not valid Python of this version."""
    try:
        if (root / path).stat().st_size > _MAX_FILE_BYTES:
            return None
        with tokenize.open(root / path) as file:
            return parse_module(file.read(), path)
    except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def parse_module(source: str, path: str) -> Module:
    """Cut one file. `path` is relative to its root, with `/`; its first part names the package.

    Raises:
        SyntaxError, ValueError: not valid Python of this version.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's code
        tree = ast.parse(source)
    package = PurePosixPath(path).parts[0].removesuffix(".py")
    original = source.split("\n")
    lines = _without_docstrings(original, tree)
    functions: list[Function] = []
    docstrings = [text] if (text := _docstring(tree)) else []
    rest: list[str] = []

    def visit(body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, _DEFINITIONS):
                functions.append(_function(node, package, path, prefix, original, lines))
                _take(lines, node)
            elif isinstance(node, ast.ClassDef):
                if text := _docstring(node):
                    docstrings.append(text)
                visit(node.body, f"{prefix}{node.name}.")
                rest.extend(_pieces(_take(lines, node)))
            else:
                for block in _blocks(node):
                    visit(block, prefix)

    visit(tree.body, "")
    left = [line for line in lines if line is not None]
    rest.extend(_pieces(list(itertools.dropwhile(_is_header, left))))
    return Module(package, [one for one in functions if len(one.source) <= _MAX_CHARACTERS], rest, docstrings)


def _is_header(line: str) -> bool:
    """A licence says the same in every file."""
    return not line.strip() or line.startswith("#")


def _blocks(node: ast.stmt | ast.Module) -> Iterator[list[ast.stmt]]:
    """The statement lists directly inside a statement."""
    for field in ("body", "orelse", "finalbody"):
        block = getattr(node, field, None)
        if block:
            yield block
    for inner in (*getattr(node, "handlers", ()), *getattr(node, "cases", ())):
        yield inner.body


def _docstring(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Module) -> str | None:
    text = ast.get_docstring(node) or ""
    return text.encode("utf-8", "replace").decode() or None  # an escape may stand for half a character


def _docstring_node(node: ast.AST) -> ast.Expr | None:
    body = getattr(node, "body", None)
    if not body or not isinstance(node, (*_DEFINITIONS, ast.ClassDef, ast.Module)):
        return None
    first = body[0]
    is_text = (
        isinstance(first, ast.Expr)
        and isinstance(first.value, ast.Constant)
        and isinstance(first.value.value, str)
    )
    return first if is_text else None


def _without_docstrings(lines: list[str], tree: ast.Module) -> list[str | None]:
    """The lines with every docstring cut out, at any depth; a line of which nothing is left is None.

    Line numbers stay as they were. Where the docstring is the whole body, `pass` takes its place.
    """
    result: list[str | None] = list(lines)
    waiting: list[ast.stmt | ast.Module] = [tree]
    while waiting:
        node = waiting.pop()
        if text := _docstring_node(node):
            start, end = text.lineno - 1, _end(text) - 1
            before = _cut(lines[start], 0, text.col_offset)
            after = _cut(lines[end], text.end_col_offset or 0, None).strip().removeprefix(";").lstrip()
            if not isinstance(node, ast.Module) and len(getattr(node, "body", ())) == 1:
                after = f"pass  {after}".rstrip()
            result[start : end + 1] = [None] * (end + 1 - start)
            if before.strip() or after:
                result[start] = before + after
        for block in _blocks(node):
            waiting.extend(block)
    return result


def _end(node: ast.stmt) -> int:
    """The number of the last line; every parsed statement has one."""
    return node.end_lineno or node.lineno


def _cut(line: str, start: int, end: int | None) -> str:
    """A slice in bytes of UTF-8, which is how `ast` counts columns."""
    return line[start:end] if line.isascii() else line.encode()[start:end].decode()


def _take(lines: list[str | None], node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) -> list[str]:
    """The remaining lines of a definition, taken out of `lines`; a gap marks what was taken out before."""
    first, end = min([node.lineno, *(one.lineno for one in node.decorator_list)]) - 1, _end(node)
    taken = [line for line in lines[first:end] if line is not None]
    lines[first:end] = ["", *[None] * (end - first - 1)]
    return taken


def _function(
    node: ast.FunctionDef | ast.AsyncFunctionDef,
    package: str,
    path: str,
    prefix: str,
    original: list[str],
    lines: list[str | None],
) -> Function:
    body = node.body[1:] if _docstring_node(node) else node.body
    stub = all(isinstance(one, (ast.Pass, ast.Raise)) or _is_ellipsis(one) for one in body)
    words = 0
    if body:
        words = len(re.findall(r"\w+", "\n".join(original[body[0].lineno - 1 : _end(node)])))
    source = _dedent([line for line in lines[node.lineno - 1 : _end(node)] if line is not None])
    return Function(package, path, prefix + node.name, node.lineno, source, _docstring(node), stub, words)


def _is_ellipsis(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and node.value.value is ...


def _dedent(lines: list[str]) -> str:
    """Take the indentation of the first line off every line that has it.

    `textwrap.dedent` would do nothing where a text inside the code starts at the margin.
    """
    indent = lines[0][: len(lines[0]) - len(lines[0].lstrip())]
    return "\n".join(line.removeprefix(indent).rstrip() for line in lines).strip()


def _pieces(lines: list[str]) -> list[str]:
    """Code cut at blank lines into pieces of about `_PIECE` characters; tables and crumbs are left out."""
    if not any(line.strip() for line in lines):
        return []
    pieces = [""]
    for paragraph in re.split(r"\n\s*\n", _dedent(lines)):
        if len(pieces[-1]) + len(paragraph) > _PIECE:
            pieces.append("")
        pieces[-1] += ("\n\n" if pieces[-1] else "") + paragraph.strip("\n")
    return [
        one for one in pieces if 80 <= len(one) <= 2 * _PIECE and 2 * sum(map(str.isalpha, one)) >= len(one)
    ]
