"""Keeps one worker process running: starts it, watches it, replaces it, and knows when to give up.

    starting -> ready <-> restarting -> stopped

A worker ends by itself, by a signal, or here, when requests are in flight and no step was made for
`server.step_deadline`. Another is started at once, with a back-off only while workers end before their first step.
What happens to the requests is their owner's business (`Owner`, which is runtime/service.py).
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Sequence
from typing import Final, Literal, Protocol

from penstock.deployment import Deployment
from penstock.errors import PenstockError
from penstock.runtime import wire
from penstock.runtime.facts import ModelInfo
from penstock.runtime.facts import OnPhase as OnPhase
from penstock.runtime.failures import revive
from penstock.runtime.process import WorkerProcess

MAX_FRUITLESS_WORKERS: Final = 5
"""This many in a row that ended before their first step, and no other is started."""
BACK_OFF_S: Final = (0.0, 0.5, 1.0, 2.0, 4.0)
MIN_PATIENCE_S: Final = 60.0
"""A replacement may take this long to start, or ten times what the last one took."""
LAST_DUMP_S: Final = 0.5
"""A stuck worker gets this long to write its stacks."""

_log = logging.getLogger("penstock.runtime")


class Owner(Protocol):
    """Whoever has requests in the worker."""

    def received(self, message: wire.Stepped | wire.Refused | wire.Admitted) -> None:
        """News from the worker that is running."""

    def worker_ready(self) -> None:
        """`supervisor.send` works from now on."""

    def worker_gone(self) -> tuple[int, int]:
        """Nothing that was sent will be answered. Returns how many requests that hit, and how many were given up."""

    def gave_up(self, error: PenstockError) -> None:
        """There will be no other worker."""

    def in_worker(self) -> list[str]:
        """Ids of the requests that the worker should be making steps for."""


class Supervisor:
    """One worker at a time. Make it in an event loop, then `start`."""

    def __init__(
        self, deployment: Deployment, command: Sequence[str], owner: Owner, on_phase: OnPhase | None = None
    ) -> None:
        self.state: Literal["starting", "ready", "restarting", "stopped"] = "starting"
        self.info: ModelInfo | None = None
        self.restarts = 0
        """Workers that had to be replaced."""
        self.recovery_s: float | None = None
        """How long the last replacement took, from the end of one worker until the next was ready."""
        self.start_s = 0.0
        """How long the last start took."""
        self.failure: PenstockError | None = None
        """Why it gave up."""
        self.progress = time.monotonic()
        """When the worker was last known to be alive and advancing; the owner moves it on when work begins."""
        self._deployment, self._command, self._owner, self._on_phase = deployment, command, owner, on_phase
        self._worker: WorkerProcess | None = None
        self._ready = asyncio.Event()
        self._last_words: PenstockError | None = None
        self._steps = 0
        self._spawned: float | None = None
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Return when the first worker is ready. Raises what kept it from starting, as itself if it was a BadInput."""
        self._task = asyncio.create_task(self._run(), name="penstock worker supervisor")
        self._task.add_done_callback(self._ended)
        ready = asyncio.create_task(self._ready.wait())
        try:
            await asyncio.wait({ready, self._task}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ready.cancel()
        if self.failure is not None:
            raise self.failure

    async def stop(self) -> None:
        """End the worker and start no other. Safe to call twice."""
        self.state = "stopped"
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        if self._worker is not None:
            await self._worker.stop()
            self._worker = None

    @property
    def pid(self) -> int | None:
        """Process id of the worker, if there is one."""
        return self._worker.pid if self._worker is not None else None

    def send(self, message: wire.ToWorker) -> None:
        """To the worker, if it is ready; what a worker that is gone missed, its successor is sent by the owner."""
        if self._worker is not None and self.state == "ready":
            self._worker.send(message)

    async def _run(self) -> None:
        fruitless = 0
        died = time.monotonic()
        while True:
            self._ready.clear()
            self._last_words, self._steps, self._spawned = None, 0, time.monotonic()
            try:
                self._worker = await WorkerProcess.spawn(self._command, self._received, self._lost)
            except OSError as error:
                return self._give_up(PenstockError(f"the worker process cannot be started: {error}"))
            ending = await self._attend(self._worker, died)
            died = time.monotonic()
            pid, self._worker = self._worker.pid, None
            cause = f"{ending}; {self._last_words}" if self._last_words is not None else ending
            if self.info is None:
                return self._give_up(self._last_words or PenstockError(f"the worker ended while it started: {ending}"))
            self.state = "restarting"
            requests, given_up = self._owner.worker_gone()
            fruitless = 0 if self._steps or given_up else fruitless + 1
            if fruitless >= MAX_FRUITLESS_WORKERS:
                return self._give_up(
                    PenstockError(f"{fruitless} workers in a row ended before their first step, the last by: {cause}")
                )
            self.restarts += 1
            _log.warning(
                "worker %d ended: %s; requests in flight: %d; restart %d", pid, cause, requests, self.restarts,
                extra={"worker_pid": pid, "ending": ending, "requests": requests, "restarts": self.restarts},
            )  # fmt: skip
            await asyncio.sleep(BACK_OFF_S[min(fruitless, len(BACK_OFF_S) - 1)])

    async def _attend(self, worker: WorkerProcess, died: float) -> str:
        """Let the worker load its engine and watch its steps until it ends. Returns how it ended."""
        began = time.monotonic()
        worker.send(wire.Start(self._deployment.model_dump(mode="json")))
        ready: asyncio.Future[bool] = asyncio.create_task(self._ready.wait())
        futures: set[asyncio.Future[bool] | asyncio.Future[str]] = {ready, worker.exited}
        patience_s = max(MIN_PATIENCE_S, 10 * self.start_s) if self.restarts else None
        try:
            await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED, timeout=patience_s)
        finally:
            ready.cancel()
        if not self._ready.is_set():
            worker.signal(signal.SIGKILL)
            return await worker.exited
        self.start_s = time.monotonic() - began
        if self.restarts:
            self.recovery_s = time.monotonic() - died
            _log.warning(
                "worker %d is ready, %.2f s after the last one ended; requests that go on: %d", worker.pid,
                self.recovery_s, len(self._owner.in_worker()),
                extra={"worker_pid": worker.pid, "seconds": self.recovery_s},
            )  # fmt: skip
        deadline_s = self._deployment.server.step_deadline
        while not worker.exited.done():
            await asyncio.wait({worker.exited}, timeout=min(max(deadline_s / 4, 0.05), 5.0))
            if time.monotonic() - self.progress > deadline_s and (ids := self._owner.in_worker()):
                await self._end_stuck(worker, ids)
        return worker.exited.result()

    async def _end_stuck(self, worker: WorkerProcess, ids: list[str]) -> None:
        _log.error(
            "worker %d made no step for %.1f s after its step %d; requests: %s; its stacks follow if it can write them",
            worker.pid, time.monotonic() - self.progress, self._steps,
            ", ".join(ids[:16]) + (", ..." if len(ids) > 16 else ""),
            extra={"worker_pid": worker.pid, "request_ids": ids, "step": self._steps},
        )  # fmt: skip
        worker.signal(signal.SIGUSR1)
        await asyncio.wait({worker.exited}, timeout=LAST_DUMP_S)
        worker.signal(signal.SIGKILL)
        await worker.exited

    def _lost(self) -> None:
        """What is sent from here on would be lost with the worker, so it waits for the next, as of now."""
        if self.state == "ready":
            self.state = "restarting"

    def _received(self, message: wire.FromWorker) -> None:
        match message:
            case wire.Stepped():
                if message.report is not None:
                    self.progress = time.monotonic()
                    self._steps += 1
                self._owner.received(message)
            case wire.Refused() | wire.Admitted():
                self._owner.received(message)
            case wire.Phase(name, seconds, detail):
                self._phase(name, seconds, detail)
            case wire.Ready(info):
                self.info, self.state, self.progress = info, "ready", time.monotonic()
                self._owner.worker_ready()
                self._ready.set()
            case wire.Failure():
                self._last_words = revive(message)

    def _phase(self, name: str, seconds: float, detail: str) -> None:
        if self._on_phase is None:
            return
        if self._spawned is not None:
            self._on_phase("start worker", time.monotonic() - self._spawned - seconds, "a process of its own")
            self._spawned = None
        self._on_phase(name, seconds, detail)

    def _ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("supervision failed", exc_info=error)
            self._give_up(PenstockError(f"the worker's supervision failed: {error!r}"))

    def _give_up(self, error: PenstockError) -> None:
        self.failure, self.state = error, "stopped"
        if self.info is not None:
            _log.error("the service has stopped: %s", error)
        self._owner.gave_up(error)
