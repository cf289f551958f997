"""A process that has imported what every worker needs, and forks one when asked: torch takes seconds, a fork 10 ms.

    front end -> fork server     one byte, and the socket that the new worker will talk through
    fork server -> front end     Hello (imports are done), Forked (a worker is there), Ended (how it ended)

Only modules are imported here: no model, no thread, no CUDA context, so that what is forked is whole. The
memory of the imports is shared. A worker hears and says nothing here; it ends with its own socket or with this process.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Final, NoReturn

import msgspec

from penstock.runtime.importing import uncollected

PRELOAD: Final = (
    "torch", "penstock.engine.engine", "penstock.engine.loader", "penstock.engine.ops.kernels",
    "penstock.engine.guide.vocabulary",
)  # fmt: skip
_MESSAGE_BYTES: Final = 4096


class Hello(msgspec.Struct, tag=True, frozen=True):
    """Workers can be forked. When the imports began and ended, on the monotonic clock."""

    began: float
    ended: float


class Forked(msgspec.Struct, tag=True, frozen=True):
    """The worker that was asked for."""

    pid: int


class Ended(msgspec.Struct, tag=True, frozen=True):
    """A worker is gone: its exit code, or -N if signal N killed it."""

    pid: int
    code: int


Said = Hello | Forked | Ended
_encoder = msgspec.msgpack.Encoder()
said: Final = msgspec.msgpack.Decoder(Said)


def serve_forks(control: socket.socket, child: Callable[[int], None], preload: Sequence[str] = PRELOAD) -> NoReturn:
    """Import, then fork until the front end is gone. `child` is run in each fork with the socket's descriptor.

    `control` is a SOCK_SEQPACKET. The fork ends when `child` returns or raises.
    """
    began = time.monotonic()
    with uncollected():
        for name in preload:
            import_module(name)
    # Collected now and never looked at again: a collection in a worker would copy every page that holds an object.
    gc.collect()
    gc.freeze()
    wake, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, _nothing)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    _say(control, Hello(began, time.monotonic()))
    while True:
        readable, _, _ = select.select([control.fileno(), wake], [], [])
        if wake in readable:
            os.read(wake, _MESSAGE_BYTES)
            _reap(control)
        if control.fileno() in readable:
            asked, links, _, _ = socket.recv_fds(control, _MESSAGE_BYTES, 1)
            if not asked:
                os._exit(0)
            (link,) = links
            sys.stdout.flush()
            sys.stderr.flush()
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                for unused in (wake, waker):
                    os.close(unused)
                control.close()
                _run(child, link)
            os.close(link)
            _say(control, Forked(pid))


def _nothing(number: int, frame: object) -> None:
    """A handler there must be for the wake-up to be written."""


def _run(child: Callable[[int], None], link: int) -> NoReturn:
    code = 1
    try:
        child(link)
        code = 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _reap(control: socket.socket) -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        _say(control, Ended(pid, os.waitstatus_to_exitcode(status)))


def _say(control: socket.socket, message: Said) -> None:
    try:
        control.send(_encoder.encode(message))
    except OSError:
        os._exit(0)  # the front end is gone, and every worker with it
