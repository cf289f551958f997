"""Answers while the model loads: /health is 200, everything else 503 with a time to come back.

The socket listens before the weights are read. Connections are accepted from a duplicate of it, in one step each on the
event loop, so at the moment of `close` each is either here, where it gets its answer, or still waits for the app.
"""

from __future__ import annotations

import asyncio
import json
import socket
import time
from typing import Final

from penstock.errors import Unavailable
from penstock.observe.request_log import Strangers
from penstock.serve.edge import id_for
from penstock.serve.errors import wire
from penstock.serve.listener import EXHAUSTED, ShortageLog, limits
from penstock.serve.tls import context_of

REQUEST_S: Final = 10.0
"""A client may take so long for its request head."""
HEAD_BYTES: Final = 64 * 1024
LINGER_S: Final = 2.0
"""A body that nobody wants is read for so long: a socket closed with bytes unread takes the answer back."""
ACCEPT_PAUSE_S: Final = 1.0
"""Without a descriptor for it a connection stays in the backlog, and the loop would be told of it for ever."""
_LONGEST_WAIT_S: Final = 60.0


class Starting:
    """The server until the app takes over. `sock` stays open and belongs to the caller."""

    def __init__(self, sock: socket.socket, *, certificate: str | None = None, key: str | None = None) -> None:
        """Needs the running event loop. Raises InvalidDeployment: the certificate cannot be used."""
        self._tls = context_of(certificate, key) if certificate is not None else None
        self._began = time.monotonic()
        self._loop = asyncio.get_running_loop()
        self._answers: set[asyncio.Task[None]] = set()
        self._log, self._told = Strangers(), ShortageLog()
        self._pause: asyncio.TimerHandle | None = None
        self._listener = sock.dup()
        self._listener.setblocking(False)
        self._listen()

    def close(self) -> None:
        """Accept no more. Who was accepted still gets an answer, beside the app."""
        if self._pause is not None:
            self._pause.cancel()
        self._loop.remove_reader(self._listener)
        self._listener.close()

    def _listen(self) -> None:
        self._pause = None
        self._loop.add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError as error:
            if error.errno in EXHAUSTED:
                self._told.write(error, limits()[0], 0, time.monotonic())
                self._loop.remove_reader(self._listener)
                self._pause = self._loop.call_later(ACCEPT_PAUSE_S, self._listen)
            return  # else the client is gone again
        connection.setblocking(False)
        task = self._loop.create_task(self._answer(connection))
        self._answers.add(task)
        task.add_done_callback(self._answers.discard)

    async def _answer(self, connection: socket.socket) -> None:
        reader = asyncio.StreamReader(HEAD_BYTES, self._loop)
        protocol = asyncio.StreamReaderProtocol(reader, loop=self._loop)
        try:
            async with asyncio.timeout(REQUEST_S):
                transport, _ = await self._loop.connect_accepted_socket(lambda: protocol, connection, ssl=self._tls)
        except (OSError, TimeoutError):  # no TLS, or gone
            connection.close()
            return
        writer = asyncio.StreamWriter(transport, protocol, reader, self._loop)
        try:
            async with asyncio.timeout(REQUEST_S):
                head = await reader.readuntil(b"\r\n\r\n")
            writer.write(self._reply(head))
            async with asyncio.timeout(LINGER_S):
                await writer.drain()
                if writer.can_write_eof():
                    writer.write_eof()
                while await reader.read(HEAD_BYTES):
                    pass
        except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError):
            return  # a client that left, or says nothing, or too much: there is nobody to tell
        finally:
            writer.close()

    def _reply(self, head: bytes) -> bytes:
        first, *lines = head.split(b"\r\n")
        method, _, rest = first.partition(b" ")
        path = rest.partition(b" ")[0].partition(b"?")[0]
        pairs = (line.partition(b":") for line in lines)
        request_id = id_for([(name.lower(), value.strip()) for name, _, value in pairs])
        if path == b"/health":
            status, headers = b"200 OK", [(b"content-type", b"application/json")]
            body = json.dumps({"status": "alive", "state": "starting"}).encode()
        else:
            # Nothing is known of the time a model takes but what it took so far: as long again.
            wait_s = min(max(time.monotonic() - self._began, 1.0), _LONGEST_WAIT_S)
            refusal = wire(Unavailable("the model is starting", retry_after_s=wait_s), request_id.decode())
            status, headers, body = b"503 Service Unavailable", list(refusal.headers), refusal.body
            if path == b"/ready":  # the same word as the app's /ready has
                body = json.dumps({"status": "starting", **json.loads(body)}).encode()
            else:
                self._log.write(request_id.decode(), refusal.status, refusal.reason)
        headers += [
            (b"x-request-id", request_id), (b"content-length", b"%d" % len(body)), (b"connection", b"close")
        ]  # fmt: skip
        lead = b"HTTP/1.1 " + status + b"\r\n" + b"".join(b"%s: %s\r\n" % one for one in headers) + b"\r\n"
        return lead if method == b"HEAD" else lead + body
