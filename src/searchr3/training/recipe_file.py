"""Recipes from files: YAML read, overrides put in, and every fault said in one line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from searchr3.errors import RecipeError
from searchr3.files import nearest
from searchr3.training.recipe import Recipe

_MERGE = "tag:yaml.org,2002:merge"  # of `<<`, which may come again


def load_recipe(source: str | Path | dict[str, Any], overrides: Sequence[str] = ()) -> Recipe:
    """Read and validate a recipe.

    Args:
        source: a YAML file, the name of a recipe in the package (such as `quickstart`), or a mapping.
        overrides: `key=value` texts with dotted keys, e.g. `stage1.steps=200`; values are YAML.

    Raises:
        RecipeError: no such file, not YAML, an unknown key (the nearest is named) or a value out of range.
    """
    if isinstance(source, dict):
        values, where = source, "recipe"
    else:
        path = recipe_path(source)
        values, where = _read(path), str(path)
    for override in overrides:
        values = _override(values, override)
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError(f"{where}: " + "; ".join(_explain(error))) from None


def recipe_path(source: str | Path) -> Path:
    """A recipe's file: the path itself, or for a bare name the recipe of that name in the package."""
    path = Path(source)
    if path.is_file():
        return path
    bundled = {file.stem: file for file in (Path(__file__).parent.parent / "recipes").glob("*.yaml")}
    if str(source) in bundled:
        return bundled[str(source)]
    names = ", ".join(sorted(bundled))
    raise RecipeError(f"{source}: no such recipe file; give a YAML file or one of: {names}")


class _OnceEach(yaml.SafeLoader):
    """Refuses a key that comes twice in one place; YAML itself would take the last, in silence."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        for key in (key for key, _ in pairs if isinstance(key, yaml.ScalarNode) and key.tag != _MERGE):
            if key.value in seen:
                twice = f"the key {key.value!r} comes twice; keep one"
                raise yaml.MarkedYAMLError(problem=twice, problem_mark=key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _read(path: Path) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _OnceEach)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise RecipeError(
            f"{path}{line}: not valid YAML ({getattr(error, 'problem', 'unreadable')})"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read ({error})") from None
    if values is None:
        return {}
    if isinstance(values, dict) and set(values) == {"recipe", "machine"}:
        values = values["recipe"]  # of a run, which can so be run again as it is
    if not isinstance(values, dict):
        raise RecipeError(f"{path}: expected keys and values, found {type(values).__name__}")
    return values


def _override(values: dict[str, Any], override: str) -> dict[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise RecipeError(f"{override!r}: write overrides as key=value, for example stage1.steps=200")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise RecipeError(f"{override!r}: the value is not valid YAML") from None
    result = dict(values)
    place = result
    *parents, last = key.strip().split(".")
    for parent in parents:
        inner = place.get(parent)
        place[parent] = dict(inner) if isinstance(inner, dict) else {}
        place = place[parent]
    place[last] = value
    return result


def _explain(error: ValidationError) -> Iterator[str]:
    for fault in error.errors():
        key = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            known = _keys_beside(fault["loc"])
            hint = nearest(str(fault["loc"][-1]), known)
            yield f"unknown key {key!r}" + (
                f"; did you mean {hint!r}?" if hint else f"; known here: {', '.join(known)}"
            )
        else:
            message = fault["msg"].removeprefix("Value error, ")
            yield f"{key or 'recipe'}: {message[0].lower() + message[1:]} (got {fault['input']!r})"


def _keys_beside(location: tuple[Any, ...]) -> list[str]:
    section: type[BaseModel] = Recipe
    for part in location[:-1]:
        if isinstance(part, int):  # an entry of a list of sections
            continue
        annotation = section.model_fields[part].annotation
        options = [annotation, *getattr(annotation, "__args__", ())]
        section = next(
            option for option in options if isinstance(option, type) and issubclass(option, BaseModel)
        )
    return list(section.model_fields)
