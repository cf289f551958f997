"""One process from which the workers of all services are forked: it imports torch once in a session, not per service.

A server makes one of its own (penstock.runtime.launch.Forks), which tests/cli/test_program.py and
tests/runtime/test_recovery_faults.py go through.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from penstock.runtime.launch import COMMAND, Child, Forks, OnMark

Result = TypeVar("Result")


class SharedForks:
    """A launcher for services in any event loop. It outlives them: `close`, which a service calls, does nothing."""

    def __init__(self, *command: str) -> None:
        self._forks = Forks(command or COMMAND)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    async def launch(self, link: socket.socket, on_mark: OnMark) -> Child:
        here = asyncio.get_running_loop()

        def mark(name: str, ended: float, detail: str) -> None:
            here.call_soon_threadsafe(on_mark, name, ended, detail)

        return _Elsewhere(await self._there(self._forks.launch(link, mark)), self._there)

    async def close(self) -> None:
        return

    def end(self) -> None:
        """The fork server ends, and all workers with it."""
        asyncio.run_coroutine_threadsafe(self._forks.close(), self._loop).result(30)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)

    def _there(self, work: Coroutine[Any, Any, Result]) -> Awaitable[Result]:
        return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop))


class _Elsewhere:
    """A child that belongs to another loop."""

    def __init__(self, child: Child, there: Callable[[Coroutine[Any, Any, int]], Awaitable[int]]) -> None:
        self._child, self._there = child, there

    @property
    def pid(self) -> int:
        return self._child.pid

    def signal(self, number: signal.Signals) -> None:
        self._child.signal(number)

    async def reap(self, grace_s: float) -> int:
        return await self._there(self._child.reap(grace_s))
