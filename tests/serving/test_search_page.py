"""The files of the search page: who gets them, and what a browser lets them do."""

import re
from collections.abc import Callable
from typing import Any
from urllib.parse import urljoin

import httpx2
import pytest

from searchr3.serving.search_page import PAGE, POLICY
from searchr3.serving.settings import KEYS, read_keys

from .conftest import KEY, Patient


@pytest.fixture
def client(serving: Callable[..., Any], patient: Patient) -> Any:
    """Of a server that wants a key."""
    with serving(patient, bounds={"keys": read_keys({KEYS: KEY})}) as client:
        yield client


def test_the_page_needs_no_key_and_may_do_nothing_else(client: httpx2.Client) -> None:
    kinds = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
    for path, (name, _) in PAGE.items():
        response = client.get(path)
        assert response.status_code == 200
        assert response.headers["content-type"].split(";")[0] == kinds[name.rpartition(".")[2]]
        assert response.headers["content-security-policy"] == POLICY
        assert response.headers["x-content-type-options"] == "nosniff"
    rules = dict(rule.split(" ", 1) for rule in POLICY.split("; "))
    assert rules["default-src"] == "'none'" and "unsafe" not in POLICY
    for rule in ("base-uri", "form-action", "frame-ancestors"):
        assert rules[rule] == "'none'"


def test_the_page_is_whole_and_of_this_server_alone(client: httpx2.Client) -> None:
    html = client.get("/").text
    assert not re.search(r"<style|\sstyle=|\son\w+=", html)
    assert not re.search(r"<script(?![^>]*\ssrc=)", html)
    asked_for = re.findall(r'<(?:link|script)\b[^>]*(?:href|src)="([^"]+)"', html)
    scripts = [path for path in PAGE if path.endswith(".js")]
    imported = [
        urljoin(path, name)
        for path in scripts
        for name in re.findall(r'from "([^"]+)"', client.get(path).text)
    ]
    assert {urljoin("/", name) for name in asked_for} | {*imported, "/"} == set(PAGE)
    assert not re.search(r"url\(|@import", client.get("/static/search.css").text)
    asked = client.get("/openapi.json").json()["components"]["schemas"]["SearchRequest"]["properties"]
    assert f'name="k" type="number" min="1" max="{asked["k"]["maximum"]:.0f}"' in html
    for needed in ('lang="en"', "<noscript>", 'name="viewport"', "<label", 'role="status"'):
        assert needed in html


@pytest.mark.parametrize(
    "path",
    ["/static/", "/static/other.js", "/static/..%2fapp.py", "/static/%2e%2e/app.py", "/static/search.html"],
)
def test_there_is_nothing_else_to_get(client: httpx2.Client, path: str) -> None:
    """A path that is not one of the page's is not open, and with the key is nothing."""
    assert client.get(path).status_code == 401
    response = client.get(path, headers={"Authorization": f"Bearer {KEY}"})
    assert response.status_code == 404 and "import" not in response.text


def test_the_page_is_only_got(client: httpx2.Client) -> None:
    assert client.post("/", headers={"Authorization": f"Bearer {KEY}"}).status_code == 405
    assert "/" not in client.get("/openapi.json").json()["paths"]
