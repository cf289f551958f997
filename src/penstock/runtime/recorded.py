"""A recorded schedule as the latencies of its requests, where control saw them: without HTTP, which no schedule knows.

A step's result is a token for each prompt that it completed and for each sequence of its decode set. The set is not in
the file: who joins and who leaves it is, so it is kept here as an executor keeps it (control/step.py), and a request's
token times are those of the steps between its joining and its leaving. Reading a recording costs O(changes + tokens).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from penstock.errors import BadInput
from penstock.report.latency import Outcome, RequestRecord
from penstock.runtime.legs import Legs
from penstock.runtime.schedule import NANOSECONDS, Cancel, Done, Plan, Schedule, Submit

_names = Legs(0).ids


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a recording says of its requests."""

    records: list[RequestRecord]
    """Those that ended, by arrival. Seconds since the file began; a token came when control took its step's result."""
    without_end: int
    """Refused, or under way when the recording ended: no line tells which."""
    continued: int
    """Of `records`: they had tokens when they came, from a worker before. These do not count, nor does the time."""


@dataclass(slots=True)
class _Seen:
    """A request under way."""

    number: int
    submit: Submit
    before: int
    """Tokens it had when it came."""
    times: list[int] = field(default_factory=list)
    joined: int = -1
    """Ticks of the decode set until it joined."""
    cached: int | None = None


class _Reader:
    def __init__(self) -> None:
        self.records: list[RequestRecord] = []
        self.continued = 0
        self.live: dict[str, _Seen] = {}
        self._count = 0
        self._plans: dict[int, Plan] = {}
        self._decoding: dict[str, _Seen] = {}
        self._ticks: list[int] = []
        """When each step ended in which the decode set ran."""
        self._crossing: dict[str, _Seen] = {}
        """By the name of their second leg: ended at a length, where a long sequence is computed anew (legs.py)."""

    def submitted(self, event: Submit) -> None:
        first = self._crossing.pop(event.id, None)
        if first is None:
            self.live[event.id] = _Seen(self._count, event, event.output_tokens)
            self._count += 1
            return
        self.records = [record for record in self.records if record.index != first.number]
        self.live[event.id] = first

    def done(self, event: Done) -> None:
        plan = self._plans.pop(event.n, None)
        if plan is None:
            raise BadInput(
                field="schedule", value=f"result of step {event.n}", why="no such step was planned before it",
                remedy="an unchanged recording",
            )  # fmt: skip
        swapped = (id for id, _, _ in plan.swap_out)
        for id in (*plan.release, *plan.evict, *swapped, *plan.pause):
            self._leave(id)
        for id, _, cached in plan.admit:
            seen = self.live.get(id)
            if seen is not None and seen.cached is None:
                seen.cached = cached
        for id in plan.join:
            seen = self.live.get(id)
            if seen is not None:
                seen.joined = len(self._ticks)
                self._decoding[id] = seen
        if plan.decoding:
            self._ticks.append(event.t)
        for id, _, _, last in plan.chunks:
            if last and id in self.live:
                self.live[id].times.append(event.t)
        for end in event.finished:
            self._end(end.id, event.t, "completed", made=end.output_tokens, cut=end.reason == "length")
        for id, why in event.failed.items():
            self._end(id, event.t, "failed", reason=why)

    def cancelled(self, event: Cancel) -> None:
        self._end(event.id, event.t, "cancelled")

    def planned(self, event: Plan) -> None:
        self._plans[event.n] = event

    def _leave(self, id: str) -> None:
        seen = self._decoding.pop(id, None)
        if seen is not None:
            seen.times += self._ticks[seen.joined :]

    def _end(
        self, id: str, t: int, outcome: Outcome, *, made: int | None = None, cut: bool = False, reason: str = ""
    ) -> None:  # fmt: skip
        self._leave(id)
        seen = self.live.pop(id, None)
        if seen is None:
            return
        submit, times = seen.submit, seen.times
        if made is not None and made != seen.before + len(times):
            # A prompt whose log-probabilities alone were wanted, or an embedding, ends without a token.
            if made != seen.before:
                raise BadInput(
                    field="schedule", value=f"request {id}: {made} output tokens",
                    why=f"its steps made {seen.before + len(times)}", remedy="an unchanged recording",
                )  # fmt: skip
            times = []
        if cut:
            self._crossing[_names(id)[1]] = seen
        at = submit.t / NANOSECONDS
        self.continued += seen.before > 0
        self.records.append(
            RequestRecord(
                index=seen.number, arrival_s=at, sent_s=at, end_s=t / NANOSECONDS, prompt_tokens=submit.prompt_tokens,
                output_tokens=len(times), token_s=[time / NANOSECONDS for time in times], outcome=outcome,
                reason=reason, cached_tokens=seen.cached or 0,
            )
        )  # fmt: skip


def requests_of(schedule: Schedule) -> Recorded:
    """Arrivals, token times and ends of a recording's requests. Raises BadInput: the file contradicts itself."""
    reader = _Reader()
    for event in schedule.events:
        match event:
            case Submit():
                reader.submitted(event)
            case Cancel():
                reader.cancelled(event)
            case Plan():
                reader.planned(event)
            case Done():
                reader.done(event)
    records = sorted(reader.records, key=lambda record: record.index)
    return Recorded(records, without_end=len(reader.live), continued=reader.continued)
