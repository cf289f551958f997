"""From bytes to a checked struct, or a 400 (413, 415) that names the field.

Two passes over the bytes: the first finds the top-level fields and makes nothing of them (unknown names are seen there,
and an offending value is looked up there for the message); the second makes the struct and knows the bounds. So what
no field of the struct holds is never made into objects, however large. The cost is bounded by `server.max_body_bytes`:
8 MB made to be slow take some 0.3 s (tests/serve/test_body.py says which).
"""

from __future__ import annotations

import gc
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import islice
from typing import Any, Final, TypeVar, cast

import msgspec
import msgspec.inspect as types
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope

from penstock.errors import InvalidRequest, Overloaded
from penstock.serve.errors import Refusal
from penstock.serve.schema import Named
from penstock.serve.unsupported import UNSUPPORTED, refuse_unsupported

SomeBody = TypeVar("SomeBody", bound=Named)

MAX_UNKNOWN_NAMES: Final = 64
"""Of one body; those after are ignored uncounted."""
_MAX_READ_BYTES: Final = 64 * 2**10
"""Of one field, where it is read beside the struct."""
_LONG_LISTS: Final = {"messages": 65_536, "prompt": 2**20, "tokens": 2**20, "input": 2**20}
_READ_FIRST: Final = frozenset({*UNSUPPORTED, "n", "tools", "tool_choice"})
"""What `refuse_unsupported` looks at."""
_fields: Final = msgspec.json.Decoder(dict[str, msgspec.Raw])
_items: Final = msgspec.json.Decoder(list[msgspec.Raw])
_NO_BOUNDS: Final[Mapping[str, int]] = {}
_NUL: Final = b"\\u0000"

_PAIR = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F]")
_HALF = re.compile(rb"\\u[dD][89a-fA-F]")
_IN_BACKTICKS = re.compile(r"`\$(\[\.\.\.\]|[^`]*)`$")
_EXPECTED = re.compile(r"Expected (.+?)(?:, got `(.+)`)?")
_STEP = re.compile(r"\.([A-Za-z_][A-Za-z0-9_]*)|\[(\d+)\]|\[(\.\.\.)\]")


class BodyRoom:
    """The bytes that all bodies under way may come to; one event loop's. How long one may take: http_protocol.py.

    `wait_s`: asked, where there is no room, when to come back.
    """

    def __init__(self, max_bytes: float, wait_s: Callable[[], float]) -> None:
        self.max_bytes, self.wait_s, self.held = max_bytes, wait_s, 0

    def take(self, size: int) -> None:
        """Raises Overloaded: there is no room for `size` bytes more."""
        if self.held + size > self.max_bytes:
            raise Overloaded(
                f"{self.held:,} bytes of requests are being read, and {self.max_bytes:,} may; this one has {size:,}",
                retry_after_s=self.wait_s(),
            )  # fmt: skip
        self.held += size


async def read_body(scope: Scope, receive: Receive, max_bytes: int, room: BodyRoom | None = None) -> bytes:
    """The whole body. Raises Refusal 413 or 415; Overloaded: `room` is full; ClientDisconnect: the client left.

    A body up to four times too large is read to its end and dropped, so that the client is listening when the answer
    comes; beyond that the answer comes at once and the connection closes.
    """
    _check_headers(scope)
    parts: list[bytes] = []
    size, more = _declared_bytes(scope), True
    if size > 4 * max_bytes:
        raise _too_large(size, max_bytes)
    size = 0
    taken = 0
    try:
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            part = message.get("body", b"")
            more = message.get("more_body", False)
            size += len(part)
            if size <= max_bytes:
                if room is not None:
                    room.take(len(part))
                    taken += len(part)
                parts.append(part)
            else:
                parts.clear()
                if size > 4 * max_bytes:
                    break
    finally:
        if room is not None:
            room.held -= taken
    if size > max_bytes:
        raise _too_large(size, max_bytes)
    return b"".join(parts)


