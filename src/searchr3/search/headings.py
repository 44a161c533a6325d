"""What a part of a text stands under: the headings of Markdown, the definitions of code."""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

from searchr3.search.kinds import Kind

Place = Callable[[int, int], str]
"""The heading of the characters from one offset to another."""

_ATX = re.compile(r" {0,3}(#{1,6})[ \t]+(.*)")
_CLOSED = re.compile(r"(?:^|[ \t])#+$")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})")
_DEFINES = ("definition", "declaration", "declarator", "item", "class", "module", "method", "specifier")


def headings(text: str, kind: Kind) -> Place:
    """How to tell the heading of a part of `text`; "" where it stands under none.

    Markdown and HTML: "Guide > Install", the headings above the part's beginning, its own first line
    included. Code: "Reader.next", the definitions that hold the part as a whole.
    """
    if kind.form in ("markdown", "html"):
        return _markdown(text)
    if kind.grammar:
        return _code(text, kind.grammar)
    return lambda start, end: ""


@cache
def grammar(module: str, function: str) -> Any:
    """A tree-sitter grammar, as the splitter and the parser want it."""
    return getattr(import_module(module), function)()


def _markdown(text: str) -> Place:
    starts, paths = [0], [""]
    open_: list[tuple[int, str]] = []
    fence, offset = "", 0
    for line in text.split("\n"):
        if found := _FENCE.match(line):
            mark = found[1]
            if not fence:
                fence = mark
            elif mark.startswith(fence) and not line.strip(f" {mark[0]}"):
                fence = ""
        elif not fence and (found := _ATX.match(line)):
            level = len(found[1])
            said = _CLOSED.sub("", found[2].strip()).strip()
            open_ = [(depth, title) for depth, title in open_ if depth < level] + [(level, said)]
            starts.append(offset)
            paths.append(" > ".join(title for _, title in open_ if title))
        offset += len(line) + 1
    return lambda start, end: paths[bisect_right(starts, start) - 1]


def _code(text: str, of: tuple[str, str]) -> Place:
    from tree_sitter import Language, Parser

    raw = text.encode()
    tree = Parser(Language(grammar(*of))).parse(raw)

    def place(start: int, end: int) -> str:
        first = start if len(raw) == len(text) else len(text[:start].encode())
        last = first + len(text[start:end].encode())
        node = tree.root_node.descendant_for_byte_range(first, last)
        names: list[str] = []
        while node:
            name = node.child_by_field_name("name")
            if name and name.text and any(word in node.type for word in _DEFINES):
                names.append(name.text.decode("utf-8", "replace"))
            node = node.parent
        return ".".join(reversed(names))

    return place
