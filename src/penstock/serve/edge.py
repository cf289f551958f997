"""The outermost layer, plain ASGI: a request id for every answer, and no malformed Host, no oversized headers.

It stands outside routing on purpose: answers to unknown paths carry an id too.
"""

from __future__ import annotations

import os
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from penstock.observe.request_log import write_refusal
from penstock.serve.errors import Refusal, wire

_SAFE_ID = re.compile(rb"[A-Za-z0-9._:-]{1,128}")
_HOST = re.compile(rb"(?:[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,252})|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")
_LOCAL_HOST = re.compile(rb"(?:localhost|127(?:\.[0-9]{1,3}){3}|\[::1\])(?::[0-9]{1,5})?", re.IGNORECASE)
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


class Edge:
    """Wraps the app. The request id is in scope['request_id'] and in the x-request-id header of the answer.

    scope['penstock.headers'], if a route sets it, gives more headers when the answer begins.

    scope['penstock.send'] is the way out past the layers between here and a route: each costs a coroutine per write,
    and an answer that streams writes once per token.

    `on_answer` hears the route's pattern ("" if none matched) and the status of every answer, `on_error` the code
    and the status of every error that nobody below answered.
    """

    def __init__(
        self, app: ASGIApp, on_answer: Callable[[str, int], None], on_error: Callable[[str, int], None], *,
        local_only: bool = False, keyless: bool = False, origins: Sequence[str] = (), header_bytes: int = 32 * 1024,
    ) -> None:  # fmt: skip
        """`local_only`: take no Host but loopback names. A server that is open to its own machine must not be open to
        a web page there whose host name was made to point at it (DNS rebinding).

        `keyless`: nothing but the origin tells the operator's requests from those that a page of somebody else has
        its visitor's browser send, so whatever may change something is taken from this server's own pages and from
        `origins` alone. What is no browser names no origin."""
        self.app, self.on_answer, self.on_error, self.local_only = app, on_answer, on_error, local_only
        self.keyless, self.header_bytes = keyless, header_bytes
        self.origins = {origin.lower().encode() for origin in origins}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}  # the same head; the server around us leaves out the body
        hosts: list[bytes] = []
        header_bytes = 0
        for name, value in scope["headers"]:
            header_bytes += len(name) + len(value) + 4
            if name == b"host":
                hosts.append(value)
        request_id = id_for(scope["headers"])
        scope["request_id"] = request_id.decode()
        started = False

        def send_with_id(message: Message) -> Awaitable[None]:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                more = scope["penstock.headers"]() if "penstock.headers" in scope else ()
                message["headers"] = [*message.get("headers", ()), *more, (b"x-request-id", request_id)]
                self.on_answer(getattr(scope.get("route"), "path", ""), message["status"])
            return send(message)

        scope["penstock.send"] = send_with_id
        try:
            if header_bytes > self.header_bytes:
                raise Refusal(
                    431, "headers_too_large",
                    f"the headers have {header_bytes} bytes; {self.header_bytes} are allowed. Remedy: send fewer, or a "
                    "higher server.limits.header_bytes",
                )  # fmt: skip
            _check(hosts, scope["http_version"])
            if self.local_only and not all(_LOCAL_HOST.fullmatch(host) for host in hosts):
                raise Refusal(
                    403, "foreign_host",
                    "this server has no key and answers its own machine only, under localhost or 127.0.0.1. Remedy: "
                    "one of those names, or server.api_keys",
                )  # fmt: skip
            if self.keyless and scope["method"] not in _SAFE_METHODS and self._is_foreign(scope["headers"], hosts):
                raise Refusal(
                    403, "foreign_origin",
                    "this server has no key and takes nothing from web pages of other origins. Remedy: name the origin "
                    "in server.cors_origins, or server.api_keys",
                )  # fmt: skip
            await self.app(scope, receive, send_with_id)
        except Exception as error:  # noqa: BLE001 - the last resort: whatever it is, the client gets an answer
            answer = wire(error, scope["request_id"])
            write_refusal(scope["request_id"], getattr(scope.get("route"), "path", ""), answer.status, answer.reason)
            self.on_error(answer.reason, answer.status)
            if not started:
                headers = [*answer.headers, (b"content-length", b"%d" % len(answer.body)), (b"connection", b"close")]
                way_out: Send = scope["penstock.send"]  # with the marks for web pages (cors.py), where there are any
                await way_out({"type": "http.response.start", "status": answer.status, "headers": headers})
                await way_out({"type": "http.response.body", "body": answer.body})

    def _is_foreign(self, headers: Iterable[tuple[bytes, bytes]], hosts: list[bytes]) -> bool:
        origins = [value.lower() for name, value in headers if name == b"origin"]
        if origins and all(origin in self.origins for origin in origins):
            return False
        sites = [value.strip().lower() for name, value in headers if name == b"sec-fetch-site"]
        if b"cross-site" in sites:
            return True
        if sites == [b"same-origin"]:  # browsers alone set it; behind a proxy the Host may be another than they see
            return False
        own = {host.lower() for host in hosts}
        return any(origin.partition(b"://")[2] not in own for origin in origins)


def id_for(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The request id that a client gave, if it is safe to repeat; else a new one."""
    given = b""
    for name, value in headers:
        if name == b"x-request-id" and _SAFE_ID.fullmatch(value):
            given = value
    return given or os.urandom(16).hex().encode()


def _check(hosts: list[bytes], http_version: str) -> None:
    if (len(hosts) != 1 and http_version != "1.0") or not all(_HOST.fullmatch(host) for host in hosts):
        raise Refusal(
            400, "invalid_host", "the Host header is missing, doubled or malformed. Remedy: send one host[:port]"
        )
