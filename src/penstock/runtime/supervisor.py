"""Keeps one worker process running: starts it, watches it, replaces it, and knows when to give up.

    starting -> ready <-> restarting -> stopped

A worker ends by itself, by a signal, or here, when it is stuck: requests are in flight and no step was made for
`server.step_deadline`, or for far longer than any step took while the process did not even compute. Another is started
at once, with a back-off only while workers get nothing done. What happens to the requests is their owner's business
(`Owner`, which is runtime/in_flight.py).
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from typing import Any, Final, Literal, Protocol

from penstock.deployment import Deployment
from penstock.errors import PenstockError
from penstock.runtime import wire
from penstock.runtime.facts import ModelInfo
from penstock.runtime.facts import OnPhase as OnPhase
from penstock.runtime.failures import revive
from penstock.runtime.launch import Launcher
from penstock.runtime.liveness import QUIET_S, SLOWEST_STEPS, Liveness
from penstock.runtime.patience import STOOD_STILL_S, patience
from penstock.runtime.process import KILLED, WorkerProcess
from penstock.runtime.reading import OnRead

MAX_FRUITLESS_WORKERS: Final = 12
"""This many in a row that got nothing done, and no other is started."""
SETTLED_S: Final = 1.0
"""A worker that had nothing to do and was ready for this long did its work."""
BACK_OFF_S: Final = (0.0, 0.1, 0.2, 0.5, 1.0)
POLL_S: Final = 1.0
MIN_PATIENCE_S: Final = 60.0
PATIENT_STARTS: Final = 10
"""A replacement may take this many times as long to start as the last one, and at least MIN_PATIENCE_S."""
LAST_DUMP_S: Final = 0.5
"""A stuck worker gets this long to write its stacks, or to make a step if it only had to be woken."""
_LOOK_S: Final = 0.02
OF_SERVER: Final = frozenset({"log_format", "record", "admin_port"})
"""What a worker reads of `server`; the port, since without one a directory of adapters is refused as having no use."""

_log = logging.getLogger("penstock.runtime")


class Owner(Protocol):
    """Whoever has requests in the worker."""

    def received(self, message: wire.Stepped | wire.Refused | wire.Admitted | wire.AboutAdapters) -> None:
        """News from the worker that is running."""

    def worker_ready(self) -> None:
        """`supervisor.send` works from now on."""

    def adapters_to_load(self) -> list[wire.LoadAdapter]:
        """What a worker must have loaded before it is ready."""

    def worker_gone(self, *, killed: bool) -> tuple[int, int]:
        """Nothing that was sent will be answered. Returns how many requests that hit, and how many were given up.

        `killed`: by SIGKILL from elsewhere, and not by itself or for being stuck.
        """

    def gave_up(self, error: PenstockError) -> None:
        """There will be no other worker."""

    def in_worker(self) -> list[str]:
        """Ids of the requests that the worker should be making steps for."""


def for_worker(deployment: Deployment) -> dict[str, Any]:
    """A deployment as a worker is told it: without the front end, and so without keys, certificates and collectors."""
    told = deployment.model_dump(mode="json", exclude={"server"})
    return told | {"server": deployment.server.model_dump(mode="json", include=set(OF_SERVER))}


class Supervisor:
    """One worker at a time. Make it in an event loop, then `start`."""

    def __init__(
        self, deployment: Deployment, launcher: Launcher, owner: Owner, on_phase: OnPhase | None = None,
        on_read: OnRead | None = None,
    ) -> None:  # fmt: skip
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
        self._deployment, self._launcher, self._owner = deployment, launcher, owner
        self._on_phase, self._on_read = on_phase, on_read
        self._worker: WorkerProcess | None = None
        self._ready = asyncio.Event()
        self._last_words: PenstockError | None = None
        self._steps = 0
        self._was_stuck = False
        self._slowest_s = 0.0
        """The longest step so far, of any worker."""
        self._ready_at: float | None = None
        """Of this worker."""
        self._untold = 0.0
        """Up to when the time of starting has been told in phases."""
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
        await self._launcher.close()

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
            ending = await self._one_worker(died)
            died = time.monotonic()
            pid, self._worker = self._worker.pid if self._worker is not None else 0, None
            cause = f"{ending}; {self._last_words}" if self._last_words is not None else ending
            if self.info is None:
                return self._give_up(self._last_words or PenstockError(f"the worker ended while it started: {ending}"))
            self.state = "restarting"
            requests, given_up = self._owner.worker_gone(killed=ending == KILLED and not self._was_stuck)
            idle = not requests and self._ready_at is not None and died - self._ready_at >= SETTLED_S
            fruitless = 0 if self._steps or given_up or idle else fruitless + 1
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

    async def _one_worker(self, died: float) -> str:
        """Start one and watch it to its end. Returns how it ended."""
        self._ready.clear()
        self._last_words, self._steps, self._ready_at, self._was_stuck = None, 0, None, False
        began = self._untold = time.monotonic()
        patience_s = max(MIN_PATIENCE_S, PATIENT_STARTS * self.start_s) if self.restarts else None
        try:
            async with patience(patience_s):
                self._worker = worker = await WorkerProcess.spawn(
                    self._launcher, self._received, self._lost, self._phase
                )
                self._phase("start worker", time.monotonic(), "a process of its own")
                restart, adapters = self.info is not None, self._owner.adapters_to_load()
                worker.send(wire.Start(for_worker(self._deployment), restart=restart, adapters=adapters))
                if not await self._is_ready(worker):
                    return await worker.exited
        except TimeoutError:  # before OSError, of which it is one
            if self._worker is not None:
                self._worker.signal(signal.SIGKILL)
                await self._worker.exited
            return f"it was not ready within {patience_s:g} s"
        except OSError as error:
            return f"it cannot be started: {error}"
        self.start_s = time.monotonic() - began
        if self.restarts:
            self.recovery_s = time.monotonic() - died
            _log.warning(
                "worker %d is ready, %.2f s after the last one ended; requests that go on: %d", worker.pid,
                self.recovery_s, len(self._owner.in_worker()),
                extra={"worker_pid": worker.pid, "seconds": self.recovery_s},
            )  # fmt: skip
        await self._watch(worker)
        return await worker.exited

    async def _is_ready(self, worker: WorkerProcess) -> bool:
        """Wait until it is ready (True) or gone. If it is stopped meanwhile, it is woken: loading has no deadline."""
        ready: asyncio.Future[bool] = asyncio.create_task(self._ready.wait())
        futures: set[asyncio.Future[bool] | asyncio.Future[str]] = {ready, worker.exited}
        alive = Liveness(worker.pid)
        try:
            while not (await asyncio.wait(futures, timeout=POLL_S, return_when=asyncio.FIRST_COMPLETED))[0]:
                if (stopped_s := alive.stopped_for(time.monotonic())) > QUIET_S:
                    _log.warning(
                        "worker %d, which starts, has been stopped by a signal for %.1f s; it is woken", worker.pid,
                        stopped_s, extra={"worker_pid": worker.pid, "seconds": stopped_s},
                    )  # fmt: skip
                    worker.signal(signal.SIGCONT)
        finally:
            ready.cancel()
        return self._ready.is_set()

    async def _watch(self, worker: WorkerProcess) -> None:
        """Return when it has ended, which is arranged here if it is stuck."""
        deadline_s = self._deployment.server.step_deadline
        poll_s = min(max(deadline_s / 4, 0.05), POLL_S)
        alive = Liveness(worker.pid)
        while not worker.exited.done():
            looked = time.monotonic()
            await asyncio.wait({worker.exited}, timeout=poll_s)
            now = time.monotonic()
            late_s = now - looked - poll_s
            # If this process stood still, what the worker sent meanwhile is still to be read; it may have stood, too.
            self.progress = now if late_s > STOOD_STILL_S else min(now, self.progress + max(late_s, 0.0))
            quiet_s = now - self.progress
            ids = self._owner.in_worker() if quiet_s > poll_s else []
            rests = alive.rests_for(now, working=bool(ids))
            if ids and (quiet_s > deadline_s or min(quiet_s, rests) > max(QUIET_S, SLOWEST_STEPS * self._slowest_s)):
                await self._end_stuck(worker, ids)

    async def _end_stuck(self, worker: WorkerProcess, ids: list[str]) -> None:
        """Say where it stands and end it, unless all it took was to wake it up."""
        _log.error(
            "worker %d made no step for %.1f s after its step %d; requests: %s; its stacks follow if it can write them",
            worker.pid, time.monotonic() - self.progress, self._steps,
            ", ".join(ids[:16]) + (", ..." if len(ids) > 16 else ""),
            extra={"worker_pid": worker.pid, "request_ids": ids, "step": self._steps},
        )  # fmt: skip
        steps, slowest_s = self._steps, self._slowest_s
        worker.signal(signal.SIGUSR1)
        worker.signal(signal.SIGCONT)  # one that was stopped could not write them
        ends = time.monotonic() + LAST_DUMP_S
        while self._steps == steps and not worker.exited.done() and (left_s := ends - time.monotonic()) > 0:
            await asyncio.wait({worker.exited}, timeout=min(left_s, _LOOK_S))
        if self._steps > steps:
            _log.warning("worker %d goes on: it had been stopped by a signal", worker.pid)
            # The step that was stopped has taken all that time: no measure of how long steps take.
            self._slowest_s = slowest_s
            return
        self._was_stuck = True
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
                    self._slowest_s = max(self._slowest_s, message.report.seconds)
                self._owner.received(message)
            case wire.Refused() | wire.Admitted() | wire.AdapterLoaded() | wire.AdapterRefused() | wire.AdapterGone():
                self._owner.received(message)
            case wire.Phase(name, ended, detail):
                self._phase(name, ended, detail)
            case wire.Reading(done, total):
                if self._on_read is not None:
                    self._on_read(done, total)
            case wire.Ready(info):
                self.info, self.state = info, "ready"
                self.progress = self._ready_at = time.monotonic()
                self._phase("take up work", self.progress, "")
                self._owner.worker_ready()
                self._ready.set()
            case wire.Failure():
                self._last_words = revive(message)

    def _phase(self, name: str, ended: float, detail: str) -> None:
        """`ended`: on the monotonic clock. It began when the last one ended."""
        seconds, self._untold = ended - self._untold, ended
        if self._on_phase is not None:
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