def parse_body(
    raw: bytes, kind: type[SomeBody], on_unknown: Callable[[str], None], most_bytes: Mapping[str, int] = _NO_BOUNDS
) -> SomeBody:
    """`raw` as `kind`. Calls `on_unknown` for each field name that nothing here knows, 64 times at most.

    `most_bytes`: of JSON, by field.

    Raises:
        InvalidRequest: not JSON, a field with too many bytes, a wrong type, a value out of bounds, NUL, half a
            surrogate pair, or an option that is known but not supported.
    """
    if not gc.isenabled():
        return _parse(raw, kind, on_unknown, most_bytes)
    gc.disable()  # as no_collection does, which costs a short body as much as reading it
    try:
        return _parse(raw, kind, on_unknown, most_bytes)
    finally:
        gc.enable()


def _parse(
    raw: bytes, kind: type[SomeBody], on_unknown: Callable[[str], None], most_bytes: Mapping[str, int]
) -> SomeBody:
    try:
        raw.decode()  # what is skipped below has to be text, too
        fields = _fields.decode(raw)
        for name in _LONG_LISTS.keys() & fields.keys():
            _check_length(name, fields[name])
        for name in most_bytes.keys() & fields.keys():
            _check_bytes(name, fields[name], most_bytes[name])
    except msgspec.ValidationError:
        raise _no_json(raw, "the top level is not an object") from None
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise _no_json(raw, f"not valid JSON ({error})") from None
    # Without the escaped backslashes, what is left of the escape is one, and not a text that spells it.
    if _NUL in raw and _NUL in raw.replace(b"\\\\", b""):
        _refuse_nul(fields)
    first = _READ_FIRST & fields.keys()
    if "lora_path" in first and "lora_path" in kind.__struct_fields__:  # the administration takes it
        first -= {"lora_path"}
    refuse_unsupported({name: _value(fields[name]) for name in first})
    known = _known(kind)
    if not known.issuperset(fields):
        for name in islice((name for name in fields if name not in known), MAX_UNKNOWN_NAMES):
            on_unknown(name)
    try:
        return cast("SomeBody", _decoder(kind).decode(raw))
    except msgspec.ValidationError as error:
        raise _explain(str(error), fields, kind) from None
    except (msgspec.MsgspecError, ValueError, OverflowError, RecursionError) as error:
        raise _no_json(raw, f"not valid JSON ({error})") from None


def _no_json(raw: bytes, why: str) -> InvalidRequest:
    if _HALF.search(_PAIR.sub(b"", raw.replace(b"\\\\", b""))):
        why = "it has half a surrogate pair: \\ud800 to \\udbff without \\udc00 to \\udfff behind it, or that alone"
    return InvalidRequest(
        field="body", value=raw[:60], why=why, remedy="send one JSON object in UTF-8", code="invalid_json"
    )


