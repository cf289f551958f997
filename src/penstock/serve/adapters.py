"""Loading and unloading adapters while the server runs, on the administration's listener, under vLLM's names.

    POST /v1/load_lora_adapter     {"lora_name": "sql", "lora_path": "sql-v2"}
    POST /v1/unload_lora_adapter   {"lora_name": "sql"}

Paths are taken below `model.adapter_directory` and lead nowhere else. Unloading answers once no request has the adapter
any more; requests that name it from then on get 404.
"""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends
from msgspec import Meta
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from penstock.serve.auth import KeyRing
from penstock.serve.errors import Refusal
from penstock.serve.front import Front
from penstock.serve.schema import Named

Name = Annotated[str, Meta(min_length=1, max_length=128)]


class LoadBody(Named, frozen=True, kw_only=True):
    """POST /v1/load_lora_adapter."""

    lora_name: Name
    lora_path: Annotated[str, Meta(min_length=1, max_length=4096)]
    load_inplace: bool | None = None
    """Take the place of a loaded adapter of this name: requests that run keep the old one to their end."""


class UnloadBody(Named, frozen=True, kw_only=True):
    """POST /v1/unload_lora_adapter."""

    lora_name: Name
    lora_int_id: int | None = None
    """vLLM's own number of it; a name is enough here."""


def adapter_routes(front: Front, keys: KeyRing) -> APIRouter:
    """Both routes; each needs the scope admin once keys are configured."""
    router = APIRouter(dependencies=[Depends(keys.require("admin"))])
    service = front.service

    @router.post("/v1/load_lora_adapter")
    async def load(request: Request) -> Response:
        body, _ = await front.body(request, LoadBody)
        await service.adapters.load(
            body.lora_name, body.lora_path, taken=service.info.name, in_place=bool(body.load_inplace)
        )
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")

    @router.post("/v1/unload_lora_adapter")
    async def unload(request: Request) -> Response:
        body, _ = await front.body(request, UnloadBody)
        if service.adapters.handle(body.lora_name) is None:
            loaded = ", ".join(one.name for one in service.adapters.listed()) or "none is loaded"
            raise Refusal(
                404, "adapter_not_found", f"no adapter {body.lora_name!r} here. Remedy: one of: {loaded}",
                param="lora_name",
            )  # fmt: skip
        await service.adapters.unload(body.lora_name)
        return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' removed successfully.")

    return router
