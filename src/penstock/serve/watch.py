"""Ends the task that answers a request when nobody listens: the client has left, or takes what is written too slowly.

The task itself does the work, since every task more costs each request as much as reading it does. So it is cancelled
from here, by a call of the connection when it is lost, or by a timer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

from starlette.types import Receive, Scope

ABORT_S: Final = 1.0
"""After which an aborted connection that has not ended is left to itself."""

Look = Callable[[], bool]
"""Called every so often; returns whether the client is still patient enough to be written to."""


class Connection(Protocol):
    """Where the server around the app has one as scope['penstock.connection'] (http_protocol.py)."""

    def watch(self, lost: Callable[[], None]) -> None:
        """`lost` is called when the connection has ended, which may be now."""

    def forget(self, lost: Callable[[], None]) -> None:
        """It is not called any more."""

    def abort(self) -> None:
        """End it; what was not sent is dropped."""


class Watch:
    """Over the task it is made in, until `stop`."""

    __slots__ = ("_cancelled", "_connection", "_every_s", "_leaving", "_look", "_over", "_task", "_timer", "slow")

    def __init__(self, scope: Scope, receive: Receive, every_s: float, look: Look) -> None:
        """`look` is called each `every_s`; False: the client is too slow."""
        task = asyncio.current_task()
        assert task is not None, "an answer is sent by a task"
        self._task, self._every_s, self._look = task, every_s, look
        self._cancelled = False
        self.slow = False
        """The client took too long to read."""
        self._over: asyncio.Event | None = None
        self._leaving: asyncio.Task[None] | None = None
        self._timer = task.get_loop().call_later(every_s, self._tick)
        self._connection: Connection | None = scope.get("penstock.connection")
        if self._connection is not None:
            self._connection.watch(self._left)
        else:
            self._leaving = asyncio.create_task(_until_gone(receive))
            self._leaving.add_done_callback(self._gone)

    def stop(self) -> None:
        """Cancel nothing any more."""
        self._timer.cancel()
        if self._connection is not None:
            self._connection.forget(self._left)
        elif self._leaving is not None:
            self._leaving.remove_done_callback(self._gone)
            self._leaving.cancel()

    def take_back(self) -> bool:
        """In place of a cancellation that has arrived: whether nobody else asked for one."""
        if self._cancelled:
            self._task.uncancel()
        return not self._task.cancelling()

    async def hang_up(self) -> None:
        """End the connection of a client that reads too slowly, and what it has not read with it."""
        if self._connection is None:
            return
        self._over = asyncio.Event()
        self._connection.watch(self._over.set)
        self._connection.abort()
        try:
            async with asyncio.timeout(ABORT_S):
                await self._over.wait()
        except TimeoutError:
            self._connection.forget(self._over.set)

    def _left(self) -> None:
        if not self._cancelled:
            self._cancelled = True
            self._task.cancel()

    def _gone(self, leaving: asyncio.Task[None]) -> None:
        if not leaving.cancelled():
            leaving.exception()  # looked at: with the server gone, so is the client
            self._left()

    def _tick(self) -> None:
        if self._look():
            self._timer = self._task.get_loop().call_later(self._every_s, self._tick)
        else:
            self.slow = True
            self._left()


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
