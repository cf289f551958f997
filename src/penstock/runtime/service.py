"""The front end's side: requests go in, tokens come out, and a supervised worker process computes them.

    service = await Service.start(Deployment())
    async for output in service.generate(Request(id="a", prompt=(1, 2, 3), max_tokens=16)): ...

When the worker dies, requests in flight go to the next one with the tokens they have; the engine computes those once
more and goes on exactly there (in_flight.py), since every sampled request carries a seed (one is drawn here if the
client gave none). Nothing here imports torch.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Final, Self

from msgspec.structs import replace

from penstock.control.request import Request
from penstock.control.statistics import Statistics
from penstock.deployment import Deployment
from penstock.errors import DeadlinePassed, InvalidRequest, PenstockError, RequestFailed, Unavailable
from penstock.runtime import wire
from penstock.runtime.adapters import Adapters
from penstock.runtime.admission import NO_BOUNDS, Admission
from penstock.runtime.facts import ModelInfo, Output, State, StepReport, TimeBounds, Timings
from penstock.runtime.in_flight import InFlight
from penstock.runtime.launch import Launcher, launcher_for
from penstock.runtime.reading import OnRead
from penstock.runtime.stream import AtOnce, Stream
from penstock.runtime.supervisor import OnPhase, Supervisor

__all__ = ["ModelInfo", "OnPhase", "Output", "RequestFailed", "Service", "State", "StepReport", "Timings"]

QUICK_START_S: Final = 30.0
"""While a worker that starts faster than this is being replaced, new requests wait instead of failing."""


class Service:
    """One replica, served. Make one with `start`; all methods belong to that event loop."""

    def __init__(
        self, deployment: Deployment, on_phase: OnPhase | None, launcher: Launcher, on_read: OnRead | None = None
    ) -> None:
        self.deployment = deployment
        queue = deployment.server.queue
        self.admission = Admission(
            max_requests=queue.max_requests, max_prompt_tokens=queue.max_prompt_tokens,
            shared=deployment.server.shared, fair=deployment.policy.order == "fair_share",
        )  # fmt: skip
        self._in_flight = InFlight(
            self.admission, lambda message: self._supervisor.send(message), lambda: self._supervisor.state == "ready"
        )
        self._supervisor = Supervisor(deployment, launcher, self._in_flight, on_phase, on_read)
        self.adapters = self._in_flight.adapters = Adapters(
            deployment.model, self._supervisor.send, self._without_adapter
        )
        self._streams: Final = self._in_flight.streams
        self.stopped: Final = self._in_flight.stopped
        """Set when the service has given up or was closed."""
        self.on_step: Final = self._in_flight.on_step
        """Called with each step's report."""
        self._reserved: set[str] = set()
        """Admitted by `reserve` and not yet run."""
        self._drain_ends: float | None = None
        """On the monotonic clock; None: it takes requests."""

    @classmethod
    async def start(
        cls, deployment: Deployment, on_phase: OnPhase | None = None, on_read: OnRead | None = None, *,
        command: Sequence[str] | None = None, launcher: Launcher | None = None,
    ) -> Self:  # fmt: skip
        """Start the worker and return when it can take requests.

        Args:
            on_phase: called with (name, seconds, detail) as each phase of starting ends, also on later restarts.
            on_read: called with (bytes read, bytes in all) now and then while large weights are read.
            command: what to run as the worker, with `--fd N` appended; None: the engine's.
            launcher: starts workers in place of that; closed with the service.

        Raises:
            BadInput: the worker refused the deployment or the model, as its own error says.
            PenstockError: the worker could not start.
        """
        service = cls(deployment, on_phase, launcher or launcher_for(command), on_read)
        try:
            await service._supervisor.start()
        except BaseException:
            await service.close()
            raise
        return service

    @property
    def state(self) -> State:
        state = self._supervisor.state
        return "draining" if self._drain_ends is not None and state != "stopped" else state

    @property
    def info(self) -> ModelInfo:
        """Raises Unavailable before the model was loaded for the first time."""
        if self._supervisor.info is None:
            raise self.unavailable()
        return self._supervisor.info

    @property
    def statistics(self) -> Statistics:
        """The newest that this worker sent: when it is ready, a few times per second, and whenever it goes idle."""
        return self._in_flight.statistics

    @property
    def recovered(self) -> int:
        """Requests that went on in another worker, each counted once per death."""
        return self._in_flight.recovered

    @property
    def restarts(self) -> int:
        """Workers that had to be replaced."""
        return self._supervisor.restarts

    @property
    def recovery_s(self) -> float | None:
        """How long the last replacement took, from the end of one worker until the next was ready."""
        return self._supervisor.recovery_s

    @property
    def failure(self) -> PenstockError | None:
        """Why the service gave up."""
        return self._supervisor.failure

    @property
    def worker_pid(self) -> int | None:
        """Process id of the worker, if there is one."""
        return self._supervisor.pid

    @property
    def in_flight(self) -> int:
        """Requests taken and not yet finished."""
        return sum(not stream.ended for stream in self._streams.values())

    @property
    def stalled_s(self) -> float:
        """Seconds without a step although requests are in flight; 0 without any. For health checks."""
        return time.monotonic() - self._supervisor.progress if self._working() else 0.0

    @property
    def retry_after_s(self) -> float:
        """When to come back: from the queue if the model is ready, else from how long it takes to start."""
        if self.state == "ready":
            return self.admission.retry_after_s(time.monotonic())
        return self.unavailable().retry_after_s

    def unavailable(self) -> Unavailable:
        """What a request is told that comes while none is taken: why, and what to do."""
        match self.state:
            case "draining":
                wait_s = max((self._drain_ends or 0.0) - time.monotonic(), 1.0)
                return Unavailable(
                    "the server is shutting down: it takes no new requests, and the running ones finish. Remedy: come "
                    f"back in {wait_s:.2f} s, or ask another replica", retry_after_s=wait_s,
                )  # fmt: skip
            case "stopped":
                return Unavailable(
                    f"the server has stopped: {self.failure or 'it was closed'}. Remedy: start it again (its log says "
                    "more), or ask another replica", retry_after_s=60.0,
                )  # fmt: skip
            case state:
                last_s = self._supervisor.start_s
                why = "" if state == "starting" else f": a worker ended, and the last was ready after {last_s:.1f} s"
                return Unavailable(f"the model is {state}{why}", retry_after_s=min(max(last_s, 1.0), 60.0))

    async def generate(
        self, request: Request, bounds: TimeBounds = NO_BOUNDS, at_once: AtOnce | None = None
    ) -> AsyncIterator[Output]:
        """Run one request. Closing the iterator cancels it in the worker within one step.

        Args:
            bounds: times that it asks for; what cannot be kept is refused.
            at_once: called, while the next output is awaited, with a token that is neither the last nor has anything
                with it. What it has dealt with comes in no output.

        Raises:
            Overloaded, Unavailable, InvalidRequest: before the first item; nothing was taken.
            DeadlinePassed: it waited until its deadline and got no token.
            RequestFailed: this request cannot be finished.
            Unavailable: also later, when `drain` ends it.
        """
        stream = self._admit(request, bounds, at_once)
        timer = None
        if bounds.deadline_s is not None:
            timer = asyncio.get_running_loop().call_later(bounds.deadline_s, self._too_late, stream, bounds.deadline_s)
        try:
            while True:
                output = await stream.next()
                yield output
                if output.finished is not None:
                    return
        finally:
            if timer is not None:
                timer.cancel()
            self._leave(stream)

    @contextlib.contextmanager
    def reserve(
        self, requests: Sequence[Request], *, field: str = "prompt", bounds: TimeBounds = NO_BOUNDS
    ) -> Iterator[None]:
        """Room in the queue for all of `requests` or for none. `generate` each of them within this block.

        Args:
            field: what a refusal of so many names as the client's to change.
            bounds: times that all of them ask for.

        Raises:
            Overloaded, Unavailable, InvalidRequest: nothing was taken.
        """
        self._check_open()
        contents: dict[tuple[int, int], int] = {}  # the n sequences of a prompt share it
        for request in requests:
            self._check_id(request.id)
            size = (id(request.prompt), request.max_tokens)
            if size not in contents:
                self._check_size(request)
                contents[size] = hash((request.prompt, request.max_tokens))
        ids = {request.id for request in requests}
        self.admission.admit_group(
            {request.id: len(request.prompt) for request in requests}, time.monotonic(), field=field,
            tenant=requests[0].tenant, weight=requests[0].weight, bounds=bounds,
            content=hash(tuple(contents[id(request.prompt), request.max_tokens] for request in requests)),
        )  # fmt: skip
        self._reserved |= ids
        try:
            yield
        finally:
            for unused in ids & self._reserved:
                self.admission.gone(unused, time.monotonic())
            self._reserved -= ids

    def reset_prefix_cache(self) -> None:
        """Requests that come later find no KV of those before. A worker that is being replaced has none anyway.

        Raises InvalidRequest: the schedule is being recorded, and a replay of it would not know of this.
        """
        if self.deployment.server.record is not None:
            raise InvalidRequest(
                field="server.record", value=self.deployment.server.record, why="a recorded schedule has no such event",
                remedy="a server that records nothing",
            )  # fmt: skip
        self._supervisor.send(wire.ForgetPrefixes())

    async def drain(self, timeout_s: float) -> int:
        """Refuse new requests, let the running ones finish within `timeout_s`, end the rest with Unavailable.

        Returns how many were ended. What readers have not taken yet is theirs to take: nobody is waited for.
        """
        self._drain_ends = time.monotonic() + timeout_s
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                for stream in list(self._streams.values()):
                    await stream.over.wait()
        rest = [stream for stream in self._streams.values() if not stream.ended]
        for stream in rest:
            self._in_flight.cancel(stream)
            text = f"the server is shutting down, and this request was not done within the {timeout_s:g} s it had left"
            stream.fail(Unavailable(text, retry_after_s=self.retry_after_s))
        return len(rest)

    async def close(self) -> None:
        """Stop the worker. Streams that are still open fail. Safe to call twice."""
        await self._supervisor.stop()
        self.adapters.close(RequestFailed("the server stopped"))
        for stream in self._streams.values():
            stream.fail(RequestFailed("the server stopped before this request was finished"))
        self.stopped.set()

    def adapters_in_use(self) -> tuple[set[str], set[str]]:
        """Names of the adapters of requests that hold KV, and of those that wait."""
        running: set[str] = set()
        waiting: set[str] = set()
        for stream in self._streams.values():
            if stream.request.adapter and not stream.ended:
                (running if stream.held else waiting).add(self.adapters.name(stream.request.adapter))
        return running, waiting

    async def _without_adapter(self, handle: str) -> None:
        for stream in list(self._streams.values()):
            if stream.request.adapter == handle:
                await stream.over.wait()

    # --- requests -----------------------------------------------------------------------------------------------------

    def _working(self) -> bool:
        return any(not stream.ended for stream in self._streams.values())

    def _check_open(self) -> None:
        state = self.state
        if state not in ("ready", "restarting") or (state == "restarting" and self._supervisor.start_s > QUICK_START_S):
            raise self.unavailable()

    def _admit(self, request: Request, bounds: TimeBounds, at_once: AtOnce | None) -> Stream:
        self._check_open()
        now = time.monotonic()
        if request.id in self._reserved:
            self._reserved.discard(request.id)
        else:
            self._check_id(request.id)
            self._check_size(request)
            self.admission.admit(
                request.id, len(request.prompt), now, tenant=request.tenant, weight=request.weight, bounds=bounds,
                content=hash((request.prompt, request.max_tokens)),
            )  # fmt: skip
        if request.sampling.temperature > 0 and request.sampling.seed is None:
            request = replace(request, sampling=replace(request.sampling, seed=secrets.randbits(63)))
        if not self._working():
            self._supervisor.progress = now
        stream = Stream(request, now, at_once)
        self._streams[request.id] = stream
        self._in_flight.submit(stream)
        return stream

    def _check_id(self, id: str) -> None:
        if id in self._streams or id in self._in_flight.leaving or id in self._reserved:
            raise InvalidRequest(field="id", value=id, why="a request with this id is in flight", remedy="use a new id")

    def _check_size(self, request: Request) -> None:
        """O(prompt): once for a prompt, not for each of its n sequences."""
        if not request.prompt:
            raise InvalidRequest(field="prompt", value=[], why="it has no tokens", remedy="send at least one token")
        if request.max_tokens < 1:
            raise InvalidRequest(
                field="max_tokens", value=request.max_tokens, why="nothing would be generated", remedy="1 or more"
            )
        longest, vocab_size = self.info.max_sequence_tokens, self.info.vocab_size
        # The one token of an embedding is never shown, and the last token is never an input.
        if len(request.prompt) + (0 if request.sampling.embed else request.max_tokens) > longest:
            raise InvalidRequest(
                field="max_tokens", value=request.max_tokens, code="context_length_exceeded",
                why=f"{len(request.prompt)} prompt tokens and {request.max_tokens} output tokens exceed the context of "
                f"{longest} tokens", remedy=f"at most {max(longest - len(request.prompt), 0)}, or a shorter prompt",
            )  # fmt: skip
        low, high = min(request.prompt), max(request.prompt)
        if low < 0 or high >= vocab_size:
            raise InvalidRequest(
                field="prompt", value=low if low < 0 else high, why="the model has no such token",
                remedy=f"ids from 0 to {vocab_size - 1}",
            )  # fmt: skip

    def _too_late(self, stream: Stream, deadline_s: float) -> None:
        """Its deadline has passed. What has a token goes on: the client reads it, or leaves by itself."""
        if not stream.output and not stream.ended:
            wait_s = self.admission.retry_after_s(time.monotonic())
            self._in_flight.cancel(stream)
            text = (
                f"no token within the deadline of {deadline_s * 1e3:.0f} ms; {self.admission.requests} requests wait "
                f"for a first token. Remedy: come back in {wait_s:.2f} s, or a longer deadline"
            )
            stream.fail(DeadlinePassed(text, retry_after_s=wait_s))

    def _leave(self, stream: Stream) -> None:
        if not stream.ended:
            self._in_flight.cancel(stream)
        self.admission.gone(stream.request.id, time.monotonic())
        stream.over.set()
        self._in_flight.take_out(stream)
