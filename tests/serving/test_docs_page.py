"""The API page: every model can be reached, and values are shown as requests write them."""

import re
from typing import Any

import pytest

from searchr3.serving.app import create_app
from searchr3.serving.docs_page import page
from searchr3.serving.service import Service
from searchr3.serving.settings import Settings

from .conftest import NAME, Patient


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    found: dict[str, Any] = create_app(Service(Patient(), NAME, Settings())).openapi()
    return found


def test_every_model_is_linked_wherever_it_stands(schema: dict[str, Any]) -> None:
    text, _ = page(schema)
    links = re.findall(r'<a href="#(\w+)">\1</a>', text)
    assert set(links) | {"EmbeddingRequest", "SearchRequest", "ChatRequest"} == set(
        schema["components"]["schemas"]
    )
    assert all(f'id="{name}"' in text for name in links)
    for name in ("TextPart", "Choice", "Embedding", "ShownHit", "Thought"):  # in lists, or perhaps null
        assert name in links


def test_values_are_written_as_in_json(schema: dict[str, Any]) -> None:
    text, _ = page(schema)
    assert "Default: <code>false</code>" in text and "False" not in text
    assert "integer ≥ 1 ≤ 1,000,000" in text and "e+18" not in text
    assert "<td>1 or null</td>" in text  # of `n`, which has one value
    assert "<code>length</code>: it was cut off" in text and "`" not in text
    assert "</a> or events: " in text


def test_what_a_schema_holds_is_no_html() -> None:
    evil = "<script>`x`"
    schema = {
        "info": {"title": evil, "version": evil},
        "paths": {},
        "components": {
            "schemas": {
                evil: {
                    "description": evil,
                    "properties": {evil: {"enum": [evil], "description": evil, "default": evil}},
                },
                "Other": {"description": "", "properties": {"x": {"$ref": f"#/{evil}"}, "y": {"type": evil}}},
            }
        },
    }
    assert "<script" not in page(schema)[0]
