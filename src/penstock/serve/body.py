"""From bytes to a checked struct, or a 400 (413, 415) that names the field.

Two passes: JSON to plain data, plain data to the struct. The second knows the bounds, the first is where unknown names
are seen and where an offending value can be looked up for the message.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import islice
from typing import Any, Final, TypeVar

import msgspec
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from penstock.errors import InvalidRequest
from penstock.serve.errors import Refusal
from penstock.serve.schema import Body
from penstock.serve.unsupported import UNSUPPORTED, refuse_unsupported

SomeBody = TypeVar("SomeBody", bound=Body)

MAX_UNKNOWN_NAMES: Final = 64
"""Of one body; those after are ignored uncounted."""
_MAX_SEARCHED: Final = 10_000
_NUL: Final = b"\\u0000"

_IN_BACKTICKS = re.compile(r"`\$(\[\.\.\.\]|[^`]*)`$")
_EXPECTED = re.compile(r"Expected (.+?)(?:, got `(.+)`)?")
_STEP = re.compile(r"\.([A-Za-z_][A-Za-z0-9_]*)|\[(\d+)\]|\[(\.\.\.)\]")


async def read_body(scope: Scope, receive: Receive, max_bytes: int) -> bytes:
    """The whole body. Raises Refusal 413 or 415; ClientDisconnect if the client left meanwhile.

    A body up to four times too large is read to its end and dropped, so that the client is listening when the answer
    comes; beyond that the answer comes at once and the connection closes.
    """
    _check_content_type(scope)
    parts: list[bytes] = []
    size, more = _declared_bytes(scope), True
    if size > 4 * max_bytes:
        raise _too_large(size, max_bytes)
    size = 0
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        part = message.get("body", b"")
        more = message.get("more_body", False)
        size += len(part)
        if size <= max_bytes:
            parts.append(part)
        else:
            parts.clear()
            if size > 4 * max_bytes:
                break
    if size > max_bytes:
        raise _too_large(size, max_bytes)
    return b"".join(parts)


def parse_body(raw: bytes, kind: type[SomeBody], on_unknown: Callable[[str], None]) -> SomeBody:
    """`raw` as `kind`. Calls `on_unknown` for each field name that nothing here knows, 64 times at most.

    Raises:
        InvalidRequest: not JSON, a wrong type, a value out of bounds, NUL, half a surrogate pair, or an option that is
            known but not supported.
    """
    try:
        data = msgspec.json.decode(raw)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InvalidRequest(
            field="body", value=raw[:60], why=f"not valid JSON ({error})", remedy="send one JSON object in UTF-8",
            code="invalid_json",
        ) from None  # fmt: skip
    if not isinstance(data, dict):
        raise InvalidRequest(
            field="body",
            value=data,
            why="the top level is not an object",
            remedy="send one JSON object",
            code="invalid_json",
        )
    # Without the escaped backslashes, what is left of the escape is one, and not a text that spells it.
    if _NUL in raw and _NUL in raw.replace(b"\\\\", b""):
        _refuse_nul(data)
    refuse_unsupported(data)
    known = {*kind.__struct_fields__, *UNSUPPORTED}
    for name in islice((name for name in data if name not in known), MAX_UNKNOWN_NAMES):
        on_unknown(name)
    try:
        return msgspec.convert(data, kind, str_keys=True)
    except (msgspec.ValidationError, ValueError, OverflowError, RecursionError) as error:
        raise _explain(str(error), data) from None


def _check_content_type(scope: Scope) -> None:
    # A page in a browser may post text or a form to a loopback port without asking anyone; JSON it may not. A missing
    # type is taken: small clients send none, and a page that does cannot read the answer.
    types = [value for name, value in scope["headers"] if name == b"content-type"]
    for kind in (value.split(b";", 1)[0].strip().lower() for value in types):
        if kind != b"application/json" and not kind.endswith(b"+json"):
            raise Refusal(
                415, "unsupported_media_type",
                f"Content-Type is {kind.decode('latin-1')[:80]!r}. Remedy: send 'Content-Type: application/json'",
            )  # fmt: skip


def _declared_bytes(scope: Scope) -> int:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value[:18])
    return 0


def _too_large(size: int, max_bytes: int) -> Refusal:
    return Refusal(
        413, "request_too_large",
        f"the body has {size:,} bytes or more; this server takes {max_bytes:,}. Remedy: a shorter prompt, or "
        "server.max_body_bytes",
    )  # fmt: skip


def _refuse_nul(data: dict[str, Any]) -> None:
    """Name the field that holds NUL. There is one: the search is for its name only, and so need not go on for long."""
    left = _MAX_SEARCHED
    for name, value in data.items():
        rest: list[Any] = [name, value]
        while rest:
            one = rest.pop()
            left -= 1
            if isinstance(one, str) and "\0" in one:
                raise InvalidRequest(
                    field=name, value=value, why="it contains NUL", remedy="remove the character U+0000"
                )
            if left < 0:
                raise InvalidRequest(
                    field="body", value="", why="it contains NUL", remedy="remove the character U+0000"
                )
            if isinstance(one, dict):
                rest += [*islice(one, left + 1), *islice(one.values(), left + 1)]
            elif isinstance(one, list):
                rest += islice(one, left + 1)


def _explain(message: str, data: dict[str, Any]) -> InvalidRequest:
    """msgspec says "Expected `int` <= 16 - at `$.n`"; clients get the field, the value they sent and the bound."""
    where = _IN_BACKTICKS.search(message)
    why = (message[: message.rfind(" - at ")] if where else message)[:300]
    path = where.group(1).lstrip(".") if where else ""
    missing = re.search(r"missing required field `(\w+)`", why)
    if missing:
        name = f"{path}.{missing.group(1)}" if path else missing.group(1)
        return InvalidRequest(
            field=name,
            value=None,
            why="the field is required",
            remedy="give it a value",
            code="missing_required_parameter",
        )
    value: Any = data
    for name, index, dots in _STEP.findall(where.group(1) if where else ""):
        if dots or not isinstance(value, dict | list):
            break
        value = value.get(name) if name and isinstance(value, dict) else value[int(index)] if index else None
    expected = _EXPECTED.fullmatch(why)
    if expected is None:
        return InvalidRequest(field=path or "body", value=value, why=why, remedy="a value that the API documents")
    allowed, got = expected.group(1).replace(" | null", "").replace("`", ""), expected.group(2)
    return InvalidRequest(
        field=path or "body", value=value, why=f"it is of type {got}" if got else "it is out of bounds", remedy=allowed,
        code="invalid_type" if got else "invalid_value",
    )  # fmt: skip
