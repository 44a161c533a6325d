"""Whatever a request holds, the answer is what the OpenAPI page says."""

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from .conftest import NAME, Patient, Shelf, running

EMPTY = {"openapi": "3.1.0", "info": {"title": "", "version": ""}, "paths": {}}
QUIET = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]


@pytest.fixture(scope="module")
def api() -> Iterator[tuple[Any, str]]:
    """The schema, with a name of the model that there is, and where it is served."""
    backend = Patient()
    backend.go.set()
    # imports much, which CPython 3.11 cannot always do beside a server's thread
    schemathesis.openapi.from_dict(EMPTY)
    with running(backend, searcher=Shelf()) as client:
        schema = client.get("/openapi.json").json()
        for request in ("EmbeddingRequest", "ChatRequest"):
            schema["components"]["schemas"][request]["properties"]["model"] = {
                "enum": [NAME, f"{NAME}:think"]
            }
        yield schemathesis.openapi.from_dict(schema), str(client.base_url)


@pytest.mark.parametrize("examples", [12, pytest.param(1000, marks=pytest.mark.slow)])
def test_answers_are_as_described(api: tuple[Any, str], examples: int) -> None:
    schema, url = api
    operations = [one.ok() for one in schema.get_all_operations()]
    assert len(operations) == 8
    for operation in operations:

        @settings(max_examples=examples, suppress_health_check=QUIET)
        @given(operation.as_strategy())
        def check(case: Any) -> None:
            # some bounds are the server's own, so a request may be well-formed and still too much
            case.call_and_validate(base_url=url, excluded_checks=[positive_data_acceptance])

        check()
