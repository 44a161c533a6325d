"""The OpenAPI page: what `/openapi.json` says, for people. Plain HTML made here, no script, no other site."""

from __future__ import annotations

import json
import re
from base64 import b64encode
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import Any

from jinja2 import Environment
from markupsafe import Markup, escape

_BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}


def page(schema: dict[str, Any]) -> tuple[str, str]:
    """The page for an OpenAPI schema, and the content security policy that allows its style alone."""
    style = _file("docs.css")
    digest = b64encode(sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; frame-ancestors 'none'"
    text = _template().render(api=schema, style=Markup(style), kind=kind, prose=prose, as_json=as_json)
    return text, policy


def kind(schema: dict[str, Any]) -> Markup:
    """A field's type in a few words, with links to the models in it.

    >>> hits = {"type": "array", "items": {"$ref": "#/components/schemas/Hit"}}
    >>> str(kind({"anyOf": [hits, {"type": "null"}]}))
    'list of <a href="#Hit">Hit</a> or null'
    >>> str(kind({"type": "integer", "minimum": 1.0, "maximum": 1e6}))
    'integer ≥ 1 ≤ 1,000,000'
    """
    if "$ref" in schema:
        return Markup('<a href="#{0}">{0}</a>').format(str(schema["$ref"]).rpartition("/")[2])
    for key in ("anyOf", "oneOf", "allOf"):
        if key in schema:
            return Markup(" or ").join(dict.fromkeys(kind(one) for one in schema[key]))
    if "enum" in schema or "const" in schema:
        return Markup(" or ").join(as_json(one) for one in schema.get("enum", [schema.get("const")]))
    name = escape(schema.get("type", "any"))
    if name == "array":
        return Markup("list of ") + kind(schema.get("items", {}))
    least, most = schema.get("minimum"), schema.get("maximum")
    if least is not None and least == most:
        return Markup(_number(least))
    bounds = [f"{sign} {_number(schema[key])}" for key, sign in _BOUNDS.items() if key in schema]
    return Markup(" ").join([name, *bounds])


def prose(text: str) -> Markup:
    """A description, with `names` as code.

    >>> str(prose("`a` < b"))
    '<code>a</code> &lt; b'
    """
    return Markup(re.sub("`([^`]+)`", r"<code>\1</code>", str(escape(text))))


def as_json(value: Any) -> str:
    """A value as requests write it.

    >>> as_json("off"), as_json(False), as_json(1.0)
    ('"off"', 'false', '1')
    """
    return json.dumps(int(value) if isinstance(value, float) and value.is_integer() else value)


def _number(value: float) -> str:
    """Bounds of integers are floats in the schema."""
    return f"{int(value):,}" if value == int(value) else str(value)


@cache
def _template() -> Any:
    return Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        _file("docs.html.j2")
    )


def _file(name: str) -> str:
    return files("searchr3.serving").joinpath(name).read_text(encoding="utf-8")
