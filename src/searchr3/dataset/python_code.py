"""Installed Python code as a retrieval data set: a docstring's first sentence asks for the function below it.

The split hangs on the words of the query alone, so that the same function falls into the same split on every
machine.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from searchr3.dataset.near_duplicates import near_duplicate_groups
from searchr3.dataset.python_source import Function, Module, installed_roots, scan
from searchr3.dataset.splits import SHARES, digest, fraction, query_key, split_of
from searchr3.dataset.types import Document, Query, RetrievalDataset
from searchr3.errors import DataError

_MIN_WORDS, _MAX_WORDS = 3, 40
_MIN_BODY_WORDS = 10
_MAX_DOCUMENTS_OF_A_QUERY = 3  # a sentence above more functions than that asks for none of them
_MIN_CHARACTERS = 60  # of a function to pretrain on
_EVALUATED = ("dev", "test")

_ROLE = re.compile(r":[\w:.+-]+:`~?!?([^`]*)`")
_QUOTES = re.compile(r"`+|\*\*|\|")
_SENTENCE_END = re.compile(r"(?<!\be\.g)(?<!\bi\.e)(?<!\betc)(?<!\bvs)(?<!\bcf)[.!?](?=\s|$)", re.IGNORECASE)
_LOOSE_END = " .:;,("
_NO_PROSE = re.compile(
    r"[:@]\w+|>>>|\.\. |[-=~*#^]{3,}|(arg(ument)?s|parameters|returns?|raises|yields?|examples?|notes?)\s*:?$"
)
_SIGNATURE = re.compile(
    r"[\w.]+\(.*\)|.*->|[\w*, ]+ \([^)]*\b(optional|shape|tensor|bool|int|str|float|list|tuple|dict)\b"
)
_BOILERPLATE = re.compile(
    r"(see|same as|overrid\w+|override of|inherited|deprecated|todo|implements?|wrapper for)\b[^,]{0,40}$"
)
_VENDORED = re.compile(r"(^|/)(_?vendor(ed)?|_?extern(al|s)?|third_party|_distutils)(/|$)")


def first_sentence(docstring: str) -> str | None:
    """The first sentence of a docstring as plain text, or None when it is no sentence to search by.

    >>> first_sentence("Return the :class:`~os.PathLike` name of *path*.  Slow.")
    'Return the os.PathLike name of *path*'
    """
    lines: list[str] = []
    for line in docstring.strip().split("\n"):
        if not line.strip() or _NO_PROSE.match(line.strip().lower()):
            break
        lines.append(line.strip())
    text = _QUOTES.sub("", _ROLE.sub(r"\1", " ".join(lines)))
    text = " ".join(_SENTENCE_END.split(text, maxsplit=1)[0].split())
    text = re.sub(r"\b(e\.g|i\.e)$", "", text.rstrip(_LOOSE_END)).rstrip(_LOOSE_END)
    letters = sum(one.isascii() and (one.isalpha() or one == " ") for one in text)
    if not _MIN_WORDS <= len(text.split()) <= _MAX_WORDS or letters < 0.8 * len(text):
        return None
    if _SIGNATURE.match(text.lower()) or _BOILERPLATE.match(text.lower()):
        return None
    return text


def _query(function: Function) -> str | None:
    """The query that asks for the function, or None when it is not worth asking for."""
    if function.docstring is None or function.stub or function.body_words < _MIN_BODY_WORDS:
        return None
    return first_sentence(function.docstring)


def _pairs_of(module: Module) -> list[tuple[Function, str]]:
    return [(one._replace(docstring=None), query) for one in module.functions if (query := _query(one))]


def _preference(function: Function) -> tuple[bool, int, str, int]:
    """The first of several copies is kept: originals before vendored copies, short paths before long ones."""
    return bool(_VENDORED.search(function.path)), function.path.count("/"), function.path, function.line


def _unique_pairs(pairs: list[tuple[Function, str]]) -> dict[str, list[tuple[Function, str]]]:
    """Query key → its functions: one of each near-duplicate group, ambiguous queries left out; sorted."""
    pairs = sorted(pairs, key=lambda pair: _preference(pair[0]))
    groups = near_duplicate_groups([function.source for function, _ in pairs])
    by_key: dict[str, list[tuple[Function, str]]] = defaultdict(list)
    for index in np.unique(groups):  # a group's label is its first index
        function, query = pairs[index]
        by_key[query_key(query)].append((function, query))
    return {key: by_key[key] for key in sorted(by_key) if len(by_key[key]) <= _MAX_DOCUMENTS_OF_A_QUERY}


def _package_splits(by_key: dict[str, list[tuple[Function, str]]]) -> dict[str, str]:
    """Package → `test` or `dev` for the held-out ones.

    In the order of a stable hash, every package that still fits into the split's share of the functions is
    taken: the largest packages, which would overflow it, stay in training.
    """
    sizes: dict[str, int] = defaultdict(int)
    for functions in by_key.values():
        for function, _ in functions:
            sizes[function.package] += 1
    waiting = sorted(sizes, key=lambda package: fraction(package, "package"))
    held_out: dict[str, str] = {}
    for split in reversed(_EVALUATED):
        room = SHARES[split] * sum(sizes.values())
        for package in [one for one in waiting if one not in held_out]:
            if sizes[package] <= room:
                held_out[package] = split
                room -= sizes[package]
    return held_out


def _training_split(key: str) -> str:
    rest = {name: share for name, share in SHARES.items() if name not in _EVALUATED}
    return split_of(key, {name: share / sum(rest.values()) for name, share in rest.items()})


def _assign(by_key: dict[str, list[tuple[Function, str]]], held_out: dict[str, str] | None) -> dict[str, str]:
    """Query key → split; keys whose functions lie both in a held-out package and outside it are left out."""
    if held_out is None:
        return {key: split_of(key) for key in by_key}
    splits = {}
    for key, functions in by_key.items():
        places = {held_out.get(function.package, "") for function, _ in functions}
        if len(places) == 1:
            splits[key] = places.pop() or _training_split(key)
    return splits


def _folders(roots: Sequence[str | Path] | None, split_by: str) -> list[Path]:
    if split_by not in ("hash", "package"):
        raise DataError(f"split_by {split_by!r}: unknown; use 'hash' or 'package'")
    if roots is None:
        return installed_roots()
    folders = [Path(root) for root in roots]
    if missing := next((one for one in folders if not one.is_dir()), None):
        raise DataError(f"{missing}: no such folder; name folders that hold Python code")
    return folders


def python_dataset(
    roots: Sequence[str | Path] | None = None, max_documents: int | None = None, split_by: str = "hash"
) -> RetrievalDataset:
    """Make a data set of the Python code installed on this machine.

    Args:
        roots: folders to read; default the standard library and the installed packages.
        max_documents: keep at most so many documents, chosen by a stable hash of their queries.
        split_by: `"hash"` splits single queries; `"package"` puts whole packages into dev and test, and their
            documents into `held_out`, so that nothing of them is seen in training.

    Raises:
        DataError: a folder is missing, nothing was found, or `split_by` is unknown.
    """
    folders = _folders(roots, split_by)
    by_key = _unique_pairs([pair for pairs in scan(_pairs_of, folders) for pair in pairs])
    if not by_key:
        raise DataError(
            f"{', '.join(map(str, folders))}: no documented Python functions found; name other folders"
        )
    held_out_packages = _package_splits(by_key) if split_by == "package" else None
    splits = _assign(by_key, held_out_packages)
    corpus: dict[str, Document] = {}
    queries: dict[str, Query] = {}
    qrels: dict[str, dict[str, dict[str, int]]] = defaultdict(dict)
    held_out: set[str] = set()
    for key in sorted(splits, key=lambda key: fraction(key, "cap")):
        documents = {_document_id(function): _document(function) for function, _ in by_key[key]}
        if max_documents is not None and len(corpus) + len(documents) > max_documents:
            break
        query = f"q-{digest(key)}"
        corpus |= documents
        queries[query] = Query(by_key[key][0][1])
        qrels[splits[key]][query] = dict.fromkeys(documents, 1)
        if held_out_packages is not None and splits[key] in _EVALUATED:
            held_out.update(documents)
    return RetrievalDataset("python", corpus, queries, dict(qrels), frozenset(held_out))


def _document_id(function: Function) -> str:
    return f"{function.path}:{function.line}:{function.name}"


def _document(function: Function) -> Document:
    place = {
        "package": function.package,
        "path": function.path,
        "name": function.name,
        "line": str(function.line),
    }
    return Document("", function.source, place)


class Reading(NamedTuple):
    """What a base model may read of Python code."""

    texts: list[str]
    """Code and docstrings, apart from each other."""
    pairs: list[tuple[str, str]]
    """A query, made as those of the data set are, and the function that it asks for."""


def read_python(roots: Sequence[str | Path] | None = None, split_by: str = "hash") -> Reading:
    """Code and docstrings, to train a base model on without labels, and queries with the functions asked for.

    Code comes function by function and in pieces of class and module level, docstrings as texts of their own,
    all in the order of a hash, so that a function and its docstring are no neighbours; of near-duplicate
    functions one is kept. Left out are functions whose query falls into dev or test (code and docstring),
    every near-duplicate of one, and every docstring that starts with such a query; with `split_by="package"`
    all of the held-out packages.

    Raises:
        DataError: a folder is missing, or `split_by` is unknown.
    """
    folders = _folders(roots, split_by)
    modules = list(scan(_identity, folders))
    functions = [function for module in modules for function in module.functions]
    packages: dict[str, str] = {}
    if split_by == "package":
        packages = _package_splits(_unique_pairs([pair for module in modules for pair in _pairs_of(module)]))

    def evaluated(package: str, docstring: str | None) -> bool:
        if split_by == "package":
            return package in packages
        query = first_sentence(docstring) if docstring else None
        return query is not None and split_of(query_key(query)) in _EVALUATED

    groups = near_duplicate_groups([function.source for function in functions])
    banned = {
        group
        for group, function in zip(groups, functions, strict=True)
        if evaluated(function.package, function.docstring)
    }
    texts: set[str] = set()
    pairs: set[tuple[str, str]] = set()
    for index, function in enumerate(functions):
        if groups[index] in banned:
            continue
        if groups[index] == index and len(function.source) >= _MIN_CHARACTERS:
            texts.add(function.source)
            if query := _query(function):
                pairs.add((query, function.source))
        if function.docstring:
            texts.add(function.docstring)
    for module in modules:
        if module.package not in packages:
            texts.update(module.rest)
            texts.update(one for one in module.docstrings if not evaluated(module.package, one))
    return Reading(sorted(texts, key=digest), sorted(pairs, key=lambda pair: digest("\0".join(pair))))


def _identity(module: Module) -> Module:
    return module
