"""uvicorn's HTTP/1.1 protocol with a bound on what comes around the body: bytes, and time.

The parser keeps a header until it is whole, however long it grows, and would wait for its end for ever. So the bytes
are counted here as they come, before anything else looks at them; the lower, configured bound is the edge's (edge.py).
Headers may also follow a body that comes in chunks. Nothing here wants those trailers, and they are not taken.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

import httptools
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from penstock.observe.request_log import Strangers
from penstock.serve.edge import id_for
from penstock.serve.errors import Refusal, wire

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application, ASGISendEvent

MAX_HEAD_BYTES: Final = 256 * 1024
"""The largest that `server.limits.header_bytes` may be."""
HEAD_TIMEOUT_S: Final = 60.0
"""From the connection, or a request's first byte, to the end of its headers."""
BODY_TIMEOUT_S: Final = 300.0
"""From there to the end of the body, whether or not the answer waits for it."""


def _parser(protocol: HttpToolsProtocol) -> httptools.HttpRequestParser:
    """As uvicorn makes it."""
    parser = httptools.HttpRequestParser(protocol)
    parser.set_dangerous_leniencies(lenient_data_after_close=True)
    return parser


class HeadFirst:
    """A transport that holds an answer's head back for what follows it at once: one packet, one call of the system."""

    __slots__ = ("_cycle", "_head", "_sent", "_transport")

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle, self._transport = cycle, cycle.transport
        self._head = b""
        self._sent = False

    def write(self, data: bytes) -> None:
        """As a transport's."""
        if self._head:
            data, self._head = self._head + data, b""
        elif not self._sent and self._cycle.response_started:
            self._sent, self._head = True, data
            asyncio.get_running_loop().call_soon(self._flush)
            return
        self._transport.write(data)

    def close(self) -> None:
        """As a transport's."""
        self._flush()
        self._transport.close()

    def is_closing(self) -> bool:
        """As a transport's."""
        return self._transport.is_closing()

    def _flush(self) -> None:
        if self._head:
            head, self._head = self._head, b""
            self._transport.write(head)


class Chunks:
    """Pieces of one answer's body, written without the coroutine, the message and the checks of ASGI's `send`.

    Only for a body of unknown length that `send` has begun and will end.
    """

    __slots__ = ("_cycle", "_flow", "_transport")

    def __init__(self, cycle: RequestResponseCycle, flow: FlowControl, transport: asyncio.WriteTransport) -> None:
        self._cycle, self._flow, self._transport = cycle, flow, transport

    def open(self) -> bool:
        """Whether a piece can be written now: `send` would neither wait nor drop it."""
        cycle = self._cycle
        return bool(cycle.chunked_encoding) and not (
            self._flow.write_paused or cycle.disconnected or cycle.response_complete
        )

    def write(self, data: bytes) -> None:
        """One chunk; `data` is not empty, which would end the body."""
        self._transport.write(b"%x\r\n%b\r\n" % (len(data), data))


class Unchunked:
    """The way out for an HTTP/1.0 client, which knows no chunks: a body of unknown length ends with the connection."""

    _NO_END: Final = 2**62

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle, self._send, self._endless = cycle, cycle.send, False

    async def __call__(self, message: ASGISendEvent) -> None:
        if message["type"] == "http.response.start":
            self._endless = not any(name.lower() == b"content-length" for name, _ in message.get("headers", ()))
            if self._endless:
                self._cycle.chunked_encoding, self._cycle.expected_content_length = False, self._NO_END
        elif self._endless and message["type"] == "http.response.body" and not message.get("more_body"):
            self._cycle.expected_content_length = len(message.get("body", b""))
        await self._send(message)


class Unread:
    """What becomes known of requests that are refused here; the app has one as `state.unread`, else they are silent.

    `on_answer` hears the status of each, under no route, and `on_error` the code.
    """

    def __init__(self, on_answer: Callable[[str, int], None], on_error: Callable[[str], None]) -> None:
        self._on_answer, self._on_error, self._log = on_answer, on_error, Strangers()

    def refused(self, request_id: str, status: int, code: str) -> None:
        """One was answered with an error."""
        self._on_answer("", status)
        self._on_error(code)
        self._log.write(request_id, status, code)


