"""What requests may hold and what answers look like; the OpenAPI page is made of these."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    FailFast,
    Field,
    model_validator,
)

from searchr3.answers import Hit

FIELDS = 100  # of an object: more are refused at once, for each would be an error of its own
HITS = 100  # of a search


def _whole(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("holds half a character (a lone surrogate); send proper Unicode") from None
    return text


def _asked(text: str) -> str:
    if not text.strip():
        raise ValueError("is blank; write what you look for")
    return text


def _texts(value: Any) -> Any:
    """One text as a list of one."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list):
        raise ValueError("send a text or a list of texts")
    if texts and isinstance(texts[0], int | list):
        raise ValueError(
            "token ids are those of another model's tokenizer; send texts "
            "(in LangChain: OpenAIEmbeddings(check_embedding_ctx_length=False))"
        )
    return texts


def _parts(value: Any) -> Any:
    """A text as its one part."""
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


Text = Annotated[str, AfterValidator(_whole)]
Pattern = Annotated[str, Field(max_length=1000), AfterValidator(_whole)]
Instruction = Annotated[str, Field(max_length=4000), AfterValidator(_whole)]
Name = Annotated[str, Field(max_length=300), AfterValidator(_whole)]
Thinking = Annotated[int, Field(ge=0, le=1_000_000)]
Reasoning = Literal["off", "on", "auto"]


class Request(BaseModel):
    """A field that is not known is an error: it would be ignored. So is a value of another type."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _few(cls, value: Any) -> Any:
        if isinstance(value, dict) and len(value) > FIELDS:
            raise ValueError(f"has {len(value)} fields, more than any request")
        return value


class EmbeddingRequest(Request):
    """OpenAI's, and what is special to a model that may think first."""

    input: Annotated[
        list[Text],
        Field(min_length=1),
        FailFast(),
        BeforeValidator(_texts, json_schema_input_type=str | Annotated[list[str], Field(min_length=1)]),
    ] = Field(description="One text or several.")
    model: Name = Field(
        description="The model's name; NAME:query, NAME:think and NAME:auto set the fields below."
    )
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(
        default=None, description="Keep the first dimensions, again to unit length; all by default."
    )
    user: str | None = Field(default=None, description="Ignored.")
    input_type: Literal["query", "document"] | None = Field(
        default=None,
        description="document by default; query with `reasoning` or an instruction, or if the name says so.",
    )
    reasoning: Reasoning | None = Field(
        default=None, description="Think before embedding a query; auto: where its direct ranking is unsure."
    )
    instruction: Instruction | None = Field(
        default=None, description='Task of the queries; by default that of the server, "" for none.'
    )
    max_thinking_tokens: Thinking | None = Field(default=None, description="Most tokens of a thought.")
    stream: bool = Field(
        default=False,
        description="One input only: its reasoning as events while it is said, then the answer.",
    )


class TextPart(Request):
    """A part of a message's content."""

    type: Literal["text"]
    text: Text


class Message(Request):
    """A turn of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        list[TextPart],
        Field(min_length=1),
        FailFast(),
        BeforeValidator(_parts, json_schema_input_type=str | Annotated[list[TextPart], Field(min_length=1)]),
    ]
    name: str | None = Field(default=None, description="Ignored.")

    @property
    def text(self) -> str:
        """Its content as one text."""
        return "".join(part.text for part in self.content)


class StreamOptions(Request):
    """What a stream of a chat holds besides."""

    include_usage: bool = False
    include_obfuscation: bool = Field(default=False, description="Ignored.")


Zero = Annotated[float, Field(ge=0, le=0)]


class ChatRequest(Request):
    """OpenAI's. Fields that must have one value are there for clients that always send them."""

    model: Name
    messages: Annotated[list[Message], Field(min_length=1, max_length=1000)]
    max_tokens: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=1_000_000)] | None = Field(
        default=None, description="The newer name of `max_tokens`."
    )
    temperature: Annotated[float, Field(ge=0, le=2)] | None = Field(
        default=1.0, description="0 is greedy; above, from the full distribution."
    )
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    user: str | None = Field(default=None, description="Ignored.")
    n: Annotated[int, Field(ge=1, le=1)] | None = 1
    top_p: Annotated[float, Field(ge=1, le=1)] | None = 1.0
    presence_penalty: Zero | None = 0.0
    frequency_penalty: Zero | None = 0.0
    logprobs: Literal[False] | None = False
    stop: None = None


