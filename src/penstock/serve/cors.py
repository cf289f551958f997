"""Cross-origin requests from web pages. Off unless `server.cors_origins` names who may.

Starlette's middleware knows the protocol. What is ours: an answer's way out goes past the layers (edge.py), so its
headers are added on that way, too.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Final

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

EXPOSED: Final = (
    "x-request-id", "retry-after", "retry-after-ms",
    *(f"x-ratelimit-{what}-{of}" for what in ("limit", "remaining", "reset") for of in ("requests", "tokens")),
)  # fmt: skip
"""What scripts of a page may read beside the body."""


class Cors(CORSMiddleware):
    """Answers preflights and marks answers for the origins named; pages of others get no mark, and see nothing."""

    def __init__(self, app: ASGIApp, origins: Sequence[str]) -> None:
        super().__init__(
            app, allow_origins=origins, allow_methods=("GET", "POST"), allow_headers=("*",), expose_headers=EXPOSED,
            max_age=600,
        )  # fmt: skip

    async def simple_response(self, scope: Scope, receive: Receive, send: Send, request_headers: Headers) -> None:
        marked = functools.partial(self.send, send=send, request_headers=request_headers)
        scope["penstock.send"] = marked
        await self.app(scope, receive, marked)
