"""The requests in the worker's hands: they are sent to it, its news is given to their streams, and its end survived.

When a worker is gone, what it had waits for the next one with the tokens it has so far. A request under which workers
keep dying before it made another token is a suspect: suspects run one at a time, and fail alone if that worker dies
too.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from msgspec.structs import replace

from penstock.control.request import GUIDE_FAILED
from penstock.control.statistics import Statistics
from penstock.control.step import Failed
from penstock.errors import InvalidRequest, PenstockError, RequestFailed
from penstock.runtime import wire
from penstock.runtime.admission import Admission
from penstock.runtime.facts import StepReport
from penstock.runtime.stream import Stream

if TYPE_CHECKING:
    from penstock.runtime.adapters import Adapters

OnStep = Callable[[StepReport], None]

SUSPECT_BLAME: Final = 5
"""More than that much blame since its last token, and a request runs apart from others of that sort."""
MOST_BLAME: Final = 8
"""More than that, and it fails: the third worker that crashed with it, or the ninth that was killed."""
CRASH_BLAME: Final = 3
"""Of a worker that ended by itself. One that got SIGKILL from elsewhere, which says little about its requests, is 1."""

_log = logging.getLogger("penstock.runtime")


class InFlight:
    """All streams of a service, and what its supervisor tells of them (supervisor.Owner). One event loop's."""

    adapters: Adapters
    """Set by the service, whose supervisor both need."""

    def __init__(self, admission: Admission, send: Callable[[wire.ToWorker], None], ready: Callable[[], bool]) -> None:
        """`send` reaches the worker if it is `ready`."""
        self._admission, self._send, self._ready = admission, send, ready
        self.streams: dict[str, Stream] = {}
        """By id, in order of arrival; until their reader has left."""
        self.leaving: set[str] = set()
        """Cancelled here, and the worker has not said so yet: these ids are still taken."""
        self.on_step: list[OnStep] = []
        """Called with each step's report."""
        self.statistics = Statistics()
        """The newest that this worker sent: when it is ready, a few times per second, and whenever it goes idle."""
        self.recovered = 0
        """Requests that went on in another worker, each counted once per death."""
        self.stopped = asyncio.Event()
        """Set when the service has given up or was closed."""
        self._suspects_wait = False
        self._blank_deaths = 0
        """Workers in a row that ended with requests of which they held none."""

    def take_out(self, stream: Stream) -> None:
        """Its reader has left."""
        del self.streams[stream.request.id]
        if self._suspects_wait:
            self.submit_all()

    def submit(self, stream: Stream) -> None:
        """Hand a stream to the worker, unless it must wait: for a worker, or as a suspect for another suspect's end."""
        if not self._ready() or stream.sent or stream.ended:
            return
        if stream.blame > SUSPECT_BLAME and any(
            other.sent and not other.ended and other.blame > SUSPECT_BLAME for other in self.streams.values()
        ):
            self._suspects_wait = True
            return
        stream.sent = True
        self._send(wire.Submit(replace(stream.request, output=tuple(stream.output))))

    def submit_all(self) -> None:
        """Whatever has not been sent, in order of arrival."""
        self._suspects_wait = False
        for stream in self.streams.values():
            self.submit(stream)

    def cancel(self, stream: Stream) -> None:
        """The worker is to end it, if it has it."""
        if stream.sent:
            stream.sent = False
            self.leaving.add(stream.request.id)
            self._send(wire.Cancel(stream.request.id))

    def received(self, message: wire.Stepped | wire.Refused | wire.Admitted | wire.AboutAdapters) -> None:
        """News of one step, for all its requests; what the next one admits; or a refusal of one."""
        if isinstance(message, wire.Admitted):
            for id in message.ids:
                if (stream := self.streams.get(id)) is not None:
                    stream.held = True
            return
        if isinstance(message, wire.AboutAdapters):
            self.adapters.received(message)
            return
        if isinstance(message, wire.Refused):
            self._fail(
                message.id,
                InvalidRequest(
                    field=message.field, value=message.value, why=message.why, remedy=message.remedy, code=message.code
                ),
            )
            return
        now, streams = time.monotonic(), self.streams
        self.statistics = message.statistics or self.statistics
        if message.report is not None:
            for id, cached_tokens in message.admitted.items():
                if (stream := streams.get(id)) is not None:
                    stream.admitted(cached_tokens, message.report.started)
        for id, vector in (message.embeddings or {}).items():
            if (stream := streams.get(id)) is not None:
                stream.embedding = tuple(memoryview(vector).cast("f"))
        for id, some in (message.prompt_logprobs or {}).items():
            if (stream := streams.get(id)) is not None and stream.sent:
                stream.score(some)
        ending = {finished.id for finished in message.finished}
        for id, token in message.tokens.items():
            if (stream := streams.get(id)) is not None and stream.sent:
                if not stream.output:
                    self._admission.started(id, now)
                stream.push(token, message.logprobs.get(id), now, last=id in ending)
        for finished in message.finished:
            if finished.id in self.leaving:
                self.leaving.discard(finished.id)
            elif (stream := streams.get(finished.id)) is not None:
                stream.finish(finished)
        for failed in message.failed:
            self._fail(failed.id, _error_of(failed))
        if message.report is not None:
            if message.report.decoding:
                self._admission.stepped(message.report.seconds, now)
            self._report(message.report)
        if self._suspects_wait:
            self.submit_all()

    def worker_ready(self) -> None:
        """Everything that waits goes to the new worker, in order of arrival."""
        self.adapters.worker_ready()
        self.submit_all()

    def adapters_to_load(self) -> list[wire.LoadAdapter]:
        """What a worker must have loaded before it is ready."""
        return self.adapters.to_load()

    def worker_gone(self, *, killed: bool) -> tuple[int, int]:
        """What it had waits for the next one, unless it has died of it too often."""
        self.leaving.clear()
        self.statistics = Statistics()
        orphans = [stream for stream in self.streams.values() if stream.sent and not stream.ended]
        given_up = 0
        # Who only waited had no part in it. If nobody was held, the worker may have died of taking one in; but only if
        # that happens again, for a worker can be killed at that moment too.
        anyone_held = any(stream.held for stream in orphans)
        self._blank_deaths = self._blank_deaths + 1 if orphans and not anyone_held else 0
        for stream in orphans:
            blamed = stream.held or self._blank_deaths > 1
            stream.sent = stream.held = False
            stream.deaths += blamed
            stream.blame += blamed * (1 if killed else CRASH_BLAME)
            if stream.blame > MOST_BLAME:
                given_up += 1
                why = f"{stream.deaths} workers ended while they computed request {stream.request.id}"
                stream.fail(RequestFailed(why))
        self.recovered += len(orphans) - given_up
        return len(orphans), given_up

    def gave_up(self, error: PenstockError) -> None:
        """Nobody will compute what is here."""
        self.adapters.close(error)
        for stream in self.streams.values():
            stream.fail(RequestFailed(f"the server has stopped: {error}"))
        self.stopped.set()

    def in_worker(self) -> list[str]:
        """Ids of the requests that the worker has and has not ended."""
        return [id for id, stream in self.streams.items() if stream.sent and not stream.ended]

    def _fail(self, request_id: str, error: PenstockError) -> None:
        self.leaving.discard(request_id)
        if (stream := self.streams.get(request_id)) is not None:
            stream.fail(error)

    def _report(self, report: StepReport) -> None:
        for callback in self.on_step:
            try:
                callback(report)
            except Exception:  # noqa: BLE001 - an observer's mistake must not take the worker's connection with it
                _log.exception("a callback of on_step failed")


def _error_of(failed: Failed) -> PenstockError:
    """A grammar that its own request cannot be held to is the client's to change; anything else is ours."""
    if failed.why.startswith(GUIDE_FAILED):
        return InvalidRequest(
            field="response_format", value="", why=failed.why.removeprefix(GUIDE_FAILED), code="invalid_schema",
            remedy="a simpler grammar or schema",
        )  # fmt: skip
    return RequestFailed(f"request {failed.id} could not be computed: {failed.why}")
