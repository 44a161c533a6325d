"""What kinds of files are read, by their names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath
from typing import Literal

Form = Literal["text", "markdown", "html", "pdf", "code"]


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        name: what `--type` calls it.
        form: how it is read and split.
        grammar: of code: module and function of its tree-sitter grammar; without one it is split as text.
    """

    name: str
    form: Form
    grammar: tuple[str, str] | None = None


TEXT = Kind("txt", "text")
_ENDINGS: dict[Kind, str] = {
    TEXT: "txt text",
    Kind("rst", "text"): "rst",
    Kind("tex", "text"): "tex",
    Kind("org", "text"): "org",
    Kind("adoc", "text"): "adoc asciidoc",
    Kind("md", "markdown"): "md markdown mdx",
    Kind("html", "html"): "html htm xhtml",
    Kind("pdf", "pdf"): "pdf",
    Kind("py", "code", ("tree_sitter_python", "language")): "py pyi",
    Kind("js", "code", ("tree_sitter_javascript", "language")): "js jsx mjs cjs",
    Kind("ts", "code", ("tree_sitter_typescript", "language_typescript")): "ts mts cts",
    Kind("tsx", "code", ("tree_sitter_typescript", "language_tsx")): "tsx",
    Kind("java", "code", ("tree_sitter_java", "language")): "java",
    Kind("go", "code", ("tree_sitter_go", "language")): "go",
    Kind("rs", "code", ("tree_sitter_rust", "language")): "rs",
    Kind("c", "code", ("tree_sitter_c", "language")): "c h",
    Kind("cpp", "code", ("tree_sitter_cpp", "language")): "cpp cc cxx hpp hh hxx",
    Kind("cs", "code", ("tree_sitter_c_sharp", "language")): "cs",
    Kind("rb", "code", ("tree_sitter_ruby", "language")): "rb",
    Kind("php", "code", ("tree_sitter_php", "language_php")): "php",
    Kind("sh", "code", ("tree_sitter_bash", "language")): "sh bash",
    Kind("kt", "code"): "kt kts",
    Kind("swift", "code"): "swift",
    Kind("scala", "code"): "scala",
    Kind("lua", "code"): "lua",
    Kind("jl", "code"): "jl",
    Kind("r", "code"): "r",
    Kind("sql", "code"): "sql",
    Kind("css", "code"): "css scss",
    Kind("yaml", "code"): "yaml yml",
    Kind("toml", "code"): "toml",
    Kind("ini", "code"): "ini cfg",
}
KINDS = {f".{ending}": kind for kind, endings in _ENDINGS.items() for ending in endings.split()}

_WHOLE_NAMES = {
    "readme": TEXT,
    "license": TEXT,
    "makefile": Kind("make", "code"),
    "dockerfile": Kind("docker", "code"),
}


def kind_of(name: str) -> Kind | None:
    """The kind of a file by its name; None where it is of none that is read.

    >>> kind_of("docs/README.MD").name
    'md'
    """
    path = PurePath(name)
    return KINDS.get(path.suffix.lower()) or _WHOLE_NAMES.get(path.name.lower())


NAMES = tuple(dict.fromkeys(kind.name for kind in (*KINDS.values(), *_WHOLE_NAMES.values())))
"""What `--type` knows."""
