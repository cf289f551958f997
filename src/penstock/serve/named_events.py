"""What the other two wire formats share (messages.py, responses.py): named events, and the words of an answer."""

from __future__ import annotations

from typing import Any

from penstock.errors import InvalidRequest
from penstock.serve.choice import Choice, Piece
from penstock.serve.events import json_bytes
from penstock.serve.tools.parts import Text


def event(name: str, fields: dict[str, Any]) -> bytes:
    """`event: name` and its data, whose `type` is the name again."""
    return b"event: " + name.encode() + b"\ndata: " + json_bytes({"type": name} | fields) + b"\n\n"


def words_of(choice: Choice, piece: Piece) -> str:
    """The part of a piece that is neither reasoning nor a call."""
    if choice.reader is None:
        return piece.text
    return "".join(part.text for part in piece.parts if isinstance(part, Text))


def all_words_of(choice: Choice) -> str:
    """The same of all pieces so far."""
    return choice.text if choice.reader is None else "".join(choice.reader.words)


def refuse(field: str, value: object, remedy: str) -> InvalidRequest:
    """The error for an option of these APIs that would change the answer and is not there."""
    return InvalidRequest(
        field=field, value=value, why="this server does not support it here", remedy=remedy,
        code="unsupported_parameter",
    )  # fmt: skip
