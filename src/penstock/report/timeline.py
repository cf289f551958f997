"""A run as a timeline for Perfetto or chrome://tracing, in the Trace Event format (JSON object form).

One process per replica, or per rank where each has a scheduler: a track of steps, counters for queue, batch and KV, and
a lane per request with its time in the queue, in prefill and in decode. Written event by event, so a run of any length
needs no memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from math import isnan
from typing import Any, BinaryIO, Final

import msgspec

from penstock.report.simulation import OUTCOMES, SimulationResult

_STEP_THREAD: Final = 1


@dataclass(frozen=True, slots=True)
class StepSpan:
    """One step of a replica. Seconds of virtual time."""

    replica: int
    number: int
    begin_s: float
    end_s: float
    tokens: int
    """Rows that go through the model."""
    decoding: int
    chunks: int


@dataclass(frozen=True, slots=True)
class Level:
    """A replica's state from `t_s` on."""

    replica: int
    t_s: float
    waiting: int
    running: int
    kv_used: float
    """Share, 0 to 1."""


@dataclass(frozen=True, slots=True)
class RequestSpan:
    """One request on its replica; times it did not reach are None."""

    replica: int
    id: str
    arrival_s: float
    admitted_s: float | None
    first_token_s: float | None
    finish_s: float
    prompt_tokens: int
    output_tokens: int
    outcome: str = "completed"


Event = StepSpan | Level | RequestSpan


class TimelineWriter:
    """Writes events as they come, in any order (a viewer sorts by time); `close`, or the end of `with`, completes it.

    Args:
        file: where the JSON goes; it stays open.
        names: replica -> title of its process.
    """

    def __init__(self, file: BinaryIO, names: Mapping[int, str] | None = None) -> None:
        self._file, self._names = file, names or {}
        self._encode = msgspec.json.Encoder().encode
        self._titled: set[int] = set()
        self._steps: dict[int, int] = {}
        self.count = 0
        """Trace events so far."""
        file.write(b'{"displayTimeUnit":"ms","traceEvents":[')

    def __enter__(self) -> TimelineWriter:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def add(self, event: Event) -> None:
        """One event."""
        self._title(event.replica)
        for made in _trace_events(event):
            self._put(made)

    def step(self, replica: int, begin_s: float, end_s: float, decoding: int, chunks: int, prompt_tokens: int) -> None:
        """One step, numbered in the order they come: the callback a simulation wants."""
        number = self._steps[replica] = self._steps.get(replica, 0) + 1
        self._title(replica)
        self._put(_step(replica, number, begin_s, end_s, decoding + prompt_tokens, decoding, chunks))

    def add_result(self, result: SimulationResult) -> None:
        """The counters and the lane of each request, from a finished run."""
        for event in events_of(result):
            self.add(event)

    def close(self) -> None:
        """Complete the JSON."""
        self._file.write(b"\n]}\n")

    def _title(self, replica: int) -> None:
        if replica not in self._titled:
            self._titled.add(replica)
            for made in _titles(replica, self._names.get(replica, f"replica {replica}")):
                self._put(made)

    def _put(self, made: dict[str, Any]) -> None:
        self._file.write((b",\n" if self.count else b"\n") + self._encode(made))
        self.count += 1


def timeline(events: Iterable[Event], names: Mapping[int, str] | None = None) -> str:
    """All events as text."""
    file = BytesIO()
    with TimelineWriter(file, names) as writer:
        for event in events:
            writer.add(event)
    return file.getvalue().decode()


def events_of(result: SimulationResult) -> Iterator[Event]:
    """Counters from the samples, and a lane per request that reached a replica; columns do not tell admissions."""
    for one in result.series:
        rows = zip(
            one.t_s.tolist(), one.waiting.tolist(), one.running.tolist(), one.kv_used.tolist(), strict=True
        )  # fmt: skip
        for t_s, waiting, running, kv_used in rows:
            yield Level(one.replica, t_s, waiting, running, kv_used)
    columns, end_s = result.requests, result.end_s
    lanes = zip(
        columns.replica.tolist(), columns.arrival_s.tolist(), columns.first_token_s.tolist(),
        columns.finish_s.tolist(), columns.prompt_tokens.tolist(), columns.output_tokens.tolist(),
        columns.outcome.tolist(), strict=True,
    )  # fmt: skip
    for number, (replica, arrival, first, finish, prompt, output, outcome) in enumerate(lanes):
        if replica >= 0:
            yield RequestSpan(
                replica, f"request {number}", arrival, None, None if isnan(first) else first,
                end_s if isnan(finish) else finish, prompt, output, OUTCOMES[outcome],
            )  # fmt: skip


def _titles(replica: int, title: str) -> Iterator[dict[str, Any]]:
    yield {"ph": "M", "name": "process_name", "pid": replica, "args": {"name": title}}
    yield {"ph": "M", "name": "process_sort_index", "pid": replica, "args": {"sort_index": replica}}
    yield {"ph": "M", "name": "thread_name", "pid": replica, "tid": _STEP_THREAD, "args": {"name": "steps"}}


def _trace_events(event: Event) -> Iterator[dict[str, Any]]:
    match event:
        case StepSpan():
            yield _step(
                event.replica, event.number, event.begin_s, event.end_s, event.tokens, event.decoding, event.chunks
            )
        case Level():
            counters = {
                "requests": {"waiting": event.waiting, "running": event.running},
                "KV in use": {"percent": round(100 * event.kv_used, 2)},
            }
            for name, values in counters.items():
                yield {"ph": "C", "name": name, "pid": event.replica, "ts": _us(event.t_s), "args": values}
        case RequestSpan():
            yield from _lane(event)


def _step(
    replica: int, number: int, begin_s: float, end_s: float, tokens: int, decoding: int, chunks: int
) -> dict[str, Any]:  # fmt: skip
    return {
        "ph": "X", "name": "mixed" if decoding and chunks else "decode" if decoding else "prefill", "cat": "step",
        "pid": replica, "tid": _STEP_THREAD, "ts": _us(begin_s), "dur": _us(end_s - begin_s),
        "args": {"step": number, "tokens": tokens, "decoding": decoding, "chunks": chunks},
    }  # fmt: skip


def _lane(span: RequestSpan) -> Iterator[dict[str, Any]]:
    """Nested asynchronous spans with one id share a lane. A phase ends where the next begins, or with the request."""
    waits = "queue" if span.admitted_s is not None or span.first_token_s is None else "queue and prefill"
    phases = [(waits, span.arrival_s), ("prefill", span.admitted_s), ("decode", span.first_token_s)]
    reached = [(name, begin) for name, begin in phases if begin is not None]
    common = {"cat": "request", "id": span.id, "pid": span.replica, "tid": _STEP_THREAD}
    facts = {
        "prompt_tokens": span.prompt_tokens, "output_tokens": span.output_tokens, "outcome": span.outcome
    }  # fmt: skip
    yield common | {"ph": "b", "name": span.id, "ts": _us(span.arrival_s), "args": facts}
    for at, (name, begin) in enumerate(reached):
        end = reached[at + 1][1] if at + 1 < len(reached) else span.finish_s
        yield common | {"ph": "b", "name": name, "ts": _us(begin)}
        yield common | {"ph": "e", "name": name, "ts": _us(end)}
    yield common | {"ph": "e", "name": span.id, "ts": _us(span.finish_s)}


def _us(seconds: float) -> float:
    return round(1e6 * seconds, 3)
