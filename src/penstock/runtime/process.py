"""One worker process and its socket, as the front end holds them. Supervision is the supervisor's (supervisor.py).

The worker inherits one end of a socket pair and nothing else, so end of file on ours means that it is gone, however it
died; and it ends itself when it sees end of file on its own. No port, no file, no name that another user could open.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import time
from collections.abc import Callable
from typing import Final

from penstock.errors import ProtocolError
from penstock.runtime import wire
from penstock.runtime.launch import Child, Launcher, OnMark

KILLED: Final = "killed by SIGKILL"
"""What `exited` says of a worker to which that happened."""
REAP_S: Final = 2.0
"""A worker whose socket has ended gets this long to end itself."""

TOGETHER_S: Final = 0.002
"""Messages that come within so long of the last write leave in one: each write wakes a thread of the worker."""

_READ_BYTES: Final = 256 * 2**10
_MOST_READS: Final = 64
"""More than a socket holds."""

_log = logging.getLogger("penstock.runtime")


class WorkerProcess:
    """A running worker. Make one with `spawn`; `exited` is done when it is gone."""

    def __init__(
        self, child: Child, on_message: Callable[[wire.FromWorker], None], on_lost: Callable[[], None]
    ) -> None:
        self.exited: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Result: how it ended, in words."""
        self._child = child
        self._on_message, self._on_lost = on_message, on_lost
        self._transport: asyncio.WriteTransport | None = None
        self._unsent: list[bytes] = []
        self._sent_at = -TOGETHER_S
        self._again: socket.socket | None = None
        """The same socket, for what is unread when a write finds the other end gone."""

    @classmethod
    async def spawn(
        cls, launcher: Launcher, on_message: Callable[[wire.FromWorker], None], on_lost: Callable[[], None],
        on_mark: OnMark,
    ) -> WorkerProcess:  # fmt: skip
        """Start one. `on_message` is called in this event loop with each message, in order.

        `on_lost` is called when the socket has ended: nothing reaches it any more; how it ended, `exited` tells later.

        Raises OSError if it cannot be started.
        """
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                child = await launcher.launch(theirs, on_mark)
        except BaseException:
            ours.close()
            raise
        worker = cls(child, on_message, on_lost)
        worker._again = ours.dup()
        transport, _ = await asyncio.get_running_loop().create_unix_connection(lambda: _Link(worker), sock=ours)
        worker._transport = transport
        return worker

    @property
    def pid(self) -> int:
        return self._child.pid

    def send(self, message: wire.ToWorker) -> None:
        """Queue a message; a worker that is gone gets none, as `exited` will tell. Raises ProtocolError: too long."""
        self._unsent.append(wire.encode(message))
        if time.monotonic() - self._sent_at >= TOGETHER_S:
            self._send()
        elif len(self._unsent) == 1:
            asyncio.get_running_loop().call_soon(self._send)

    def _send(self) -> None:
        if not self._unsent:
            return
        frames, self._unsent = b"".join(self._unsent), []
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frames)
            self._sent_at = time.monotonic()

    def signal(self, number: signal.Signals) -> None:
        """To a worker that is gone already, this does nothing."""
        self._child.signal(number)

    def kill(self) -> None:
        """Now, and without reading what it still has to say."""
        self.signal(signal.SIGKILL)
        if self._transport is not None:
            self._transport.abort()

    async def stop(self, grace_s: float = 2.0) -> str:
        """Close the socket, which ends a healthy worker; kill one that is still there after `grace_s`."""
        self._send()
        if self._transport is not None:
            self._transport.close()
        done, _ = await asyncio.wait({self.exited}, timeout=grace_s)
        if not done:
            self.signal(signal.SIGKILL)
        return await self.exited

    def _received(self, message: wire.FromWorker) -> None:
        self._on_message(message)

    def _lost(self, frames: wire.Frames, error: Exception | None) -> None:
        if self._again is not None:
            with self._again:
                if error is not None:
                    self._read_rest(self._again, frames)
            self._again = None
        self._on_lost()
        self._reaping = asyncio.create_task(self._reap(), name="penstock worker reaper")

    def _read_rest(self, link: socket.socket, frames: wire.Frames) -> None:
        """A write failed, and the event loop reads no more: but the last words say what the worker died of."""
        with contextlib.suppress(OSError, ProtocolError):
            for _ in range(_MOST_READS):
                data = link.recv(_READ_BYTES)
                if not data:
                    return
                for message in frames.feed(data):
                    self._received(message)

    async def _reap(self) -> None:
        code = await self._child.reap(REAP_S)
        if not self.exited.done():
            self.exited.set_result(_in_words(code))


def _in_words(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    with contextlib.suppress(ValueError):
        return f"killed by {signal.Signals(-code).name}"
    return f"killed by signal {-code}"


class _Link(asyncio.Protocol):
    def __init__(self, worker: WorkerProcess) -> None:
        self._worker = worker
        self._frames = wire.Frames(wire.from_worker)

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._frames.feed(data):
                self._worker._received(message)
        except ProtocolError as error:
            _log.error("worker %d sent what is no message (%s); it is killed", self._worker.pid, error)
            self._worker.kill()

    def connection_lost(self, exc: Exception | None) -> None:
        self._worker._lost(self._frames, exc)
