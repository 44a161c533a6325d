"""`/v1/chat/completions`: it is still a chat model."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from searchr3.serving import schemas
from searchr3.serving.backend import Ask, Said
from searchr3.serving.replies import ApiError, Event, Json, events
from searchr3.serving.service import Service

router = APIRouter()


@router.post(
    "/v1/chat/completions",
    responses=schemas.answers(schemas.Completion, "chunks as OpenAI's, then [DONE]"),
    summary="A reply, as OpenAI's",
)
async def chat(request: Request, asked: schemas.ChatRequest) -> Response:
    """What the assistant says next; markers of the chat format in contents are only text."""
    service: Service = request.app.state.service
    service.named(asked.model)
    service.check_texts([one.text for one in asked.messages], "messages")
    ask = _ask(asked, service.settings.new_tokens)
    shared = {"id": f"chatcmpl-{request.state.id}", "created": int(time.time()), "model": asked.model}
    if not asked.stream:
        (said,) = await service.backend.say([ask])
        reply = {"role": "assistant", "content": said.text}
        choice = {"index": 0, "message": reply, "finish_reason": _why(said), "logprobs": None}
        return Json({**shared, "object": "chat.completion", "choices": [choice], "usage": _usage(said)})

    def chunk(delta: dict[str, str], why: str | None = None) -> Event:
        choice = {"index": 0, "delta": delta, "finish_reason": why, "logprobs": None}
        return None, {**shared, "object": "chat.completion.chunk", "choices": [choice]}

    async def source() -> AsyncGenerator[Event, None]:
        first = {"role": "assistant"}
        async with aclosing(service.backend.stream(ask)) as said:
            async for event in said:
                if isinstance(event, str):
                    yield chunk({**first, "content": event})
                    first = {}
                    continue
                yield chunk({**first, "content": ""} if first else {}, _why(event))
                if asked.stream_options and asked.stream_options.include_usage:
                    yield (
                        None,
                        {**shared, "object": "chat.completion.chunk", "choices": [], "usage": _usage(event)},
                    )
        yield None, "[DONE]"

    return await events(source(), request.state.deadline, request.state.id)


def _ask(asked: schemas.ChatRequest, most: int) -> Ask:
    field = "max_tokens" if asked.max_completion_tokens is None else "max_completion_tokens"
    tokens = getattr(asked, field)
    if tokens is not None and tokens > most:
        raise ApiError(422, f"{field}: must be at most {most} here", field)
    turns = tuple(("system" if one.role == "developer" else one.role, one.text) for one in asked.messages)
    temperature = 1.0 if asked.temperature is None else asked.temperature
    return Ask(turns, tokens or most, None, temperature, asked.seed, fewer=tokens is None)


def _why(said: Said) -> str:
    return "stop" if said.ended else "length"


def _usage(said: Said) -> dict[str, Any]:
    read, new = said.prompt_tokens, said.tokens
    return {"prompt_tokens": read, "completion_tokens": new, "total_tokens": read + new}
