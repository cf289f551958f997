"""Plain answers in JSON."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.responses import Response


def json_reply(body: Any, *, status: int = 200, headers: list[tuple[bytes, bytes]] | None = None) -> Response:
    """`body` as JSON; `bytes` are JSON already."""
    encoded = body if isinstance(body, bytes) else msgspec.json.encode(body)
    response = Response(encoded, status_code=status, media_type="application/json")
    response.raw_headers.extend(headers or ())
    return response
