"""The OpenAPI page: what `/openapi.json` says, for people. Plain HTML made here, no script, no other site."""

from __future__ import annotations

from base64 import b64encode
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import Any

from jinja2 import Environment
from markupsafe import Markup


def page(schema: dict[str, Any]) -> tuple[str, str]:
    """The page for an OpenAPI schema, and the content security policy that allows its style alone."""
    style = _file("docs.css")
    digest = b64encode(sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; frame-ancestors 'none'"
    return _template().render(api=schema, style=Markup(style), kind=kind), policy


def kind(schema: dict[str, Any]) -> str:
    """A field's type in a few words.

    >>> kind({"anyOf": [{"type": "array", "items": {"type": "string"}}, {"type": "null"}]})
    'list of string or null'
    >>> kind({"enum": ["float", "base64"], "type": "string"})
    '"float" or "base64"'
    """
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    for key in ("anyOf", "oneOf", "allOf"):
        if key in schema:
            return " or ".join(dict.fromkeys(kind(one) for one in schema[key]))
    if "enum" in schema or "const" in schema:
        return " or ".join(f'"{one}"' for one in schema.get("enum", [schema.get("const")]))
    name = str(schema.get("type", "any"))
    if name == "array":
        return f"list of {kind(schema.get('items', {}))}"
    bounds = [f"{sign} {schema[key]}" for key, sign in (("minimum", "≥"), ("maximum", "≤")) if key in schema]
    return " ".join([name, *bounds])


@cache
def _template() -> Any:
    return Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        _file("docs.html.j2")
    )


def _file(name: str) -> str:
    return files("searchr3.serving").joinpath(name).read_text(encoding="utf-8")
