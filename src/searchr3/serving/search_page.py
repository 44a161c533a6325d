"""The search page: plain files of this package, which tell nothing of documents or of use and need no key.

What they show comes from `/health`, `/search` and `/v1/embeddings`, which the page asks as any client does.
"""

from __future__ import annotations

from importlib.resources import files

from fastapi import APIRouter
from starlette.responses import Response

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
"""Only the page's own files and this server; where the browser knows trusted types, no HTML from a script."""
PAGE = {
    "/": ("search.html", "text/html"),
    "/static/search.css": ("search.css", "text/css"),
    "/static/search.js": ("search.js", "text/javascript"),
    "/static/client.js": ("client.js", "text/javascript"),
    "/favicon.ico": ("icon.svg", "image/svg+xml"),
}
"""Every path of the page, with its file and what that is: no path of a request is ever opened."""

router = APIRouter(include_in_schema=False)


def _add(path: str, name: str, kind: str) -> None:
    content = files("searchr3.serving").joinpath("static", name).read_bytes()

    @router.get(path)
    async def file() -> Response:
        return Response(content, media_type=kind, headers={"content-security-policy": POLICY})


for _path, (_name, _kind) in PAGE.items():
    _add(_path, _name, _kind)
