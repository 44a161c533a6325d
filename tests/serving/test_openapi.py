"""Whatever a request holds, the answer is what the OpenAPI page says."""

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings

from .conftest import Patient, Shelf, running

schema = schemathesis.pytest.from_fixture("api")
QUIET = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]


@pytest.fixture(scope="module")
def api() -> Iterator[Any]:
    backend = Patient()
    backend.go.set()
    with running(backend, searcher=Shelf()) as client:
        yield schemathesis.openapi.from_url(f"{str(client.base_url).rstrip('/')}/openapi.json")


@schema.parametrize()
@settings(max_examples=15, suppress_health_check=QUIET)
def test_answers_are_as_described(case: Any) -> None:
    case.call_and_validate()


@pytest.mark.slow
@schema.parametrize()
@settings(max_examples=1000, suppress_health_check=QUIET)
def test_answers_are_as_described_always(case: Any) -> None:
    case.call_and_validate()
