"""The app: which path leads where, who may use it, and how an error leaves.

`create_app` gets a running service and adds nothing that needs closing, so the app has no lifespan. Everything but
/health needs a key once keys are configured; the check hangs on the routers below, and a test walks all routes.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final

import msgspec
from fastapi import APIRouter, Depends, FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from penstock.deployment import Deployment, is_loopback
from penstock.errors import PenstockError, Unavailable
from penstock.observe.request_log import write_refusal
from penstock.observe.tracing import Tracer
from penstock.serve.auth import MODELS, KeyRing, keys_of
from penstock.serve.chat import chat_completions
from penstock.serve.completions import completions
from penstock.serve.cors import Cors
from penstock.serve.dashboard import live_router, page_router
from penstock.serve.direct import Answering, Direct, Endpoint
from penstock.serve.edge import Edge
from penstock.serve.embeddings import embeddings
from penstock.serve.errors import Refusal, wire
from penstock.serve.front import Front
from penstock.serve.http_protocol import Unread
from penstock.serve.messages import count_tokens, messages
from penstock.serve.metrics import CONTENT_TYPE, Metrics
from penstock.serve.replies import json_reply
from penstock.serve.responses import responses
from penstock.serve.text import text_routes

if TYPE_CHECKING:
    from penstock.runtime import ChatTemplate, Tokenizer
    from penstock.runtime.service import Service

_ANSWERS: Final[dict[str, Answering]] = {
    "/v1/chat/completions": chat_completions,
    "/v1/completions": completions,
    "/v1/messages": messages,
    "/v1/messages/count_tokens": count_tokens,
    "/v1/responses": responses,
    "/v1/embeddings": embeddings,
}
_ADMIN: Final = "it is on the administration's port, if server.admin_port opens one"
_KNOWN_ELSEWHERE: Final[dict[str, str]] = {
    "/v1/load_lora_adapter": _ADMIN,
    "/v1/unload_lora_adapter": _ADMIN,
    "/reset_prefix_cache": f"POST /admin/reset_prefix_cache; {_ADMIN}",
    "/flush_cache": f"POST /admin/reset_prefix_cache; {_ADMIN}",
    "/generate": "POST /v1/completions",
    "/completion": "POST /v1/completions",
    "/embedding": "POST /v1/embeddings",
}
"""Paths of other servers: where the same is here."""


def create_app(
    service: Service, deployment: Deployment, *, tokenizer: Tokenizer, template: ChatTemplate | None = None
) -> FastAPI:
    """The HTTP face of `service`.

    Args:
        tokenizer: that of the model served.
        template: its chat template; None: chat is answered with 400.
    """
    metrics = Metrics(service, version("penstock"))
    keys = keys_of(deployment)
    front = Front(service, deployment, metrics, tokenizer, template, keys)
    # The generated pages (/docs, /openapi.json) would be open routes, and describe none of the bodies.
    # Its own telemetry would look for providers on each request; spans are made by observe/tracing.py.
    # A path with a slash too many is none of ours: a redirect would name the Host as it came, and http behind a proxy's
    # TLS, and clients would send their key there.
    app = FastAPI(
        title="Penstock", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False,
        telemetry={"tracing": False, "metrics": False, "logs": False},
    )  # fmt: skip
    endpoints = [Endpoint(path, answer, front, keys) for path, answer in _ANSWERS.items()]
    app.include_router(_inference(front, keys, endpoints))
    app.include_router(text_routes(front, keys))
    app.include_router(_operations(front, keys))
    app.include_router(_open(service, deployment))
    if deployment.server.dashboard:
        app.include_router(page_router())
        app.include_router(live_router(metrics), dependencies=[Depends(keys.require("metrics"))])
    endpoint = deployment.server.trace_endpoint
    app.state.tracer = Tracer.to(endpoint, metrics.version) if endpoint is not None else None
    app.state.front, app.state.keys = front, keys  # what the administration (admin.py) shares with this
    app.add_middleware(Direct, endpoints=endpoints, on_error=_error_handler(metrics))
    if deployment.server.cors_origins:
        app.add_middleware(Cors, origins=deployment.server.cors_origins)
    local_only = not keys.locked and is_loopback(deployment.server.host)
    guard(
        app, metrics, local_only=local_only, keyless=not keys.locked, origins=deployment.server.cors_origins,
        header_bytes=deployment.server.limits.header_bytes,
    )  # fmt: skip
    return app


def guard(
    app: FastAPI, metrics: Metrics, *, local_only: bool, keyless: bool, origins: Sequence[str] = (),
    header_bytes: int = 32 * 1024,
) -> None:  # fmt: skip
    """Errors in one shape and counted, and the edge around everything; for both listeners."""
    app.state.unread = Unread(metrics.answered, metrics.failed)
    app.state.on_shortage = metrics.out_of_files
    for kind in (PenstockError, HTTPException, ClientDisconnect):
        app.add_exception_handler(kind, _error_handler(metrics))
    app.add_middleware(
        Edge, on_answer=metrics.answered, on_error=metrics.failed, local_only=local_only, keyless=keyless,
        origins=origins, header_bytes=header_bytes,
    )  # fmt: skip


def _inference(front: Front, keys: KeyRing, endpoints: Sequence[Endpoint]) -> APIRouter:
    router = APIRouter()
    started = int(time.time())

    for endpoint in endpoints:
        router.post(endpoint.path)(endpoint.answer)

    @router.get("/v1/models", dependencies=[Depends(keys.tenant)])
    async def models(request: Request) -> Response:
        allowed = request.scope.get(MODELS)
        shown = [name for name in front.names() if allowed is None or name in allowed]
        return json_reply({"object": "list", "data": [_model(front, started, name) for name in shown]})

    @router.get("/v1/models/{name:path}", dependencies=[Depends(keys.tenant)])
    async def model(name: str, request: Request) -> Response:
        front.check_model(name, request.scope.get(MODELS))
        return json_reply(_model(front, started, name))

    return router


def _operations(front: Front, keys: KeyRing) -> APIRouter:
    router = APIRouter()
    service, deployment = front.service, front.deployment

    @router.get("/ready", dependencies=[Depends(keys.anyone)])
    async def ready(request: Request) -> Response:
        now = service.statistics
        status = "saturated" if service.state == "ready" and service.admission.saturated else service.state
        body = {"status": status, "restarts": service.restarts, "running": now.running, "waiting": now.waiting}
        if status == "ready":
            return json_reply(body)
        if status != "saturated":
            return _not_now(request, body, service.unavailable())
        queue, most = service.admission, deployment.server.queue
        text = (
            f"the queue is full: {queue.requests} of {most.max_requests} requests and {queue.prompt_tokens} of "
            f"{most.max_prompt_tokens} prompt tokens wait for a first token"
        )
        return _not_now(request, body, Unavailable(text, retry_after_s=service.retry_after_s))

    @router.get("/metrics", dependencies=[Depends(keys.require("metrics"))])
    async def metrics() -> Response:
        return Response(front.metrics.exposition(), headers={"content-type": CONTENT_TYPE})

    return router


def _open(service: Service, deployment: Deployment) -> APIRouter:
    router = APIRouter()

    @router.get("/health")
    async def health(request: Request) -> Response:
        # A busy server is not a dead one: only work that waits while no step ends counts. A restart has its own time.
        most_s = deployment.server.step_deadline
        stalled_s = service.stalled_s
        stalled = service.state == "ready" and stalled_s > most_s
        if service.state == "stopped" or stalled:
            error = service.unavailable()
            if stalled:
                text = f"requests wait, and no step was made for {stalled_s:.1f} s; {most_s:g} s may pass"
                error = Unavailable(text, retry_after_s=service.retry_after_s)
            body = {"status": "stalled" if stalled else "stopped", "seconds": round(stalled_s, 1)}
            return _not_now(request, body, error)
        return json_reply({"status": "alive", "state": service.state})

    return router


def _not_now(request: Request, body: dict[str, Any], error: Unavailable) -> Response:
    """503: `body`, and beside it the error as any request would get it. No line in the log: probes come for ever."""
    answer = wire(error, request.scope["request_id"])
    return json_reply(body | msgspec.json.decode(answer.body), status=503, headers=list(answer.headers[1:]))


def _model(front: Front, started: int, name: str) -> dict[str, Any]:
    """The model, or one of its adapters, whose parent it is."""
    info = front.service.info
    return {
        "id": name,
        "object": "model",
        "created": started,
        "owned_by": "penstock",
        "root": info.name,
        "parent": None if name == info.name else info.name,
        "max_model_len": info.max_sequence_tokens,
        "vocab_size": info.vocab_size,
    }


def _error_handler(metrics: Metrics) -> Callable[[Request, Exception], Awaitable[Response]]:
    async def handle(request: Request, error: Exception) -> Response:
        if isinstance(error, ClientDisconnect):
            return Response(status_code=499)  # nobody reads it; the number is for the metric
        if isinstance(error, HTTPException):
            if error.status_code == 405 and request.method == "OPTIONS":
                # Asking is allowed; that a page of another origin may do it is said by CORS alone (cors.py).
                return Response(status_code=204, headers={"allow": _allowed(error)})
            error = _from_routing(request, error)
        answer = wire(error, request.scope["request_id"])
        metrics.failed(answer.reason, answer.status)
        route = getattr(request.scope.get("route"), "path", "")
        write_refusal(request.scope["request_id"], route, answer.status, answer.reason)
        response = Response(answer.body, status_code=answer.status)
        response.raw_headers.extend(answer.headers)
        return response

    return handle


def _allowed(error: HTTPException) -> str:
    """The methods of a path. HEAD is none of the router's: the edge answers it as GET."""
    methods = (error.headers or {}).get("Allow", "").split(", ")
    return ", ".join(sorted({*methods, "HEAD"} if "GET" in methods else methods))


def _from_routing(request: Request, error: HTTPException) -> Refusal:
    if error.status_code == 405:
        allow = _allowed(error)
        return Refusal(
            405, "method_not_allowed", f"{request.method} is not for this path. Remedy: {allow}", allow=allow
        )
    if error.status_code == 404:
        return Refusal(
            404, "not_found", f"nothing at {request.url.path[:200]!r}. Remedy: "
            + _KNOWN_ELSEWHERE.get(request.url.path, "see GET /v1/models for a start"),
        )  # fmt: skip
    return Refusal(error.status_code, "http_error", str(error.detail))
