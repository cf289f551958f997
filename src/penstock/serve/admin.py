"""Administration, on a listener of its own that is bound to 127.0.0.1 (`server.admin_port`); each route needs the scope
admin once keys are configured.

    GET  /admin/status               state, worker, queue, tenants, keys known
    POST /admin/drain                as the first SIGTERM: no new requests, the running ones finish, the process ends
    POST /admin/reset_prefix_cache   forget cached prefixes
    POST /admin/reload_keys          read the key file now

What else changes a running server (adapters, say) adds its routes to the router of `administration`.
"""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Depends, FastAPI
from starlette.responses import Response

from penstock.serve.adapters import adapter_routes
from penstock.serve.app import guard
from penstock.serve.auth import KeyRing
from penstock.serve.front import Front
from penstock.serve.replies import json_reply


def create_admin_app(app: FastAPI, drain: asyncio.Event) -> FastAPI:
    """The administration of `app`, as `create_app` made it. `drain` is set when somebody asks for the end."""
    front, keys = app.state.front, app.state.keys
    admin = FastAPI(
        title="Penstock administration", docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False
    )
    admin.include_router(administration(front, keys, drain))
    admin.include_router(adapter_routes(front, keys))

    @admin.get("/health")
    async def health() -> Response:
        return json_reply({"status": "alive", "state": front.service.state})

    guard(admin, front.metrics, local_only=True, keyless=not keys.locked)
    return admin


def administration(front: Front, keys: KeyRing, drain: asyncio.Event) -> APIRouter:
    """All routes under /admin."""
    router = APIRouter(prefix="/admin", dependencies=[Depends(keys.require("admin"))])
    service = front.service

    @router.get("/status")
    async def status() -> Response:
        now = service.statistics
        return json_reply(
            {
                "state": service.state,
                "model": service.info.name,
                "worker": {"pid": service.worker_pid, "restarts": service.restarts, "recovery_s": service.recovery_s},
                "requests": {"in_flight": service.in_flight, "running": now.running, "waiting": now.waiting},
                "kv_blocks": {
                    "free": now.free_blocks, "cached": now.cached_blocks, "held": now.held_blocks,
                    "total": now.total_blocks,
                },
                "queue": {
                    "requests": service.admission.requests, "prompt_tokens": service.admission.prompt_tokens,
                    "saturated": service.admission.saturated, "tenants": service.admission.by_tenant(),
                },
                "keys": keys.names(),
            }
        )  # fmt: skip

    @router.post("/drain")
    async def begin_drain() -> Response:
        drain.set()
        return json_reply({"draining": True, "in_flight": service.in_flight}, status=202)

    @router.post("/reset_prefix_cache")
    async def reset_prefix_cache() -> Response:
        before = service.statistics.cached_blocks
        service.reset_prefix_cache()
        return json_reply({"asked": True, "cached_blocks_before": before}, status=202)

    @router.post("/reload_keys")
    async def reload_keys() -> Response:
        return json_reply({"keys": keys.reload()})

    return router
