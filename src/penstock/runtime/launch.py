"""How a worker process comes to be: as a program (`Fresh`), or as a fork of one that has its imports done (`Forks`).

With the model in the box a fresh worker is ready after 3 s, of which all but 0.2 s are imports; a fork after 0.2 s. So
a server forks where Linux is: it ties a child's life to its parent's.
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
from typing import Final, Protocol

from penstock.runtime.forkserver import Ended, Forked, Hello, said
from penstock.runtime.patience import patience

COMMAND: Final = (sys.executable, "-m", "penstock.runtime.worker")
FORK_PATIENCE_S: Final = 5.0
"""A fork server that has its imports done and takes longer than this to fork is stuck."""
FIRST_FORK_PATIENCE: Final = 10
"""Times as much, for its first fork: there is nothing better to turn to."""
_CLOSING_S: Final = 2.0
_MESSAGE_BYTES: Final = 4096

_log = logging.getLogger("penstock.runtime")

# How OpenMP's threads wait between the parts of a step: spin for some 10 us, then sleep. Asleep at once, every part
# pays a wake-up; spinning on, they take the cores that front end and control need. Model in the box over HTTP on two
# cores that nobody else uses, 1 and 32 clients, total tokens/s: asleep 1,638 and 7,806; this 3,563 and 9,023; spinning
# 3,775 and 10,048. On two busy cores, 16 sequences: spinning 57 to 159 output tokens/s, asleep 775 to 2,236.
_WAITING: Final = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "10000"}


def environment() -> dict[str, str]:
    """The worker's: ours, unless the user has said how threads wait."""
    # NumPy's BLAS would start threads on import, in the process that is forked; nothing here multiplies with it. And
    # a malloc arena for each thread that allocates only falls apart by itself: over hours that looks like a leak.
    mine = {"OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"} | os.environ
    return mine if mine.keys() & _WAITING.keys() else mine | _WAITING


OnMark = Callable[[str, float, str], None]
"""Told the name of a phase, when on the monotonic clock it ended, and details."""


class Child(Protocol):
    """A process that was started."""

    @property
    def pid(self) -> int:
        """Its process id."""

    def signal(self, number: signal.Signals) -> None:
        """To one that is gone already, this does nothing."""

    async def reap(self, grace_s: float) -> int:
        """Its exit code, or -N after signal N. It is killed if it has not ended after `grace_s`."""


class Launcher(Protocol):
    """Starts workers, one after the other."""

    async def launch(self, link: socket.socket, on_mark: OnMark) -> Child:
        """Start one that talks through `link`. Raises OSError if that cannot be done."""

    async def close(self) -> None:
        """Nothing more will be launched."""


