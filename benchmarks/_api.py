"""Whatever a request holds: a real server, asked by schemathesis for all that its OpenAPI page describes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import httpx2
import schemathesis
from _documents import documents
from _load import server
from hypothesis import HealthCheck, Phase, given, settings

from searchr3.model import SearchR3
from searchr3.search.chunks import SIZE
from searchr3.search.encoder import ModelEncoder, identify
from searchr3.search.index import index
from searchr3.search.lance_store import LanceStore

NAMES = ("model", "model:query", "model:think")


def api_figures(work: Path, model: Path, examples: int) -> dict[str, float]:
    """Answers to so many requests of each route, by class of status."""
    encoder = ModelEncoder(SearchR3(model))
    documents(work / "api", 100, encoder)
    store = LanceStore(work / "api-store", create=True)
    index(store, identify(model, size=SIZE), [work / "api"], lambda: encoder)
    store.close()
    statuses: Counter[int] = Counter()
    with server(model, "--store", store.name, "--max-new-tokens", "8") as (url, _):
        base = url.removesuffix("/v1")
        described = httpx2.get(f"{base}/openapi.json", trust_env=False).json()
        for request in ("EmbeddingRequest", "ChatRequest"):  # else hardly any would name the model
            described["components"]["schemas"][request]["properties"]["model"] = {"enum": NAMES}
        schema = schemathesis.openapi.from_dict(described)
        for operation in (one.ok() for one in schema.get_all_operations()):

            @settings(
                max_examples=examples,
                deadline=None,
                database=None,
                derandomize=True,
                phases=[Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            @given(operation.as_strategy())
            def ask(case: schemathesis.Case) -> None:
                statuses[case.call(base_url=base).status_code] += 1

            ask()
    return {
        "api_requests": statuses.total(),
        "api_2xx": sum(count for status, count in statuses.items() if status // 100 == 2),
        "api_4xx": sum(count for status, count in statuses.items() if status // 100 == 4),
        "api_5xx": sum(count for status, count in statuses.items() if status // 100 == 5),
    }
