"""The endpoints that generate, reached past the router: what lies between costs as much as reading the request does.

The same endpoints hang on the router, too, which answers for other methods and for paths that are not quite theirs.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from penstock.errors import PenstockError
from penstock.serve.auth import KeyRing
from penstock.serve.front import Front

Answering = Callable[[Front, Request, str], Awaitable[Response]]
OnError = Callable[[Request, Exception], Awaitable[Response]]


class Endpoint:
    """One path that is asked with POST, by those whose key may use the model."""

    __slots__ = ("_answer", "_front", "_keys", "path")

    def __init__(self, path: str, answer: Answering, front: Front, keys: KeyRing) -> None:
        self.path = path
        """What logs and metrics call it."""
        self._answer, self._front, self._keys = answer, front, keys

    async def answer(self, request: Request) -> Response:
        """Raises Refusal 401, 403, and whatever the endpoint itself raises."""
        return await self._answer(self._front, request, await self._keys.tenant(request))


class Direct:
    """Wraps the app. A POST to exactly the path of an endpoint goes to it, everything else to the app."""

    def __init__(self, app: ASGIApp, endpoints: Sequence[Endpoint], on_error: OnError) -> None:
        """`on_error` makes an answer of what the app's own error handlers take."""
        self._app, self._on_error = app, on_error
        self._endpoints = {one.path: one for one in endpoints}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        endpoint = self._endpoints.get(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if endpoint is None:
            await self._app(scope, receive, send)
            return
        scope["route"] = endpoint
        request = Request(scope, receive)
        try:
            answer = await endpoint.answer(request)
        except (PenstockError, HTTPException, ClientDisconnect) as error:
            answer = await self._on_error(request, error)
        await answer(scope, receive, send)