class Fresh:
    """Each worker runs `command --fd N`."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command

    async def launch(self, link: socket.socket, on_mark: OnMark) -> Child:
        return _Program(_popen([*self._command, "--fd", str(link.fileno())], link))

    async def close(self) -> None:
        return


class Forks:
    """Workers are forks of `command --fork-server N` (runtime/forkserver.py), which is started when one is needed."""

    def __init__(self, command: Sequence[str] = COMMAND) -> None:
        self._command = command
        self._server: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._hello: asyncio.Future[Hello] | None = None
        self._forked: asyncio.Future[int] | None = None
        self._children: dict[int, asyncio.Future[int]] = {}
        self._launching = asyncio.Lock()

    async def launch(self, link: socket.socket, on_mark: OnMark) -> Child:
        """`on_mark` hears of the imports, when they had to be done for this one."""
        async with self._launching:
            return await self._launch(link, on_mark)

    async def _launch(self, link: socket.socket, on_mark: OnMark) -> Child:
        if self._control is not None:
            with contextlib.suppress(OSError):
                return await self._fork(link, FORK_PATIENCE_S)
            _log.warning("the fork server does not answer, another is started")
        hello = await self._start()
        on_mark("start Python", hello.began, "a process for workers to fork from")
        on_mark("import torch", hello.ended, "once for all workers")
        return await self._fork(link, FIRST_FORK_PATIENCE * FORK_PATIENCE_S)

    async def close(self) -> None:
        server = self._server
        self._drop(None)
        if server is not None:
            await asyncio.get_running_loop().run_in_executor(None, _wait, server, _CLOSING_S)

    async def _start(self) -> Hello:
        """Start a server and wait for its imports. Raises OSError: it could not be started, or ended."""
        loop = asyncio.get_running_loop()
        ours, theirs = socket.socketpair(type=socket.SOCK_SEQPACKET)
        with theirs:
            try:
                self._server = _popen([*self._command, "--fork-server", str(theirs.fileno())], theirs)
            except OSError:
                ours.close()
                raise
        ours.setblocking(False)
        self._control, self._hello = ours, loop.create_future()
        loop.add_reader(ours, self._readable)
        try:
            return await self._hello
        except BaseException:
            self._drop(signal.SIGKILL)
            raise

    async def _fork(self, link: socket.socket, patience_s: float) -> Child:
        """Raises OSError. Whoever does not wait to the end drops the server, whose answer would be taken for that to
        the next one's question."""
        assert self._control is not None
        self._forked = asyncio.get_running_loop().create_future()
        try:
            socket.send_fds(self._control, [b"\0"], [link.fileno()])
            async with patience(patience_s):
                pid = await self._forked
        except TimeoutError:
            self._drop(signal.SIGKILL)
            raise ChildProcessError(
                f"the process that workers are forked from did nothing for {patience_s:g} s"
            ) from None
        except BaseException:
            self._drop(signal.SIGKILL)
            raise
        return _Fork(pid, self._children[pid])

    def _readable(self) -> None:
        assert self._control is not None
        try:
            data = self._control.recv(_MESSAGE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(signal.SIGKILL)
            return
        match said.decode(data):
            case Hello() as hello:
                if self._hello is not None and not self._hello.done():
                    self._hello.set_result(hello)
            case Forked(pid):
                self._children[pid] = asyncio.get_running_loop().create_future()
                if self._forked is not None and not self._forked.done():
                    self._forked.set_result(pid)
            case Ended(pid, code):
                if (ended := self._children.pop(pid, None)) is not None and not ended.done():
                    ended.set_result(code)

    def _drop(self, number: signal.Signals | None) -> None:
        """Forget this server. Its workers end with it."""
        control, server, self._control, self._server = self._control, self._server, None, None
        if control is not None:
            asyncio.get_running_loop().remove_reader(control)
            control.close()
        if server is not None and number is not None:
            server.send_signal(number)
            asyncio.get_running_loop().run_in_executor(None, _wait, server, _CLOSING_S)
        for waiting in (self._hello, self._forked):
            if waiting is not None and not waiting.done():
                waiting.set_exception(ChildProcessError("the process that workers are forked from has ended"))
        for pid, ended in self._children.items():
            if not ended.done():
                _kill(pid, signal.SIGKILL)
                ended.set_result(-signal.SIGKILL)
        self._children.clear()


class _Program:
    """A child of ours."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    def signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def reap(self, grace_s: float) -> int:
        return await asyncio.get_running_loop().run_in_executor(None, _wait, self._process, grace_s)


class _Fork:
    """A child of the fork server, which tells how it ended."""

    def __init__(self, pid: int, ended: asyncio.Future[int]) -> None:
        self._pid, self._ended = pid, ended

    @property
    def pid(self) -> int:
        return self._pid

    def signal(self, number: signal.Signals) -> None:
        if not self._ended.done():
            _kill(self._pid, number)

    async def reap(self, grace_s: float) -> int:
        await asyncio.wait({self._ended}, timeout=grace_s)
        self.signal(signal.SIGKILL)
        await asyncio.wait({self._ended}, timeout=grace_s)
        return self._ended.result() if self._ended.done() else -signal.SIGKILL


def _popen(command: list[str], inherited: socket.socket) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        command, pass_fds=[inherited.fileno()], stdin=subprocess.DEVNULL, env=environment()
    )  # fmt: skip


def _kill(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _wait(process: subprocess.Popen[bytes], grace_s: float) -> int:
    try:
        return process.wait(timeout=grace_s)
    except subprocess.TimeoutExpired:
        process.kill()  # it closed its socket, or sent nonsense, and lives on
        return process.wait()


def launcher_for(command: Sequence[str] | None) -> Launcher:
    """Of this command, or of the engine's worker as fast as this system can start it."""
    if command is not None:
        return Fresh(command)
    return Forks() if sys.platform == "linux" else Fresh(COMMAND)