class BoundedHttp(HttpToolsProtocol):
    """Closes connections whose request head is too long (431) or too slow (408), or whose body has trailers (400)."""

    _head_bytes = 0
    """Since the last head was complete; in a body, those since its last byte that were none of it."""
    _in_body = False
    _offers = False
    """The head just read offers another protocol, as Java's client and curl --http2 do with HTTP/2. It is read again
    without that: the parser takes what follows for the other protocol, and the request would lose its body."""
    _refused = False
    """This connection is hung up; what still comes is not looked at."""
    _allowed_s: float | None = None
    """How long what has begun to come may take to its end; most of it is there at once, and needs no timer."""
    _deadline: asyncio.TimerHandle | None = None
    _lost = False
    _running: RequestResponseCycle | None = None
    """What is being answered. uvicorn tells only the last request that came, which may wait behind it, of the end."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        # In place of uvicorn's, which asks the system for both addresses: nothing here reads them.
        self.connections.add(self)
        self.transport, self.flow = transport, FlowControl(transport)
        self.scheme = "https" if self.config.is_ssl else "http"
        self._watchers: list[Callable[[], None]] = []
        self._wait(HEAD_TIMEOUT_S)

    def connection_lost(self, exc: Exception | None) -> None:
        self._lost = True
        self._stop_waiting()
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()
        super().connection_lost(exc)
        watchers, self._watchers = self._watchers, []
        for lost in watchers:
            lost()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def watch(self, lost: Callable[[], None]) -> None:
        """watch.Connection."""
        self.flow.resume_reading()  # a large body has stopped it, and that the client leaves has to be read, too
        if self._lost:
            lost()
        else:
            self._watchers.append(lost)

    def forget(self, lost: Callable[[], None]) -> None:
        """watch.Connection."""
        if lost in self._watchers:
            self._watchers.remove(lost)

    def abort(self) -> None:
        """watch.Connection."""
        self.transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._head_bytes += len(data)
        self._unset_keepalive_if_required()
        self._parse(data)
        if self._allowed_s is not None and self._deadline is None and not self._refused:
            self._wait(self._allowed_s)
        if self._head_bytes > MAX_HEAD_BYTES and not self._refused:
            if self._in_body:
                self._refuse(400, "invalid_http", f"more than {MAX_HEAD_BYTES:,} bytes between two pieces of a body")
            else:
                self._refuse(431, "headers_too_large", f"the headers have more than {MAX_HEAD_BYTES:,} bytes")

    def _parse(self, data: bytes) -> None:
        rest: bytes | memoryview = data
        head = b""
        while True:
            try:
                if head:
                    self.parser.feed_data(head)
                self.parser.feed_data(rest)
                return
            except httptools.HttpParserError:
                self.send_400_response("")
                return
            except httptools.HttpParserUpgrade as offer:
                if not self._offers:
                    return
                self._offers = False
                head, rest = self._head_without_offer(), memoryview(rest)[offer.args[0] :]
                self.parser = _parser(self)  # the other one may take this for the last request

    def _head_without_offer(self) -> bytes:
        """The head that was read, without the offer of another protocol, as if it had come like that."""
        left_out = (b"upgrade", b"http2-settings", b"connection")
        version = self.parser.get_http_version().encode()
        lines = [b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, version)]
        lines += [b"%b: %b" % pair for pair in self.headers if pair[0] not in left_out]
        asked = b",".join(value for name, value in self.headers if name == b"connection").lower()
        if b"close" in [one.strip() for one in asked.split(b",")]:
            lines.append(b"connection: close")
        return b"\r\n".join([*lines, b"", b""])

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_body:
            super().on_header(name, value)
        elif not self._refused:
            self._refuse(400, "invalid_http", "headers after the body (trailers) are not taken")

    def on_body(self, body: bytes) -> None:
        self._head_bytes = 0
        super().on_body(body)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._allowed_s = HEAD_TIMEOUT_S

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade() and self.parser.get_method() != b"CONNECT":
            self._offers = True
            return
        self._head_bytes = 0
        self._stop_waiting()
        self._allowed_s = BODY_TIMEOUT_S
        self.scope["penstock.connection"] = self  # type: ignore[typeddict-unknown-key]
        super().on_headers_complete()
        if self.cycle is not None:
            self.scope["penstock.chunks"] = Chunks(self.cycle, self.flow, self.transport)  # type: ignore[typeddict-unknown-key]
            if self.scope["method"] != "HEAD":  # to which there is nothing but a head
                self.cycle.transport = HeadFirst(self.cycle)  # type: ignore[assignment]
            if self.scope["http_version"] == "1.0":
                self.cycle.send = Unchunked(self.cycle)  # type: ignore[method-assign]
        self._in_body = True

    def on_message_complete(self) -> None:
        if self._refused:
            return  # the app hears that the client has left, and runs nothing
        if self._offers:
            return
        self._head_bytes, self._in_body = 0, False
        self._stop_waiting()
        super().on_message_complete()
        self.headers = []  # the scope keeps its own; what is refused next has another id

    def _wait(self, seconds: float) -> None:
        self._deadline = self.loop.call_later(seconds, self._too_slow, seconds)

    def _stop_waiting(self) -> None:
        self._allowed_s = None
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_slow(self, seconds: float) -> None:
        self._deadline = None
        if self._in_body or self._head_bytes:
            what = "body" if self._in_body else "headers"
            self._refuse(408, "request_timeout", f"the {what} did not end within {seconds:g} s")
        elif not self.transport.is_closing():
            self.transport.close()  # nothing was asked

    def send_400_response(self, msg: str) -> None:
        """What uvicorn calls for bytes that are no HTTP."""
        self._refuse(400, "invalid_http", "this is not HTTP/1.1")

    def _refuse(self, status: int, code: str, message: str) -> None:
        """Answer in the one error shape and hang up; beside an answer that is under way, only hang up."""
        self._stop_waiting()
        self._refused = True
        if self.transport.is_closing():
            return
        if self._may_answer():
            known: str | None = self.scope.get("request_id") if self._in_body else None  # type: ignore[assignment]
            request_id = known or id_for(self.headers or ()).decode()
            answer = wire(Refusal(status, code, f"{message}. Remedy: send one complete HTTP/1.1 request"), request_id)
            unread: Unread | None = getattr(getattr(self.config.app, "state", None), "unread", None)
            if unread is not None:
                unread.refused(request_id, answer.status, answer.reason)
            lines = [
                b"HTTP/1.1 %d %s" % (status, HTTPStatus(status).phrase.encode()),
                *(b": ".join(pair) for pair in answer.headers), b"x-request-id: " + request_id.encode(),
                b"content-length: %d" % len(answer.body), b"connection: close",
            ]  # fmt: skip
            self.transport.write(b"\r\n".join([*lines, b"", answer.body]))
        self.transport.close()

    def _may_answer(self) -> bool:
        """Whether a client would take what is written now for the answer to what it is sending."""
        if self.cycle is None:
            return True
        if self._in_body:
            return not (self.cycle.response_started or self.pipeline)
        return bool(self.cycle.response_complete)
