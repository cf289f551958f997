"""What the other two wire formats share (messages.py, responses.py): named events, and how an option is refused."""

from __future__ import annotations

from typing import Any

from penstock.errors import InvalidRequest
from penstock.serve.events import json_bytes


def event(name: str, fields: dict[str, Any]) -> bytes:
    """`event: name` and its data, whose `type` is the name again."""
    return b"event: " + name.encode() + b"\ndata: " + json_bytes({"type": name} | fields) + b"\n\n"


def refuse(field: str, value: object, remedy: str) -> InvalidRequest:
    """The error for an option of these APIs that would change the answer and is not there."""
    return InvalidRequest(
        field=field, value=value, why="this server does not support it here", remedy=remedy,
        code="unsupported_parameter",
    )  # fmt: skip
