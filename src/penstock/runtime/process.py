"""One worker process and its socket, as the front end holds them. Supervision is the service's (runtime/service.py).

The worker inherits one end of a socket pair and nothing else, so end of file on ours means that it is gone, however it
died; and it ends itself when it sees end of file on its own. No port, no file, no name that another user could open.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Final

from penstock.errors import ProtocolError
from penstock.runtime import wire

_log = logging.getLogger("penstock.runtime")

COMMAND: Final = (sys.executable, "-m", "penstock.runtime.worker")

# How OpenMP's threads wait between the parts of a step: spin for some 10 us, then sleep. Asleep at once, every part
# pays a wake-up; spinning on, they take the cores that front end and control need. Model in the box over HTTP on two
# cores that nobody else uses, 1 and 32 clients, total tokens/s: asleep 1,638 and 7,806; this 3,563 and 9,023; spinning
# 3,775 and 10,048. On two busy cores, 16 sequences: spinning 57 to 159 output tokens/s, asleep 775 to 2,236.
_WAITING: Final = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "10000"}


def environment() -> dict[str, str]:
    """The worker's: ours, unless the user has said how threads wait."""
    mine = dict(os.environ)
    return mine if mine.keys() & _WAITING.keys() else mine | _WAITING


class WorkerProcess:
    """A running worker. Make one with `spawn`; `exited` is done when it is gone."""

    def __init__(
        self, process: subprocess.Popen[bytes], on_message: Callable[[wire.FromWorker], None],
        on_lost: Callable[[], None],
    ) -> None:  # fmt: skip
        self.exited: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        """Result: how it ended, in words."""
        self._process = process
        self._on_message, self._on_lost = on_message, on_lost
        self._transport: asyncio.WriteTransport | None = None

    @classmethod
    async def spawn(
        cls, command: Sequence[str], on_message: Callable[[wire.FromWorker], None], on_lost: Callable[[], None]
    ) -> WorkerProcess:
        """Start `command --fd N`. `on_message` is called in this event loop with each message, in order.

        `on_lost` is called when the socket has ended: nothing reaches it any more; how it ended, `exited` tells later.

        Raises OSError if the command cannot be run.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                process = subprocess.Popen(
                    [*command, "--fd", str(theirs.fileno())], pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL,
                    env=environment(),
                )  # fmt: skip
            except OSError:
                ours.close()
                raise
        worker = cls(process, on_message, on_lost)
        transport, _ = await asyncio.get_running_loop().create_unix_connection(lambda: _Link(worker), sock=ours)
        worker._transport = transport
        return worker

    @property
    def pid(self) -> int:
        return self._process.pid

    def send(self, message: wire.ToWorker) -> None:
        """Queue a message; a worker that is gone gets none, as `exited` will tell. Raises ProtocolError: too long."""
        frame = wire.encode(message)
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frame)

    def signal(self, number: signal.Signals) -> None:
        """To a worker that is gone already, this does nothing."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def kill(self) -> None:
        """Now, and without reading what it still has to say."""
        self.signal(signal.SIGKILL)
        if self._transport is not None:
            self._transport.abort()

    async def stop(self, grace_s: float = 2.0) -> str:
        """Close the socket, which ends a healthy worker; kill one that is still there after `grace_s`."""
        if self._transport is not None:
            self._transport.close()
        done, _ = await asyncio.wait({self.exited}, timeout=grace_s)
        if not done:
            self.signal(signal.SIGKILL)
        return await self.exited

    def _received(self, message: wire.FromWorker) -> None:
        self._on_message(message)

    def _lost(self) -> None:
        self._on_lost()
        reaping = asyncio.get_running_loop().run_in_executor(None, self._reap)
        reaping.add_done_callback(lambda reaped: self.exited.set_result(reaped.result()))

    def _reap(self) -> str:
        try:
            code = self._process.wait(timeout=2.0)
        except subprocess.TimeoutExpired:
            self._process.kill()  # it closed its socket, or sent nonsense, and lives on
            code = self._process.wait()
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
        self._worker._lost()