class SearchRequest(Request):
    """A question to the documents that the server holds."""

    query: Annotated[Text, AfterValidator(_asked)] = Field(
        min_length=1, description="What you look for, in words."
    )
    k: int = Field(default=10, ge=1, le=HITS, description="How many hits.")
    reasoning: Reasoning = "on"
    instruction: Instruction | None = Field(
        default=None, description='Task of the query; by default that of the documents, "" for none.'
    )
    max_thinking_tokens: Thinking | None = None
    stream: bool = Field(
        default=False, description="The reasoning as events while it is said, then the answer."
    )
    hybrid: bool = Field(default=False, description="Fuse with full text.")
    paths: list[Pattern] = Field(
        default=[], max_length=100, description="Only files below or like one of these."
    )
    types: list[Name] = Field(
        default=[], max_length=100, description="Only files of these types, such as md."
    )


class Thought(BaseModel):
    """What the model thought; `emitted`: it said the embed token itself, else its thought was closed."""

    text: str
    tokens: int
    emitted: bool


class Usage(BaseModel):
    """Tokens that the model read, the conversation around the texts included, and those that it said."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int | None = None


class Embedding(BaseModel):
    """A vector: numbers, or base64 of little-endian float32. `reasoning` only where the model thought."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str
    reasoning: Thought | None = None


class Embeddings(BaseModel):
    """The vectors, in the order of the inputs."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: Usage


class Reply(BaseModel):
    """What the assistant says."""

    role: Literal["assistant"]
    content: str


class Choice(BaseModel):
    """The one reply; `length`: it was cut off."""

    index: int
    message: Reply
    finish_reason: Literal["stop", "length"]
    logprobs: None = None


class Completion(BaseModel):
    """The answer to a chat."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


@dataclass(frozen=True)
class ShownHit(Hit):
    """A hit, and where words of query and thought stand in its snippet: start and end, in code points."""

    marks: list[tuple[int, int]]


class Seconds(BaseModel):
    """Where the time went."""

    embedding: float
    search: float


class Found(BaseModel):
    """The answer to a search; `reasoning` only where the model thought."""

    query: str
    reasoning: Thought | None
    hits: list[ShownHit]
    usage: Usage
    seconds: Seconds


class Model(BaseModel):
    """A name by which the model is asked."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class Models(BaseModel):
    """All names."""

    object: Literal["list"]
    data: list[Model]


class Health(BaseModel):
    """`ready`: requests are taken; else `trouble` says what keeps them from being answered. `filters`:
    searches may be hybrid, and of paths and types alone; `auto`: reasoning may be auto."""

    ready: bool
    trouble: str | None
    model: str
    dimension: int
    documents: int | None
    filters: bool
    auto: bool
    version: str


class Fault(BaseModel):
    """An error as OpenAI shapes it."""

    message: str
    type: str
    param: str | None
    code: str | None


class Error(BaseModel):
    """Every answer that is not a success."""

    error: Fault


FAULTS = {
    400: "no JSON",
    401: "no such API key",
    404: "no such model, or nothing to search",
    408: "the time for a request is over",
    413: "the body is too large",
    421: "another host is meant",
    422: "a field is wrong, or asks for too much",
    429: "too many requests at once",
    502: "what the model runs on answers what it should not",
    503: "shutting down, or what the model runs on gives no answer",
}


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Errors that a route may answer with, all by default, for the OpenAPI page."""
    return {status: {"model": Error, "description": FAULTS[status]} for status in statuses or FAULTS}


def answers(model: type[BaseModel], events: str) -> dict[int | str, dict[str, Any]]:
    """All answers of a route, for the OpenAPI page: JSON, or events as they are described here."""
    fields = {"event": {"type": "string"}, "data": {"type": "string", "description": "JSON"}}
    event = {"type": "object", "properties": fields, "required": ["data"], "description": events}
    stream = {"text/event-stream": {"schema": event}}
    return {200: {"model": model, "content": stream, "description": "done"}, **errors()}
