"""A listening socket whose clients wait where there is no file descriptor for them, and which then says what to do.

Connections are accepted by the event loop, which is fast, but at the limit uvloop resets whoever connects and tells
nobody. So each connection is followed by a look at how many descriptors are left. The last few are not for connections:
a worker that must be replaced needs some, and so does a key file that has changed. When only those are left, nothing is
accepted until others are free, and clients wait in the backlog.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import resource
import socket
import ssl
import time
from collections.abc import Callable
from typing import Final

BACKLOG: Final = 2048
PAUSE_S: Final = 0.1
"""Between two looks whether there are descriptors again."""
KEPT: Final = 16
"""Descriptors that are not for connections, or an eighth of the limit where that is less."""
LOG_EVERY_S: Final = 10.0
EXHAUSTED: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

_log = logging.getLogger("penstock.serve")


class ShortageLog:
    """One line in LOG_EVERY_S, with the remedy."""

    def __init__(self) -> None:
        self._due = float("-inf")

    def write(self, error: OSError | None, limit: int, kept: int, now: float) -> None:
        """`error`: why there is no descriptor; None: of `limit` only the last `kept` are left. `now` in seconds."""
        if now < self._due:
            return
        self._due = now + LOG_EVERY_S
        if error is not None and error.errno != errno.EMFILE:
            _log.error("no connection can be accepted now, clients wait: the system says: %s", error.strerror)
            return
        _log.error(
            "no connection can be accepted now, clients wait: this process may have %d files open, and %s; raise the "
            "limit before it starts: ulimit -n, or LimitNOFILE= of its systemd unit", limit,
            "all are" if error is not None else f"the last {kept} are for its own use", extra={"limit": limit},
        )  # fmt: skip


class Listener:
    """Where uvicorn has a server of asyncio's. `open` it, then `close` it once; `sock` belongs to the caller."""

    def __init__(
        self, sock: socket.socket, make: Callable[[], asyncio.Protocol], tls: ssl.SSLContext | None = None,
        on_shortage: Callable[[], None] | None = None,
    ) -> None:  # fmt: skip
        """Needs the running loop. `make` is called for each connection, `on_shortage` when clients must wait."""
        self._sock, self._make, self._tls, self._on_shortage = sock, make, tls, on_shortage
        self._loop = asyncio.get_running_loop()
        self._server: asyncio.Server | None = None
        self._pause: asyncio.TimerHandle | None = None
        self._opening: asyncio.Task[None] | None = None
        self._closed = False
        self._told = ShortageLog()
        self._limit, self._full = limits()

    async def open(self) -> None:
        """Accept connections from now on. Raises OSError."""
        duplicate = self._sock.dup()  # it is closed with the server
        self._server = await self._loop.create_server(self._made, sock=duplicate, ssl=self._tls, backlog=BACKLOG)
        if self._closed:
            self._server.close()

    def close(self) -> None:
        """Accept no more; what was accepted goes on."""
        self._closed = True
        if self._pause is not None:
            self._pause.cancel()
        if self._server is not None:
            self._server.close()

    async def wait_closed(self) -> None:
        """As asyncio's."""
        if self._opening is not None:
            await asyncio.wait({self._opening})
        if self._server is not None:
            await self._server.wait_closed()

    def _made(self) -> asyncio.Protocol:
        free, error = self._free()
        if not free and self._pause is None:
            if self._on_shortage is not None:
                self._on_shortage()
            self._told.write(error, self._limit, self._limit - self._full, time.monotonic())
            self._pause = self._loop.call_later(PAUSE_S, self._again)
            self._loop.call_soon(self._stop)  # not in the middle of accepting
        return self._make()

    def _stop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    def _again(self) -> None:
        if self._closed:
            return
        self._limit, self._full = limits()
        free, error = self._free()
        if free:
            self._pause = None
            self._opening = self._loop.create_task(self._reopen())
        else:
            self._told.write(error, self._limit, self._limit - self._full, time.monotonic())
            self._pause = self._loop.call_later(PAUSE_S, self._again)

    async def _reopen(self) -> None:
        try:
            await self.open()
        except OSError:
            self._pause = self._loop.call_later(PAUSE_S, self._again)

    def _free(self) -> tuple[bool, OSError | None]:
        """Whether there is a descriptor for a connection. The lowest one is given, so all below it are in use."""
        try:
            lowest = os.dup(self._sock.fileno())
        except OSError as error:
            return False, error
        os.close(lowest)
        return lowest < self._full, None


def limits() -> tuple[int, int]:
    """How many files this process may have open, and the number of the first descriptor that is not for connections."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        limit = 2**31
    return limit, limit - min(KEPT, limit // 8)
