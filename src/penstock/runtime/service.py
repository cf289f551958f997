"""The front end's side: requests go in, tokens come out, and a worker process is kept alive behind them.

    start -> starting -> ready <-> restarting -> ... -> draining -> stopped

A worker that dies, or whose step exceeds `server.step_deadline`, is replaced. Requests in flight are submitted again
with the tokens they have; the engine computes those once more and goes on exactly there, since every sampled request
carries a seed (one is drawn here if the client gave none). A request under which workers keep dying before it made
another token is run without other suspects, and fails alone if that worker dies too. Nothing here imports torch.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from typing import Final

from penstock.control.request import Request
from penstock.control.statistics import Statistics
from penstock.control.step import Finished
from penstock.deployment import Deployment
from penstock.errors import InvalidRequest, PenstockError, RequestFailed, Unavailable
from penstock.runtime import wire
from penstock.runtime.admission import Admission
from penstock.runtime.facts import ModelInfo, Output, State, StepReport, Timings
from penstock.runtime.failures import revive
from penstock.runtime.process import COMMAND, WorkerProcess
from penstock.runtime.stream import Stream

__all__ = ["ModelInfo", "Output", "RequestFailed", "Service", "State", "StepReport", "Timings"]

OnPhase = Callable[[str, float, str], None]
OnStep = Callable[[StepReport], None]

MAX_FRUITLESS_STARTS: Final = 5
"""This many workers in a row that ended before their first step, and the service gives up."""
BACK_OFF_S: Final = (0.0, 0.5, 1.0, 2.0, 4.0)
QUICK_START_S: Final = 30.0
"""While a worker that starts faster than this is being replaced, new requests wait instead of failing."""
DEATHS_OF_A_SUSPECT: Final = 2
MIN_PATIENCE_S: Final = 60.0
"""A replacement worker may take this long to start, or ten times what the last one took."""

_log = logging.getLogger("penstock.runtime")


class Service:
    """One replica, served. Make one with `start`; all methods belong to that event loop."""

    def __init__(self, deployment: Deployment, on_phase: OnPhase | None, command: Sequence[str]) -> None:
        self.deployment = deployment
        self.restarts = 0
        """Workers that had to be replaced."""
        self.recovery_s: float | None = None
        """How long the last restart took, from the death to ready."""
        self.failure: PenstockError | None = None
        """Why the service gave up."""
        self.on_step: list[OnStep] = []
        self.statistics: Statistics = Statistics()
        self.stopped = asyncio.Event()
        """Set when the service has given up or was closed."""
        queue = deployment.server.queue
        self.admission = Admission(max_requests=queue.max_requests, max_prompt_tokens=queue.max_prompt_tokens)
        self._on_phase = on_phase
        self._command = command
        self._info: ModelInfo | None = None
        self._state: State = "starting"
        self._draining = False
        self._streams: dict[str, Stream] = {}
        self._leaving: set[str] = set()
        self._idle = asyncio.Event()
        self._idle.set()
        self._worker: WorkerProcess | None = None
        self._ready = asyncio.Event()
        self._fatal: PenstockError | None = None
        self._start_s = 0.0
        self._spawned: float | None = None
        self._news = 0.0
        self._steps = 0
        self._supervisor: asyncio.Task[None] | None = None

    @classmethod
    async def start(
        cls, deployment: Deployment, on_phase: OnPhase | None = None, *, command: Sequence[str] = COMMAND
    ) -> Service:
        """Start the worker and return when it can take requests.

        Args:
            on_phase: called with (name, seconds, detail) as each phase of starting ends, also on later restarts.
            command: what to run as the worker; `--fd N` is appended.

        Raises:
            BadInput: the worker refused the deployment or the model, as its own error says.
            PenstockError: the worker could not start.
        """
        service = cls(deployment, on_phase, command)
        service._supervisor = asyncio.create_task(service._supervise(), name="penstock worker supervisor")
        service._supervisor.add_done_callback(service._supervisor_ended)
        ready = asyncio.create_task(service._ready.wait())
        try:
            await asyncio.wait({ready, service._supervisor}, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await service.close()
            raise
        finally:
            ready.cancel()
        if service.failure is not None:
            raise service.failure
        return service

    @property
    def state(self) -> State:
        return "draining" if self._draining and self._state != "stopped" else self._state

    @property
    def info(self) -> ModelInfo:
        if self._info is None:
            raise Unavailable("the model is not loaded yet", retry_after_s=1.0)
        return self._info

    @property
    def worker_pid(self) -> int | None:
        """Process id of the worker, if there is one."""
        return self._worker.pid if self._worker is not None else None

    @property
    def in_flight(self) -> int:
        """Requests taken and not yet finished."""
        return len(self._streams)

    @property
    def stalled_s(self) -> float:
        """Seconds without a step although requests are in flight; 0 without any. For health checks."""
        return time.monotonic() - self._news if any(not stream.ended for stream in self._streams.values()) else 0.0

    async def generate(self, request: Request) -> AsyncIterator[Output]:
        """Run one request. Closing the iterator cancels it in the worker within one step.

        Raises:
            Overloaded, Unavailable, InvalidRequest: before the first item; nothing was taken.
            RequestFailed: this request cannot be finished.
        """
        stream = self._admit(request)
        try:
            while True:
                output = await stream.next()
                yield output
                if output.finished is not None:
                    return
        finally:
            self._leave(stream)

    async def drain(self, timeout_s: float) -> int:
        """Refuse new requests, let the running ones finish within `timeout_s`, end the rest. Returns how many."""
        self._draining = True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), timeout_s)
        rest = [stream for stream in self._streams.values() if not stream.ended]
        for stream in rest:
            self._cancel(stream)
            if stream.output:
                stream.fail(RequestFailed(f"the server shut down before request {stream.request.id} was finished"))
            else:
                stream.fail(self._unavailable())
        return len(rest)

    async def close(self) -> None:
        """Stop the worker. Streams that are still open fail. Safe to call twice."""
        self._state = "stopped"
        if self._supervisor is not None:
            self._supervisor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._supervisor
        if self._worker is not None:
            await self._worker.stop()
            self._worker = None
        self._fail_all(RequestFailed("the server stopped before this request was finished"))
        self.stopped.set()

    # --- requests -----------------------------------------------------------------------------------------------------

    def _admit(self, request: Request) -> Stream:
        if self.state in ("starting", "draining", "stopped") or (
            self.state == "restarting" and self._start_s > QUICK_START_S
        ):
            raise self._unavailable()
        self._validate(request)
        now = time.monotonic()
        self.admission.admit(request.id, len(request.prompt), now)
        if request.sampling.temperature > 0 and request.sampling.seed is None:
            request = replace(request, sampling=replace(request.sampling, seed=secrets.randbits(63)))
        if not self.stalled_s:
            self._news = now
        stream = Stream(request, now)
        self._streams[request.id] = stream
        self._idle.clear()
        self._submit(stream)
        return stream

    def _validate(self, request: Request) -> None:
        if request.id in self._streams or request.id in self._leaving:
            raise InvalidRequest(
                field="id", value=request.id, why="a request with this id is in flight", remedy="use a new id"
            )
        if not request.prompt:
            raise InvalidRequest(field="prompt", value=[], why="it has no tokens", remedy="send at least one token")
        if request.max_tokens < 1:
            raise InvalidRequest(
                field="max_tokens", value=request.max_tokens, why="nothing would be generated", remedy="1 or more"
            )
        longest = self.info.max_sequence_tokens
        if len(request.prompt) + request.max_tokens > longest:
            raise InvalidRequest(
                field="max_tokens", value=request.max_tokens, code="context_length_exceeded",
                why=f"{len(request.prompt)} prompt tokens and {request.max_tokens} output tokens exceed the context of "
                f"{longest} tokens", remedy=f"at most {max(longest - len(request.prompt), 0)}, or a shorter prompt",
            )  # fmt: skip
        out_of_range = next((token for token in request.prompt if not 0 <= token < self.info.vocab_size), None)
        if out_of_range is not None:
            raise InvalidRequest(
                field="prompt", value=out_of_range, why="the model has no such token",
                remedy=f"ids from 0 to {self.info.vocab_size - 1}",
            )  # fmt: skip

    def _submit(self, stream: Stream) -> None:
        """Hand a stream to the worker, unless it must wait: for a worker, or as a suspect for another suspect's end."""
        if self._worker is None or self._state != "ready" or stream.sent or stream.ended:
            return
        if stream.deaths >= DEATHS_OF_A_SUSPECT and any(
            other.sent and other.deaths >= DEATHS_OF_A_SUSPECT for other in self._streams.values()
        ):
            return
        stream.sent = True
        self._worker.send(wire.Submit(replace(stream.request, output=tuple(stream.output))))

    def _submit_all(self) -> None:
        for stream in self._streams.values():
            self._submit(stream)

    def _cancel(self, stream: Stream) -> None:
        if stream.sent and self._worker is not None:
            self._leaving.add(stream.request.id)
            self._worker.send(wire.Cancel(stream.request.id))
            stream.sent = False

    def _leave(self, stream: Stream) -> None:
        if not stream.ended:
            self._cancel(stream)
        self.admission.gone(stream.request.id, time.monotonic())
        if self._streams.get(stream.request.id) is stream:
            del self._streams[stream.request.id]
        if not self._streams:
            self._idle.set()

    def _fail_all(self, error: PenstockError) -> None:
        for stream in self._streams.values():
            stream.fail(error)

    def _unavailable(self) -> Unavailable:
        if self.state == "draining":
            return Unavailable("the server is shutting down", retry_after_s=self.deployment.server.drain_timeout)
        if self.state == "stopped":
            return Unavailable(f"the server has stopped: {self.failure or 'it was closed'}", retry_after_s=60.0)
        return Unavailable(f"the model is {self.state}", retry_after_s=min(max(self._start_s, 1.0), 60.0))

    # --- messages from the worker -------------------------------------------------------------------------------------

    def _received(self, message: wire.FromWorker) -> None:
        match message:
            case wire.Stepped():
                self._stepped(message)
            case wire.Refused(id, field, value, why, remedy, code):
                self._leaving.discard(id)
                if (stream := self._streams.get(id)) is not None:
                    stream.fail(InvalidRequest(field=field, value=value, why=why, remedy=remedy, code=code))
            case wire.Phase(name, seconds, detail):
                self._phase(name, seconds, detail)
            case wire.Ready(info):
                self._info = info
                self._state = "ready"
                self._news = time.monotonic()
                self._submit_all()
                self._ready.set()
            case wire.Failure():
                self._fatal = revive(message)

    def _stepped(self, message: wire.Stepped) -> None:
        now = time.monotonic()
        if message.statistics is not None:
            self.statistics = message.statistics
        report = message.report
        if report is not None:
            self._news = now
            self._steps += 1
            for id in message.admitted:
                if (stream := self._streams.get(id)) is not None:
                    stream.admitted(report.started)
        cleared = False
        for id, token in message.tokens.items():
            if (stream := self._streams.get(id)) is not None and stream.sent:
                if not stream.output:
                    self.admission.started(id, now)
                cleared |= stream.deaths >= DEATHS_OF_A_SUSPECT
                stream.push(token, message.logprobs.get(id), now)
        for finished in message.finished:
            cleared |= self._finished(finished)
        for failed in message.failed:
            self._leaving.discard(failed.id)
            if (stream := self._streams.get(failed.id)) is not None:
                cleared |= stream.deaths >= DEATHS_OF_A_SUSPECT
                stream.fail(RequestFailed(f"request {failed.id} could not be computed: {failed.why}"))
        if cleared:
            self._submit_all()
        if report is not None:
            self._tell(report)

    def _tell(self, report: StepReport) -> None:
        for callback in self.on_step:
            try:
                callback(report)
            except Exception:  # noqa: BLE001 - an observer's mistake must not take the worker's connection with it
                _log.exception("a callback of on_step failed")

    def _phase(self, name: str, seconds: float, detail: str) -> None:
        if self._on_phase is None:
            return
        if self._spawned is not None:
            self._on_phase("start worker", time.monotonic() - self._spawned - seconds, "a process of its own")
            self._spawned = None
        self._on_phase(name, seconds, detail)

    def _finished(self, finished: Finished) -> bool:
        if finished.id in self._leaving:
            self._leaving.discard(finished.id)
            return False
        stream = self._streams.get(finished.id)
        if stream is None:
            return False
        suspect = stream.deaths >= DEATHS_OF_A_SUSPECT
        stream.finish(finished)
        return suspect

    # --- supervision --------------------------------------------------------------------------------------------------

    async def _supervise(self) -> None:
        """Keep a worker running until the service is closed or it is plain that none will run."""
        fruitless = 0
        died = time.monotonic()
        while True:
            self._ready.clear()
            self._fatal, self._steps = None, 0
            self._spawned = time.monotonic()
            try:
                self._worker = await WorkerProcess.spawn(self._command, self._received)
            except OSError as error:
                return self._give_up(PenstockError(f"the worker process cannot be started: {error}"))
            ending = await self._attend(self._worker, died)
            died = time.monotonic()
            in_flight, failed = self._orphan()
            cause = f"{ending}; {self._fatal}" if self._fatal is not None else ending
            fruitless = 0 if self._steps or failed else fruitless + 1
            if self._info is None:
                return self._give_up(self._fatal or PenstockError(f"the worker ended while it started: {ending}"))
            if fruitless >= MAX_FRUITLESS_STARTS:
                return self._give_up(
                    PenstockError(f"{fruitless} workers in a row ended before their first step, the last by: {cause}")
                )
            self._state = "restarting"
            self.restarts += 1
            pid, self._worker = self._worker.pid, None
            _log.warning(
                "worker %d ended: %s; %d requests in flight; restart %d", pid, cause, in_flight, self.restarts,
                extra={"worker_pid": pid, "ending": ending, "requests": in_flight, "restarts": self.restarts},
            )  # fmt: skip
            await asyncio.sleep(BACK_OFF_S[min(fruitless, len(BACK_OFF_S) - 1)])

    async def _attend(self, worker: WorkerProcess, died: float) -> str:
        """Start the worker's engine and watch its steps until it ends. Returns how it ended."""
        began = time.monotonic()
        worker.send(wire.Start(self.deployment.model_dump(mode="json")))
        ready: asyncio.Future[bool] = asyncio.create_task(self._ready.wait())
        futures: set[asyncio.Future[bool] | asyncio.Future[str]] = {ready, worker.exited}
        try:
            patience_s = max(MIN_PATIENCE_S, 10 * self._start_s) if self.restarts else None
            await asyncio.wait(futures, return_when=asyncio.FIRST_COMPLETED, timeout=patience_s)
        finally:
            ready.cancel()
        if not self._ready.is_set():
            worker.signal(signal.SIGKILL)
            return await worker.exited
        self._start_s = time.monotonic() - began
        if self.restarts:
            self.recovery_s = time.monotonic() - died
            _log.warning(
                "worker %d is ready, %.2f s after the last one ended; %d requests go on", worker.pid, self.recovery_s,
                len(self._streams), extra={"worker_pid": worker.pid, "seconds": self.recovery_s},
            )  # fmt: skip
        deadline_s = self.deployment.server.step_deadline
        while not worker.exited.done():
            await asyncio.wait({worker.exited}, timeout=min(max(deadline_s / 4, 0.05), 5.0))
            if self.stalled_s > deadline_s:
                await self._replace_stuck(worker)
        return worker.exited.result()

    async def _replace_stuck(self, worker: WorkerProcess) -> None:
        ids = [id for id, stream in self._streams.items() if stream.sent]
        _log.error(
            "worker %d made no step for %.1f s after its step %d; requests: %s; its stacks follow if it can write them",
            worker.pid, self.stalled_s, self._steps, ", ".join(ids[:16]) + (", ..." if len(ids) > 16 else ""),
            extra={"worker_pid": worker.pid, "request_ids": ids, "step": self._steps},
        )  # fmt: skip
        worker.signal(signal.SIGUSR1)
        await asyncio.wait({worker.exited}, timeout=0.5)
        worker.signal(signal.SIGKILL)
        await worker.exited

    def _orphan(self) -> tuple[int, int]:
        """The worker is gone: its requests wait for the next one. Returns how many there were and how many failed."""
        self._leaving.clear()
        orphans = [stream for stream in self._streams.values() if stream.sent and not stream.ended]
        failed = 0
        for stream in orphans:
            stream.sent = False
            stream.deaths += 1
            if stream.deaths > DEATHS_OF_A_SUSPECT:
                failed += 1
                why = f"{stream.deaths} workers ended while they computed request {stream.request.id}"
                stream.fail(RequestFailed(why))
        return len(orphans), failed

    def _supervisor_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.error("supervision failed", exc_info=error)
            self._give_up(PenstockError(f"the worker's supervision failed: {error!r}"))

    def _give_up(self, error: PenstockError) -> None:
        self.failure = error
        self._state = "stopped"
        if self._info is not None:
            _log.error("the service has stopped: %s", error)
        self._fail_all(RequestFailed(f"the server has stopped: {error}"))
        self.stopped.set()
