"""Cutting Python files into functions, other code and docstrings."""

import argparse
import ast
import collections
import configparser
import inspect
import re
import textwrap
from pathlib import Path

import pytest

from searchr3.dataset.python_source import (
    Function,
    Module,
    installed_roots,
    parse_module,
    read_module,
    scan,
    source_files,
)


def parse(source: str) -> Module:
    return parse_module(textwrap.dedent(source), "package/file.py")


def only(source: str) -> Function:
    (function,) = parse(source).functions
    return function


def without_docstrings(node: ast.AST) -> str:
    """The tree as text, docstrings and decorators out, white space in texts squeezed."""
    for inner in ast.walk(node):
        if isinstance(inner, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            if ast.get_docstring(inner) is not None:
                inner.body = inner.body[1:] or [ast.Pass()]
            if inner is node:
                inner.decorator_list = []
        if isinstance(inner, ast.Constant) and isinstance(inner.value, str):
            inner.value = re.sub(r"\s+", " ", inner.value)
    return ast.dump(node)


@pytest.mark.parametrize("module", [argparse, collections, configparser, inspect, textwrap])
def test_only_docstrings_are_lost(module):
    """Every function of real files means the same as before, but for its docstrings."""
    path = Path(module.__file__)
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = {
        node.lineno: node
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    }
    functions = parse_module(path.read_text(encoding="utf-8"), path.name).functions
    assert functions
    for function in functions:
        (again,) = ast.parse(function.source).body
        assert without_docstrings(again) == without_docstrings(nodes[function.line]), function.name


def test_a_method_is_dedented_and_keeps_its_comments():
    function = only('''
        class Shelf:
            @property
            def first(self):
                """The first book.

                None when empty.
                """
                # look up
                books = self.books  # all
                return books[0] if books else None
    ''')
    assert function.source.split("\n") == [
        "def first(self):",
        "    # look up",
        "    books = self.books  # all",
        "    return books[0] if books else None",
    ]
    assert (function.name, function.package, function.path, function.line) == (
        "Shelf.first",
        "package",
        "package/file.py",
        4,
    )
    assert function.docstring == "The first book.\n\nNone when empty."


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('def f(): "doc"; return 1', "def f(): return 1"),
        ('def f(): "doc"', "def f(): pass"),
        ('def f():\n    "doc"; x = 1\n    return x', "def f():\n    x = 1\n    return x"),
        ('def f():\n    ("doc"\n     "more")\n    return 1', "def f():\n    return 1"),
        ('def f():\n    "döc"; return "ü"', 'def f():\n    return "ü"'),
        ('def f():\n    """doc"""  # noqa\n    return 1', "def f():\n      # noqa\n    return 1"),
        (
            'def f():\n    """doc"""\n    t = """a\nb"""\n    return t',
            'def f():\n    t = """a\nb"""\n    return t',
        ),
        (
            'def f():\n    def g():\n        """inner"""\n        return 1\n    return g',
            "def f():\n    def g():\n        return 1\n    return g",
        ),
        ('async def f():\n    """doc"""\n    await g()', "async def f():\n    await g()"),
    ],
)
def test_odd_docstrings(source, expected):
    function = only(source)
    assert function.source.replace("      # noqa", "    # noqa") == expected.replace(
        "      # noqa", "    # noqa"
    )
    ast.parse(function.source)


def test_functions_below_conditions_are_found_and_nested_ones_belong_to_the_outer():
    module = parse("""
        try:
            def a(): return 1
        except ImportError:
            def b(): return 1
        if x:
            class C:
                class D:
                    def c(self):
                        def inner(): return 1
                        return inner
        else:
            with y:
                def d(): return 1
    """)
    assert [function.name for function in module.functions] == ["a", "b", "C.D.c", "d"]


@pytest.mark.parametrize(
    ("body", "stub"),
    [("pass", True), ("...", True), ("raise NotImplementedError('x')", True), ("return 1", False)],
)
def test_stubs(body, stub):
    assert only(f'def f():\n    """Doc."""\n    {body}').stub is stub
    assert only(f"def f():\n    {body}").stub is stub


def test_the_rest_holds_no_function_no_docstring_and_no_licence():
    module = parse('''
        # Copyright somebody, all rights reserved, and so on for many lines.

        """What the module is for."""
        import os
        TABLE_OF_NAMES = {"first": os.sep, "second": os.linesep, "third": os.pathsep}
        CONSTANT_OF_THE_MODULE = 3

        @decorated
        def function():
            """What the function does."""
            return MARK_OF_THE_FUNCTION

        class Thing(Base):
            """What the class is for."""
            attribute_of_the_class: int = CONSTANT_OF_THE_MODULE * 12  # comment
            other_attribute: str = "something long enough"

            def method(self):
                return MARK_OF_THE_METHOD
    ''')
    rest = "\n".join(module.rest)
    assert module.docstrings == ["What the module is for.", "What the class is for."]
    for kept in ("CONSTANT_OF_THE_MODULE = 3", "class Thing(Base):", "attribute_of_the_class", "# comment"):
        assert kept in rest
    for lost in ("What the", "MARK", "Copyright", "decorated", "def "):
        assert lost not in rest


def test_half_a_character_in_a_docstring_does_no_harm():
    only('def f():\n    "Escaped \\ud800 half."\n    return 1').docstring.encode("utf-8")


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / (name.replace("__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def test_tests_are_left_out_and_the_first_root_wins(tmp_path):
    write(
        tmp_path / "a",
        p__m="x = 1",
        p__tests__t="x = 1",
        p__test_m="x = 1",
        p__conftest="",
        testing__m="",
        shared="",
    )
    write(tmp_path / "b", q__m="x = 1", q__m_test="x = 1", p__m="x = 2", contest="")
    files = source_files([tmp_path / "a", tmp_path / "b"])
    assert [(root.name, path) for root, path in files] == [
        ("a", "shared.py"),
        ("a", "p/m.py"),
        ("b", "contest.py"),
        ("b", "q/m.py"),
    ]


def test_unreadable_files_are_passed_over(tmp_path):
    write(tmp_path, good="x = 1", bad="def (:")
    (tmp_path / "latin.py").write_bytes(b"x = '\xff'")
    (tmp_path / "null.py").write_bytes(b"x = 1\0")
    assert read_module(tmp_path, "good.py") is not None
    for name in ("bad.py", "latin.py", "null.py", "missing.py"):
        assert read_module(tmp_path, name) is None


def name_of(module: Module) -> str:
    return module.package


def test_many_files_come_in_order(tmp_path):
    """More files than one process would read alone."""
    names = [f"m{number:03}" for number in range(250)]
    write(tmp_path, **dict.fromkeys(names, "x = 1"))
    assert list(scan(name_of, [tmp_path])) == names


def test_the_standard_library_is_installed():
    assert any((root / "argparse.py").exists() for root in installed_roots())
