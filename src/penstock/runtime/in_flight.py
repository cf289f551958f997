"""The requests in the worker's hands: they are sent to it, its news is given to their streams, and its end survived.

When a worker is gone, what it had waits for the next one with the tokens it has so far. Blamed for its end are requests
that made no token in it, those that held KV first. The next worker gets the blamed ones alone, and what others there
are once each of them has proved itself by a token; from the second crash on they are suspects, which come one at a
time. Only who was all that a worker had can be found guilty and fail: an innocent request is at worst delayed.
"""

from __future__ import annotations

import asyncio
import dataclasses
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

CRASH_BLAME: Final = 3
"""Of a worker that ended by itself. One that got SIGKILL from elsewhere, which says little about its requests, is 1.

With so much blame since its last token a request comes before all others, which wait until it has made one."""
SUSPECT_BLAME: Final = 5
"""With more than that it also comes alone; no end that it had company in gives it more."""
MOST_BLAME: Final = 8
"""With more than that, the third crash or the ninth kill, it fails if that worker had nothing else."""

TOTALS: Final = (
    "steps", "prefill_tokens", "decode_tokens", "submitted", "finished", "cancelled", "failed", "preemptions", "swaps",
    "stalls", "prefix_query_tokens", "prefix_hit_tokens",
)  # fmt: skip
"""Fields of Statistics that only grow, as counters made of them must."""

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
        """The newest that this worker sent: when it is ready, a few times per second, and whenever it goes idle. Totals
        count from the start of the service, over all its workers."""
        self._before = Statistics()
        """Totals of the workers that are gone; no gauges."""
        self.recovered = 0
        """Requests that went on in another worker, each counted once per death."""
        self.stopped = asyncio.Event()
        """Set when the service has given up or was closed."""
        self._on_trial = False
        """Some stream is blamed for a crash: what is sent comes by degrees."""
        self._blank_deaths = 0
        """Workers in a row that ended with requests of which they held none."""

    def take_out(self, stream: Stream) -> None:
        """Its reader has left."""
        del self.streams[stream.request.id]
        if self._on_trial:
            self.submit_all()

    def submit(self, stream: Stream) -> None:
        """Hand a stream to the worker, unless it must wait: for a worker, or for the trial of those that are blamed."""
        if self._on_trial:
            self.submit_all()
        elif self._ready() and not stream.sent and not stream.ended:
            self._submit(stream)

    def submit_all(self) -> None:
        """Whatever has not been sent and need not wait: the most suspicious first, then in order of arrival."""
        if not self._ready():
            return
        here = [stream for stream in self.streams.values() if not stream.ended]
        self._on_trial = any(stream.blame >= CRASH_BLAME for stream in here)
        waiting = [stream for stream in here if not stream.sent]
        if not self._on_trial:
            for stream in waiting:
                self._submit(stream)
            return
        unproven = [_suspicion(stream) for stream in here if stream.sent and not stream.proven]
        for stream in sorted(waiting, key=_suspicion, reverse=True):
            suspicion = _suspicion(stream)
            if unproven and max(unproven) > suspicion:
                return
            if suspicion > SUSPECT_BLAME and (unproven or self.leaving):
                return
            self._submit(stream)
            unproven.append(suspicion)

    def _submit(self, stream: Stream) -> None:
        stream.sent, stream.known = True, len(stream.output)
        self._send(wire.Submit(replace(stream.request, output=tuple(stream.output))))

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
            if self._on_trial:
                self.submit_all()
            return
        now, streams = time.monotonic(), self.streams
        if message.statistics is not None:
            self.statistics = _since(self._before, message.statistics)
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
        if self._on_trial:
            self.submit_all()

    def worker_ready(self) -> None:
        """What waits goes to the new worker: in order of arrival, unless some of it is blamed for a crash."""
        self.adapters.worker_ready()
        self.submit_all()

    def adapters_to_load(self) -> list[wire.LoadAdapter]:
        """What a worker must have loaded before it is ready."""
        return self.adapters.to_load()

    def worker_gone(self, *, killed: bool) -> tuple[int, int]:
        """What it had waits for the next one, unless it is certain that workers die of it."""
        orphans = [stream for stream in self.streams.values() if stream.sent and not stream.ended]
        alone = len(orphans) == 1 and not self.leaving
        self.leaving.clear()
        self._before = self.statistics = _since(self.statistics, Statistics())
        given_up = 0
        for stream, blame in self._blamed(orphans, killed=killed):
            stream.deaths += 1
            stream.blame += blame
            if not alone:
                stream.blame = min(stream.blame, SUSPECT_BLAME + 1)
            elif stream.blame > MOST_BLAME:
                given_up += 1
                why = f"{stream.deaths} workers ended while they computed request {stream.request.id}"
                stream.fail(RequestFailed(why))
        for stream in orphans:
            stream.sent = stream.held = False
        self._on_trial = any(stream.blame >= CRASH_BLAME and not stream.ended for stream in orphans)
        self.recovered += len(orphans) - given_up
        return len(orphans), given_up

    def _blamed(self, orphans: list[Stream], *, killed: bool) -> list[tuple[Stream, int]]:
        """Who may be why the worker ended, and how much blame each gets."""
        unproven = [stream for stream in orphans if not stream.proven]
        held = [stream for stream in unproven if stream.held]
        self._blank_deaths = self._blank_deaths + 1 if orphans and not any(one.held for one in orphans) else 0
        blame = 1 if killed else CRASH_BLAME
        on_trial = any(stream.blame >= CRASH_BLAME for stream in unproven)
        if held and not on_trial:
            return [(stream, blame) for stream in held]
        if on_trial or self._blank_deaths > 1 or (len(unproven) == 1 and not self._blank_deaths):
            return [(stream, blame) for stream in unproven]
        # All that are left only waited, as far as is known here, or the worker died of taking one in. It can be killed
        # at that moment too, and it can have died of what had made tokens: so little blame at first.
        return [] if self._blank_deaths else [(stream, 1) for stream in unproven]

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


def _since(before: Statistics, now: Statistics) -> Statistics:
    """`now` with the totals of `before` added."""
    return dataclasses.replace(now, **{name: getattr(before, name) + getattr(now, name) for name in TOTALS})


def _suspicion(stream: Stream) -> int:
    """Its blame, as far as the order of trial goes: those of one crash are tried together."""
    if stream.blame > SUSPECT_BLAME:
        return stream.blame
    return CRASH_BLAME if stream.blame >= CRASH_BLAME else 0


def _error_of(failed: Failed) -> PenstockError:
    """A grammar that its own request cannot be held to is the client's to change; anything else is ours."""
    if failed.why.startswith(GUIDE_FAILED):
        return InvalidRequest(
            field="response_format", value="", why=failed.why.removeprefix(GUIDE_FAILED), code="invalid_schema",
            remedy="a simpler grammar or schema",
        )  # fmt: skip
    return RequestFailed(f"request {failed.id} could not be computed: {failed.why}")
