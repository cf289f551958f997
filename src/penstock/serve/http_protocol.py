"""uvicorn's HTTP/1.1 protocol with a bound on what comes before the body: bytes, and time.

The parser keeps a header until it is whole, however long it grows, and would wait for its end for ever. So the bytes
are counted here as they come, before anything else looks at them; the lower, configured bound is the edge's (edge.py).
"""

from __future__ import annotations

import asyncio
import uuid
from http import HTTPStatus
from typing import Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from penstock.serve.errors import Refusal, wire

MAX_HEAD_BYTES: Final = 256 * 1024
"""The largest that `server.limits.header_bytes` may be."""
HEAD_TIMEOUT_S: Final = 60.0
"""From the connection, or a request's first byte, to the end of its headers."""


class BoundedHttp(HttpToolsProtocol):
    """Closes connections whose request head is too long (431) or too slow (408)."""

    _head_bytes = 0
    """Since the last head was complete; None of them while a body is read."""
    _in_body = False
    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if not self._in_body:
            self._head_bytes += len(data)
        super().data_received(data)
        if not self._in_body and self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(431, "headers_too_large", f"the headers have more than {MAX_HEAD_BYTES:,} bytes")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        if self._deadline is None:
            self._start_waiting()

    def on_headers_complete(self) -> None:
        self._head_bytes, self._in_body = 0, True
        self._stop_waiting()
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        self._in_body = False
        super().on_message_complete()

    def _start_waiting(self) -> None:
        self._deadline = self.loop.call_later(HEAD_TIMEOUT_S, self._too_slow)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_slow(self) -> None:
        self._deadline = None
        if self._head_bytes:
            self._refuse(408, "request_timeout", f"the headers did not end within {HEAD_TIMEOUT_S:g} s")
        elif not self.transport.is_closing():
            self.transport.close()  # nothing was asked

    def send_400_response(self, msg: str) -> None:
        """What uvicorn calls for bytes that are no HTTP."""
        self._refuse(400, "invalid_http", "this is not HTTP/1.1")

    def _refuse(self, status: int, code: str, message: str) -> None:
        """Answer in the one error shape and hang up; beside an answer that is under way, only hang up."""
        self._stop_waiting()
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete:
            answer = wire(Refusal(status, code, f"{message}. Remedy: send one complete HTTP/1.1 request"))
            lines = [
                b"HTTP/1.1 %d %s" % (status, HTTPStatus(status).phrase.encode()),
                *(b": ".join(pair) for pair in answer.headers), b"x-request-id: " + uuid.uuid4().hex.encode(),
                b"content-length: %d" % len(answer.body), b"connection: close",
            ]  # fmt: skip
            self.transport.write(b"\r\n".join([*lines, b"", answer.body]))
        self.transport.close()
