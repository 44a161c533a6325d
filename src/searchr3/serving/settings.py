"""Where the server listens, who may ask, and how much: checked before anything is loaded."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from searchr3.errors import SearchR3Error

KEYS = "SEARCHR3_API_KEYS"
"""Environment variable with the API keys, commas between them."""
LEAST_KEY = 16  # characters of a key: shorter ones are guessed
LOCAL = ("localhost", "127.0.0.1", "::1")

Count = Annotated[int, Field(ge=1)]


class Settings(BaseModel):
    """Everything that bounds the server."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    host: str = Field(default="127.0.0.1", description="address that is listened at")
    port: int = Field(default=8000, ge=0, le=65535, description="0: any that is free")
    keys: frozenset[bytes] = Field(default=frozenset(), repr=False, description="digests of the API keys")
    allow_unauthenticated: bool = Field(default=False, description="listen beyond this machine without a key")
    body_bytes: Count = Field(default=8_000_000, description="most bytes of a request's body")
    batch: Count = Field(default=2048, description="most texts in a request")
    text_tokens: Count = Field(default=8192, description="most tokens of a text, or of a chat so far")
    new_tokens: Count = Field(default=1024, description="most tokens that a request may let the model say")
    thinking_tokens: Count = Field(default=128, description="of a thought, where a request names no number")
    rows: Count = Field(default=32, description="most thoughts and chats in one step of the model")
    requests: Count = Field(default=128, description="most requests in work and waiting; the next gets 429")
    seconds: float = Field(default=60.0, gt=0, description="from a request's first byte to its answer's last")

    def allows(self, authorization: bytes) -> bool:
        """Whether the header `Authorization` bears one of the keys; true where there are none.

        Digests of equal length are compared, in constant time, with every key: the time says nothing.
        """
        if not self.keys:
            return True
        scheme, _, given = authorization.partition(b" ")
        digest = sha256(given.strip()).digest()
        equal = [hmac.compare_digest(digest, key) for key in self.keys]
        return scheme.lower() == b"bearer" and any(equal)

    @property
    def is_local(self) -> bool:
        """Whether only this machine can reach it."""
        return is_local(self.host)


def settings(**values: object) -> Settings:
    """Settings from options; None leaves a default.

    Raises:
        SearchR3Error: a value is out of range, or anyone in the network could use the model.
    """
    try:
        made = Settings.model_validate({key: one for key, one in values.items() if one is not None})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise SearchR3Error(f"{place}: {first['msg']}; see searchr3 serve --help") from None
    if not (made.is_local or made.keys or made.allow_unauthenticated):
        raise SearchR3Error(
            f"--host {made.host}: without an API key anyone who reaches it can use the model; "
            f"set {KEYS}, or give --api-keys-file, or say --allow-unauthenticated"
        )
    return made


def is_local(host: str) -> bool:
    """Whether a host name or address means this machine alone.

    >>> is_local("127.0.0.2"), is_local("localhost"), is_local("0.0.0.0"), is_local("example.org")
    (True, True, False, False)
    """
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() in LOCAL


def read_keys(environment: Mapping[str, str], file: Path | None = None) -> frozenset[bytes]:
    """Digests of the API keys in the environment, and in a file with one a line.

    Raises:
        SearchR3Error: the file cannot be read or holds none, or a key is too short; no key is shown.
    """
    found = [(KEYS, key) for key in environment.get(KEYS, "").split(",")]
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise SearchR3Error(
                f"{file}: cannot be read ({getattr(error, 'strerror', 'not UTF-8')}); write one key a line"
            ) from None
        if not any(line.strip() for line in lines):
            raise SearchR3Error(f"{file}: holds no API key; write one a line")
        found += [(str(file), line) for line in lines]
    keys = [(place, key.strip()) for place, key in found if key.strip()]
    for place, key in keys:
        if len(key) < LEAST_KEY:
            raise SearchR3Error(
                f"{place}: a key of {len(key)} characters is guessed soon; use {LEAST_KEY} or more, "
                "such as `openssl rand -hex 24` writes"
            )
    return frozenset(sha256(key.encode()).digest() for _, key in keys)
