"""Bytes of server-sent events. What is the same in every chunk of an answer is encoded once, not per token."""

from __future__ import annotations

from typing import Any, Final

import msgspec

DONE: Final = b"data: [DONE]\n\n"
_encode = msgspec.json.Encoder().encode


def json_bytes(value: Any) -> bytes:
    r"""Compact JSON that no line-splitting reader cuts in two.

    JSON allows U+0085, U+2028 and U+2029 as they are, but some clients split the stream there.

    >>> json_bytes(["a\u2028b"])
    b'["a\\u2028b"]'
    """
    return _in_one_line(_encode(value))


def json_text(text: str) -> bytes:
    """The same for a string: this is called for every token."""
    encoded = _encode(text)
    return encoded if text.isascii() else _in_one_line(encoded)


def _in_one_line(encoded: bytes) -> bytes:
    if not encoded.isascii():
        for raw, escaped in ((b"\xc2\x85", b"\\u0085"), (b"\xe2\x80\xa8", b"\\u2028"), (b"\xe2\x80\xa9", b"\\u2029")):
            if raw in encoded:
                encoded = encoded.replace(raw, escaped)
    return encoded


class ChunkFrame:
    """The constant parts of one answer's chunks: `data: {"id": ..., "choices": [` and what closes it."""

    __slots__ = ("_bare", "_head", "_meta", "_usage", "close")

    def __init__(self, *, id: str, kind: str, created: int, model: str, fingerprint: str, usage: bool) -> None:
        meta = _encode(
            {"id": id, "object": kind, "created": created, "model": model, "system_fingerprint": fingerprint}
        )
        self._meta, self._usage = meta[:-1], usage
        self._bare = b"data: " + self._meta + b',"choices":['
        self._head = self._bare + b'{"index":'
        self.close = b'}],"usage":null}\n\n' if usage else b"}]}\n\n"
        """Ends the choice, the list and the object."""

    def prefix(self, index: int, opening: bytes) -> bytes:
        """Up to the point where a choice's own text begins; keep it per choice."""
        return self._head + b"%d" % index + opening

    def close_with(self, fields: dict[str, Any]) -> bytes:
        """As `close`, with more fields at the top level."""
        return self.close[:2] + b"," + json_bytes(fields)[1:-1] + self.close[2:] if fields else self.close

    def ending(self, usage: dict[str, Any]) -> bytes:
        """The usage chunk if it was asked for, and [DONE]."""
        if not self._usage:
            return DONE
        return self._bare + b'],"usage":' + _encode(usage) + b"}\n\n" + DONE

    def whole(self, fields: dict[str, Any]) -> bytes:
        """Not a chunk: the same constant fields and these, as one JSON body."""
        return self._meta + b"," + _encode(fields)[1:]
