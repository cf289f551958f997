"""A run as a timeline for Perfetto or chrome://tracing, in the Trace Event format (JSON object form).

One process per replica: a track of steps, counters for queue, batch and KV, and a lane per request with its time in
the queue, in prefill and in decode. Written event by event, so a run of any length needs no memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any, BinaryIO, Final

import msgspec

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


def write_timeline(file: BinaryIO, events: Iterable[Event], names: Mapping[int, str] | None = None) -> int:
    """Write all events in any order; returns how many trace events that made. `names`: replica -> its title.

    A viewer sorts by time itself. Times are microseconds.
    """
    encode = msgspec.json.Encoder().encode
    file.write(b'{"displayTimeUnit":"ms","traceEvents":[')
    count = 0
    seen: set[int] = set()
    for event in events:
        if event.replica not in seen:
            seen.add(event.replica)
            title = (names or {}).get(event.replica, f"replica {event.replica}")
            for made in _titles(event.replica, title):
                file.write((b",\n" if count else b"\n") + encode(made))
                count += 1
        for made in _trace_events(event):
            file.write(b",\n" + encode(made))
            count += 1
    file.write(b"\n]}\n")
    return count


def timeline(events: Iterable[Event], names: Mapping[int, str] | None = None) -> str:
    """The same as text."""
    file = BytesIO()
    write_timeline(file, events, names)
    return file.getvalue().decode()


def _titles(replica: int, title: str) -> Iterator[dict[str, Any]]:
    yield {"ph": "M", "name": "process_name", "pid": replica, "args": {"name": title}}
    yield {"ph": "M", "name": "process_sort_index", "pid": replica, "args": {"sort_index": replica}}
    yield {"ph": "M", "name": "thread_name", "pid": replica, "tid": _STEP_THREAD, "args": {"name": "steps"}}


def _trace_events(event: Event) -> Iterator[dict[str, Any]]:
    match event:
        case StepSpan():
            kind = "mixed" if event.decoding and event.chunks else "decode" if event.decoding else "prefill"
            yield {
                "ph": "X", "name": kind, "cat": "step", "pid": event.replica, "tid": _STEP_THREAD,
                "ts": _us(event.begin_s), "dur": _us(event.end_s - event.begin_s),
                "args": {"step": event.number, "tokens": event.tokens, "decoding": event.decoding,
                         "chunks": event.chunks},
            }  # fmt: skip
        case Level():
            counters = {
                "requests": {"waiting": event.waiting, "running": event.running},
                "KV in use": {"percent": round(100 * event.kv_used, 2)},
            }
            for name, values in counters.items():
                yield {"ph": "C", "name": name, "pid": event.replica, "ts": _us(event.t_s), "args": values}
        case RequestSpan():
            yield from _lane(event)


def _lane(span: RequestSpan) -> Iterator[dict[str, Any]]:
    """Nested asynchronous spans with one id share a lane. A phase ends where the next begins, or with the request."""
    phases = [("queue", span.arrival_s), ("prefill", span.admitted_s), ("decode", span.first_token_s)]
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
