"""The routes. Each reads its request, asks the service, and shapes the answer."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from functools import partial
from typing import Any, TypeVar

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, Response

from searchr3.embedding import shorten
from searchr3.serving import schemas
from searchr3.serving.backend import Closed, Faulty, Refused, Said, Unavailable
from searchr3.serving.chat import router as chat_router
from searchr3.serving.docs_page import page
from searchr3.serving.gate import Gate
from searchr3.serving.metrics import Metrics, Traffic
from searchr3.serving.replies import ApiError, Event, Json, as_base64, events, told
from searchr3.serving.search_page import PAGE
from searchr3.serving.search_page import router as page_router
from searchr3.serving.service import Answer, Service, Vectors
from searchr3.version import __version__

OPEN = ("/health", "/health/live", "/docs", "/openapi.json", *PAGE)
"""Routes that need no key: they tell nothing of documents or of use."""

T = TypeVar("T", Vectors, Answer)

router = APIRouter()


def service_of(request: Request) -> Service:
    """The service behind a request."""
    found: Service = request.app.state.service
    return found


@router.post(
    "/v1/embeddings",
    responses=schemas.answers(schemas.Embeddings, '"reasoning" with {"text"}, "embedding" with the answer'),
    summary="Vectors of texts, as OpenAI's",
)
async def embeddings(request: Request, asked: schemas.EmbeddingRequest) -> Response:
    """Vectors of documents or queries; queries may be thought about first."""
    service = service_of(request)
    how = service.how(asked)
    texts = asked.input
    service.check_texts(texts, "input")
    service.check_dimensions(asked.dimensions)
    if not asked.stream:
        return Json(_embeddings(asked, await service.vectors(texts, how)))
    if len(texts) != 1:
        raise ApiError(422, f"a stream is of one input, got {len(texts)}", "input")
    source = _spoken(service.stream(texts[0], how), "embedding", partial(_embeddings, asked))
    return await events(source, request.state.deadline, request.state.id)


def _embeddings(asked: schemas.EmbeddingRequest, found: Vectors) -> dict[str, Any]:
    as_text = asked.encoding_format == "base64"
    data: list[dict[str, Any]] = []
    for place, (vector, said) in enumerate(
        zip(shorten(found.rows, asked.dimensions), found.said, strict=True)
    ):
        shown = as_base64(vector) if as_text else vector
        data.append({"object": "embedding", "index": place, "embedding": shown})
        if said:
            data[-1]["reasoning"] = _thought(said)
    return {"object": "list", "data": data, "model": asked.model, "usage": _usage(found)}


@router.post(
    "/search",
    responses=schemas.answers(schemas.Found, '"reasoning" with {"text"}, "answer" with the answer'),
    summary="The documents nearest to a query",
)
async def search(request: Request, asked: schemas.SearchRequest) -> Response:
    """Think about a query, embed it, and look for the nearest documents."""
    service = service_of(request)
    source = _spoken(service.search(asked), "answer", partial(_found, asked))
    if asked.stream:
        return await events(source, request.state.deadline, request.state.id)
    ((_, answer),) = [event async for event in source]  # without a stream nothing comes before it
    return Json(answer)


async def _spoken(
    said: AsyncGenerator[str | T, None], name: str, shape: Callable[[T], dict[str, Any]]
) -> AsyncGenerator[Event, None]:
    """Events of a thought, and of the answer behind it."""
    async with aclosing(said) as pieces:
        async for piece in pieces:
            yield ("reasoning", {"text": piece}) if isinstance(piece, str) else (name, shape(piece))


def _found(asked: schemas.SearchRequest, answer: Answer) -> dict[str, Any]:
    said = answer.query.said[0]
    return {
        "query": asked.query,
        "reasoning": _thought(said) if said else None,
        "hits": [vars(hit) for hit in answer.hits],
        "usage": _usage(answer.query),
        "seconds": answer.seconds,
    }


def _thought(said: Said) -> dict[str, Any]:
    return {"text": said.text, "tokens": said.tokens, "emitted": said.ended}


def _usage(found: Vectors) -> dict[str, int]:
    usage = {"prompt_tokens": found.read, "total_tokens": found.read + found.thinking}
    return {**usage, "completion_tokens": found.thinking} if any(found.said) else usage


@router.get(
    "/v1/models", responses=schemas.errors(401), response_model=schemas.Models, summary="Names of the model"
)
async def models(request: Request) -> Response:
    """The model, and its names that also say what a text is and whether to think."""
    return Json({"object": "list", "data": [_named(request, name) for name in service_of(request).names()]})


@router.get(
    "/v1/models/{name:path}",
    responses=schemas.errors(401, 404, 422),
    response_model=schemas.Model,
    summary="One of the names",
)
async def model(request: Request, name: str) -> Response:
    """A name, if requests may give it."""
    service_of(request).named(name)
    return Json(_named(request, name))


def _named(request: Request, name: str) -> dict[str, Any]:
    created = request.app.state.created
    return {"id": name, "object": "model", "created": created, "owned_by": "searchr3"}


@router.get(
    "/health",
    responses={503: {"model": schemas.Health, "description": "not ready"}},
    response_model=schemas.Health,
    summary="Whether requests are taken",
)
async def health(request: Request) -> Response:
    """Ready, or not (any more)."""
    service, state = service_of(request), request.app.state
    trouble = "it is shutting down" if state.traffic.draining else await service.backend.trouble()
    try:
        documents = await service.documents()
    except Unavailable as error:
        documents, trouble = None, trouble or str(error)
    told_of = {
        "ready": trouble is None,
        "trouble": trouble,
        "model": service.name,
        "dimension": service.backend.dimension,
        "documents": documents,
        "filters": service.searcher is not None and service.searcher.filters,
        "auto": service.searcher is not None and service.rule is not None,
        "version": __version__,
    }
    return Json(told_of, 503 if trouble else 200)


@router.get("/health/live", summary="Whether the process answers")
async def live() -> dict[str, bool]:
    """It does."""
    return {"live": True}


@router.get(
    "/metrics",
    response_class=Response,
    responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}}, **schemas.errors(401)},
    summary="Figures for Prometheus",
)
async def metrics(request: Request) -> Response:
    """Requests, tokens, queue."""
    found: Metrics = request.app.state.metrics
    return Response(found.text(), media_type=found.content_type)


@router.get("/docs", include_in_schema=False)
async def docs(request: Request) -> Response:
    """The OpenAPI page, without a script."""
    text, policy = page(request.app.openapi())
    return HTMLResponse(text, headers={"content-security-policy": policy})


def create_app(
    service: Service,
    lifespan: Callable[[], AbstractAsyncContextManager[Any]] | None = None,
) -> FastAPI:
    """The application.

    Args:
        lifespan: what the service needs around it, such as a worker that is started and closed.
    """

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        if lifespan is None:
            yield
        else:
            async with lifespan():
                yield

    app = FastAPI(title="searchr3", version=__version__, docs_url=None, redoc_url=None, lifespan=life)
    traffic = Traffic()
    figures = Metrics(traffic, lambda: service.backend.figures)
    app.state.service, app.state.traffic, app.state.metrics = service, traffic, figures
    app.state.created = int(time.time())
    app.include_router(router)
    app.include_router(chat_router)
    app.include_router(page_router)
    app.add_middleware(
        Gate,
        settings=service.settings,
        traffic=traffic,
        metrics=figures,
        open=OPEN,
        known=(*OPEN, *app.openapi()["paths"]),
    )
    for kind in (ApiError, Refused, Closed, Unavailable, Faulty, TimeoutError):
        app.add_exception_handler(kind, _told)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid)
    return app


async def _told(request: Request, error: Exception) -> Response:
    answer = told(error, request.state.id)
    return Json(answer.body(), answer.status, answer.headers)


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return Json(ApiError(error.status_code, str(error.detail)).body(), error.status_code, error.headers)


async def _invalid(request: Request, error: Exception) -> Response:
    """The first fault of a request; what it holds is not repeated."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        return Json(ApiError(400, f"the body is no JSON: {first['ctx']['error']}").body(), 400)
    if first["loc"] == ("body",) and first["type"] in ("missing", "model_attributes_type"):
        message = "send a JSON object, with the header Content-Type: application/json"
        return Json(ApiError(422, message).body(), 422)
    place = ".".join(str(part) for part in first["loc"][1:] if isinstance(part, int | str))
    message = str(first["msg"]).removeprefix("Value error, ")
    return Json(ApiError(422, f"{place}: {message}" if place else message, place or None).body(), 422)
