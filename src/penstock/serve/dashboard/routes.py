"""The page's files, read once at start, and the numbers it draws."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from importlib.resources import files
from typing import Final

import msgspec
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from penstock.serve.metrics import Metrics
from penstock.serve.metrics.live import live

PAGES: Final = {
    "/": "index.html",
    **{f"/dashboard/{name}": name for name in
       ("style.css", "app.js", "api.js", "chat.js", "chart.js", "format.js", "live.js", "icon.svg")},
}  # fmt: skip
"""Path to file: all there is, so no path of a client's ever reaches a file system."""

_TYPES: Final = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
"""Nothing from elsewhere, nothing inline, no frame around it: text that a model writes can become neither."""
_HEADERS: Final = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-cache",
}


def page_router() -> APIRouter:
    """The files. Open on purpose: they are the same on every server."""
    router = APIRouter()
    folder = files(__package__) / "static"
    for path, name in PAGES.items():
        content = (folder / name).read_bytes()
        tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
        kind = f"{_TYPES[name.rpartition('.')[2]]}; charset=utf-8"
        router.add_api_route(path, _file(content, {**_HEADERS, "content-type": kind, "etag": tag}), methods=["GET"])
    return router


def live_router(metrics: Metrics) -> APIRouter:
    """GET /dashboard/live; to be included with the guard that /metrics has."""
    router = APIRouter()

    @router.get("/dashboard/live")
    async def counts() -> Response:
        headers = {"cache-control": "no-store", "content-type": "application/json"}
        return Response(msgspec.json.encode(live(metrics)), headers=headers)

    return router


def _file(content: bytes, headers: dict[str, str]) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        if request.headers.get("if-none-match") == headers["etag"]:
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers)

    return answer
