"""Where a server is, and the key for it: neither is ever told to another."""

from __future__ import annotations

import ipaddress
import os
import re
from dataclasses import dataclass, field

import httpx2

from searchr3.errors import EndpointError

KEY_VARIABLE = "OPENAI_API_KEY"

_VERSION = re.compile(r"/v\d[^/]*(/|$)")


@dataclass(frozen=True)
class Key:
    """A secret and the environment variable that it came from. It never shows itself."""

    variable: str
    value: str = field(repr=False)

    def hide(self, text: str) -> str:
        return text.replace(self.value, "***")


def find_key(url: str, variable: str | None = None) -> Key | None:
    """The key for a server, from the environment.

    Without `variable` it is that of `OPENAI_API_KEY`, if that is set and nobody on the way could read it:
    `url` is https, or on this machine.

    Raises:
        EndpointError: `variable` is not set, or what is in it cannot be sent.
    """
    name = variable or KEY_VARIABLE
    value = os.environ.get(name, "").strip()
    if variable and not value:  # the name is not repeated: it may be the key itself, by mistake
        raise EndpointError(
            "--key-variable: there is no environment variable of that name; name the one that holds the key"
        )
    if not value or not (variable or url.startswith("https:") or is_local(url)):
        return None
    if not re.fullmatch(r"[!-~]+", value):
        raise EndpointError(f"{name}: holds a space or a letter that no key has; set it to the key alone")
    return Key(name, value)


def address(base: str, path: str, option: str) -> str:
    """The address of `path`, such as "/chat/completions", of a base address with or without its version.

    >>> address("http://localhost:8000", "/embeddings", "--endpoint")
    'http://localhost:8000/v1/embeddings'
    >>> address("https://example.org/api/v4/", "/embeddings", "--endpoint")
    'https://example.org/api/v4/embeddings'

    Args:
        option: where the user gave the base address, for errors.

    Raises:
        EndpointError: it is no such address, or holds what may be a key.
    """
    try:
        url = httpx2.URL(base.strip())
    except httpx2.InvalidURL:
        url = httpx2.URL("")
    if url.scheme not in ("http", "https") or not url.host or (url.port or 0) > 65_535:
        # not repeated here: it may hold a key
        raise EndpointError(f"{option}: no web address; write it as http://localhost:8000 or https://…/v1")
    if url.userinfo or url.query or url.fragment:
        raise EndpointError(
            f"{option}: leave out what stands before an @ or after a ? or #; "
            f"a key goes into the environment variable {KEY_VARIABLE}"
        )
    there = url.path.rstrip("/")
    if not there.endswith(path):
        there += path if _VERSION.search(there) else f"/v1{path}"
    return str(url.copy_with(path=there))


def is_local(url: str) -> bool:
    """Whether the address is on this machine."""
    host = httpx2.URL(url).host
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
