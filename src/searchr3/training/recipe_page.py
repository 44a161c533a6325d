"""The recipe reference, rendered from the recipe itself.

python -m searchr3.training.recipe_page > docs/recipe.md
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import yaml

from searchr3.training.recipe import Recipe

_HEAD = """\
# The recipe

Everything that decides a run is a key of its recipe: a YAML file for `searchr3 train`, in which only what
differs from the defaults need stand.

```yaml
name: mine
data:
  source: mydata
stage1:
  steps: 2000
```

Any key can be set on the command line too, written with dots:
`searchr3 train mine.yaml stage1.steps=100 report_to=[tensorboard]`. `searchr3 train mine.yaml --dry-run`
prints the recipe as it will be used, and what it will cost. An unknown key or a value out of range ends the
command before anything is trained.

This page is made from the descriptions in `src/searchr3/training/recipe.py` by
`python -m searchr3.training.recipe_page > docs/recipe.md`.
"""


def describe() -> str:
    """All keys of a recipe with their values, defaults and meanings, as Markdown."""
    schema = Recipe.model_json_schema()
    return "\n".join([_HEAD, *_section("", schema, schema["$defs"])])


def _section(prefix: str, section: dict[str, Any], known: dict[str, Any], note: str = "") -> Iterator[str]:
    """A table of the plain keys of a section, then the sections in it."""
    keys = section["properties"]
    inner = {key: found for key, one in keys.items() if (found := _inner(one, known))}
    if plain := [key for key in keys if key not in inner]:
        yield f"## {prefix.rstrip('.') or 'Top level'}\n{note}"
        yield "| key | values | default | meaning |"
        yield "|---|---|---|---|"
        for key in plain:
            yield _row(prefix + key, keys[key])
        yield ""
    for key, found in inner.items():
        default, note = keys[key].get("default", {}), ""
        if not default and default != {}:
            form = "A list, empty by default" if default == [] else "Off by default"
            note = f"\n{form}: {keys[key]['description']}.\n"
        yield from _section(f"{prefix}{key}.", found, known, note)


def _inner(key: dict[str, Any], known: dict[str, Any]) -> dict[str, Any] | None:
    """The section that a key holds, if it holds one."""
    options = [key, key.get("items", {}), *key.get("anyOf", ())]
    name = next((one["$ref"] for one in options if "$ref" in one), None)
    return known[name.rpartition("/")[2]] if name else None


def _row(name: str, key: dict[str, Any]) -> str:
    default = f"`{_yaml(key['default'])}`" if "default" in key else "must be given"
    cells = (f"`{name}`", _values(key), default, key["description"])
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, default_flow_style=True).strip().removesuffix("...").strip()


def _values(key: dict[str, Any]) -> str:
    """What a key may be, in words."""
    if "anyOf" in key:
        return " or ".join(_values(one) for one in key["anyOf"])
    if "enum" in key:
        return ", ".join(f"`{value}`" for value in key["enum"])
    if key["type"] == "array":
        return "list of " + re.sub(r"\b(text|number)\b", r"\1s", _values(key["items"]))
    names = {"integer": "whole number", "string": "text", "null": "`null`", "boolean": "`true` or `false`"}
    words = names.get(key["type"], key["type"])
    limits = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    bounds = [f"{sign} {key[limit]:g}" for limit, sign in limits.items() if limit in key]
    return " ".join([words, ", ".join(bounds)]).strip()


if __name__ == "__main__":
    print(describe(), end="")