@contextmanager
def no_collection() -> Iterator[None]:
    """Parsing without the collector: of a million small lists it would walk over all of them again and again."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


_type_of: Final = cache(types.type_info)


def _choices(kind: type[Named], steps: Sequence[tuple[str, str, str]]) -> list[str]:
    """The values of the one place in a body of `kind` where few are allowed."""
    found = [_type_of(kind)]
    for name, _, _ in steps:
        inner: list[types.Type] = []
        for one in _all_of(found):
            if name and isinstance(one, types.StructType):
                inner += [field.type for field in one.fields if field.encode_name == name]
            elif not name and isinstance(one, types.ListType):
                inner.append(one.item_type)
        found = inner
    return [str(value) for one in _all_of(found) if isinstance(one, types.LiteralType) for value in one.values]


def _all_of(kinds: Sequence[types.Type]) -> list[types.Type]:
    return [one for kind in kinds for one in (kind.types if isinstance(kind, types.UnionType) else (kind,))]


@cache
def _known(kind: type[Named]) -> frozenset[str]:
    """Names that a body of this kind may have."""
    return frozenset({*kind.__struct_fields__, *UNSUPPORTED})


@cache
def _decoder(kind: type[Named]) -> msgspec.json.Decoder[Named]:
    return msgspec.json.Decoder(kind)


def _value(raw: msgspec.Raw) -> Any:
    """A field as plain data; of a large one only how large it is."""
    if len(memoryview(raw)) > _MAX_READ_BYTES:
        return f"<{len(memoryview(raw)):,} bytes of JSON>"
    try:
        return msgspec.json.decode(raw)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return bytes(memoryview(raw)[:60]).decode("utf-8", "replace")


def _check_length(name: str, raw: msgspec.Raw) -> None:
    """Refuse a list of far too many items while it is still text: made into objects it is twenty times as large."""
    if len(memoryview(raw)) <= _MAX_READ_BYTES or not (data := bytes(raw)).startswith(b"["):
        return
    most, commas = _LONG_LISTS[name], data.count(b",")
    if commas < most:
        return
    flat = b'"' not in data and data.count(b"[") == 1
    count = commas + 1 if flat else len(_items.decode(data))
    if count > most:
        raise InvalidRequest(
            field=name, value=f"a list of {count}", why=f"at most {most} items are allowed", remedy="fewer items"
        )


def _check_bytes(name: str, raw: msgspec.Raw, most: int) -> None:
    size = len(memoryview(raw))
    if size > most:
        raise InvalidRequest(
            field=name, value="", why=f"it has {size:,} bytes of JSON", remedy=f"at most {most:,} bytes"
        )


def _check_headers(scope: Scope) -> None:
    # A page in a browser may post text or a form to a loopback port without asking anyone; JSON it may not. A missing
    # type is taken, as small clients send none; a page that sends none is told by its origin (edge.py).
    for name, value in scope["headers"]:
        if name == b"content-encoding" and (coding := value.strip().lower()) not in (b"", b"identity"):
            raise Refusal(
                415, "unsupported_content_encoding",
                f"the body is encoded as {coding.decode('latin-1')[:80]!r}, and this server decompresses nothing. "
                "Remedy: send it as it is, without Content-Encoding",
            )  # fmt: skip
        if name == b"transfer-encoding" and (coding := value.strip().lower()) != b"chunked":
            raise Refusal(
                400, "invalid_http",
                f"the transfer coding is {coding.decode('latin-1')[:80]!r}, and this server knows chunked alone. "
                "Remedy: send the body as it is",
            )  # fmt: skip
        if name != b"content-type":
            continue
        kind = value.split(b";", 1)[0].strip().lower()
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


def _refuse_nul(fields: dict[str, msgspec.Raw]) -> None:
    """Name the field that holds NUL; there is one."""
    for name, raw in fields.items():
        if "\0" in name or _NUL in bytes(raw).replace(b"\\\\", b""):
            raise InvalidRequest(
                field=name, value=_value(raw), why="it contains NUL", remedy="remove the character U+0000"
            )
    raise InvalidRequest(field="body", value="", why="it contains NUL", remedy="remove the character U+0000")


def _explain(message: str, fields: dict[str, msgspec.Raw], kind: type[Named]) -> InvalidRequest:
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
    first, *steps = _STEP.findall(where.group(1)) if where else [("", "", "")]
    value: Any = _value(fields[first[0]]) if first[0] in fields else None
    for name, index, dots in steps:
        if dots or not isinstance(value, dict | list):
            break
        if name:
            value = value.get(name) if isinstance(value, dict) else None
        else:
            value = value[int(index)] if isinstance(value, list) and int(index) < len(value) else None
    expected = _EXPECTED.fullmatch(why)
    if expected is None and why.startswith("Invalid enum value"):
        allowed = ", ".join(_choices(kind, [first, *steps]))
        return InvalidRequest(field=path, value=value, why="it is none of the values allowed", remedy=allowed)
    if expected is None:
        return InvalidRequest(field=path or "body", value=value, why=why, remedy="a value that the API documents")
    allowed, got = expected.group(1).replace(" | null", "").replace("`", ""), expected.group(2)
    return InvalidRequest(
        field=path or "body", value=value, why=f"it is of type {got}" if got else "it is out of bounds", remedy=allowed,
        code="invalid_type" if got else "invalid_value",
    )  # fmt: skip
