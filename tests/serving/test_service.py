"""What a request means, before anything is computed for it."""

from typing import Any

import pytest

from searchr3.serving.schemas import EmbeddingRequest
from searchr3.serving.service import Service
from searchr3.serving.settings import settings

from .conftest import Patient


@pytest.mark.parametrize(
    ("more", "kind"),
    [
        ({}, "document"),
        ({"reasoning": "off"}, "query"),
        ({"reasoning": "on"}, "query"),
        ({"instruction": "Find code."}, "query"),
        ({"instruction": ""}, "document"),
        ({"input_type": "document", "reasoning": "off"}, "document"),
        ({"model": "tiny:document", "reasoning": "off"}, "document"),
    ],
)
def test_whoever_speaks_of_reasoning_or_a_task_has_a_query(more: dict[str, Any], kind: str) -> None:
    asked = EmbeddingRequest(**{"model": "tiny", "input": ["x"], **more})
    assert Service(Patient(), "tiny", settings()).how(asked).kind == kind
