"""From settings to a source: which of the loops, over which bodies. Every contradiction is refused here."""

from __future__ import annotations

from typing import Final

from penstock.errors import BadInput
from penstock.workload.arrivals import Arrivals, AtOnce, Constant, Drifting, Gamma, OnOff, Poisson
from penstock.workload.bodies import Bodies, BodySource, Marks, SharedPrefix, TraceBodies
from penstock.workload.closed_loop import ClosedLoop
from penstock.workload.formats import NAMES
from penstock.workload.lengths import Bootstrap, parse_lengths
from penstock.workload.open_loop import OpenLoop
from penstock.workload.plan import Workload
from penstock.workload.replay import Replay
from penstock.workload.servegen import ServeGen, is_pool
from penstock.workload.sessions import Sessions
from penstock.workload.settings import (
    DEFAULT_CONCURRENCY,
    DEFAULT_RATE,
    DEFAULT_REQUESTS,
    LAWS,
    Law,
    WorkloadSettings,
)
from penstock.workload.source import Source
from penstock.workload.think import parse_think, parse_turns
from penstock.workload.trace import Trace, read_trace

_NO_PAUSE: Final = ("0", "0.0", "0s")
FORMATS: Final = ("auto", *NAMES, "servegen")


def build_source(settings: WorkloadSettings) -> Source:
    """The source that the settings describe.

    Raises:
        BadInput: values out of range, settings that contradict each other, a trace that cannot be read.
    """
    _check(settings)
    if settings.trace is None:
        return _loop(settings, settings.arrivals.law or "poisson", _bodies(settings, None), ())
    if is_pool(settings.trace, settings.trace_format):
        return _servegen(settings)
    trace = _trace(settings)
    law = settings.arrivals.law
    if law is None:
        return Replay(bodies=TraceBodies(trace=trace, marks=_marks(settings), seed=settings.seed))
    if law == "sessions":
        notes = (*trace.notes, "each turn's lengths are those of a row of the trace, drawn with replacement")
        return _loop(settings, law, _bodies(settings, trace), notes)
    bodies = TraceBodies(trace=trace, marks=_marks(settings), seed=settings.seed)
    return _loop(settings, law, bodies, (*trace.notes, f"in the trace's order, at times of the law {law}"))


def _loop(settings: WorkloadSettings, law: Law, bodies: BodySource, notes: tuple[str, ...]) -> Source:
    count, duration_s, arrivals = settings.requests, settings.duration_s, settings.arrivals
    if count is None and duration_s is None and isinstance(bodies, Bodies):
        count = DEFAULT_REQUESTS
    if law == "closed":
        return ClosedLoop(
            users=DEFAULT_CONCURRENCY if arrivals.concurrency is None else arrivals.concurrency,
            bodies=bodies, think=parse_think(arrivals.think_s), count=count, duration_s=duration_s, notes=notes,
        )  # fmt: skip
    if law == "sessions" and isinstance(bodies, Bodies):
        return Sessions(
            law=_law("poisson", settings), bodies=bodies, turns=parse_turns(arrivals.turns or 3),
            think=parse_think(arrivals.think_s), context_tokens=settings.context_tokens, count=count,
            duration_s=duration_s, notes=notes,
        )  # fmt: skip
    return OpenLoop(law=_law(law, settings), bodies=bodies, count=count, duration_s=duration_s, notes=notes)


def _law(law: Law, settings: WorkloadSettings) -> Arrivals:
    arrivals = settings.arrivals
    rate = DEFAULT_RATE if arrivals.rate is None else arrivals.rate
    match law:
        case "gamma":
            return Gamma(rate, 1.0 if arrivals.cv is None else arrivals.cv)
        case "constant":
            return Constant(rate)
        case "onoff":
            return OnOff(rate)
        case "drifting":
            return Drifting(rate)
        case "batch":
            return AtOnce()
    return Poisson(rate)


def _bodies(settings: WorkloadSettings, rows: Trace | None) -> Bodies:
    shared = settings.shared_prefix
    lengths = Workload(
        prompt=parse_lengths(settings.prompt_tokens, field="workload.prompt_tokens", output=False),
        output=parse_lengths(settings.output_tokens, field="workload.output_tokens", output=True),
        rows=None if rows is None else Bootstrap(rows),
        context_tokens=None if settings.context_tokens is None else settings.context_tokens - shared.tokens,
    )
    prefix = SharedPrefix(tokens=shared.tokens, share=shared.share, groups=shared.groups) if shared.tokens else None
    return Bodies(lengths=lengths, shared=prefix, marks=_marks(settings), seed=settings.seed)


def _marks(settings: WorkloadSettings) -> Marks:
    return Marks(
        tenants=settings.tenants, priorities=settings.priorities, cancel_fraction=settings.cancel_fraction
    )  # fmt: skip


def _trace(settings: WorkloadSettings) -> Trace:
    assert settings.trace is not None
    # The factor of scale_to is the whole trace's, so then all of it must be read.
    whole = settings.arrivals.law == "sessions" or settings.scale_to is not None
    trace = read_trace(
        settings.trace, dequantise=settings.dequantise, seed=settings.seed, format_name=settings.trace_format,
        limit=None if whole else settings.requests,
    )  # fmt: skip
    if settings.scale_to is not None:
        trace = trace.fit(settings.scale_to)
    if settings.requests is not None and settings.arrivals.law != "sessions":
        trace = trace.first(settings.requests)
    trace = trace.at_speed(settings.speed)
    if settings.arrivals.law is None:
        if settings.arrivals.rate is not None:
            trace = trace.at_rate(settings.arrivals.rate)
        if settings.duration_s is not None:
            trace = trace.within(settings.duration_s)
    return trace


def _servegen(settings: WorkloadSettings) -> ServeGen:
    assert settings.trace is not None
    if settings.requests is None and settings.duration_s is None:
        raise _wrong("requests", None, "a ServeGen pool stands for days of traffic", "requests: 10000 or a duration_s")
    return ServeGen.read(
        settings.trace, rate=settings.arrivals.rate, speed=settings.speed, begin_s=settings.begin_s,
        marks=_marks(settings), count=settings.requests, duration_s=settings.duration_s,
        context_tokens=settings.context_tokens, seed=settings.seed,
    )  # fmt: skip


def _check(settings: WorkloadSettings) -> None:
    arrivals = settings.arrivals
    positive = (
        ("speed", settings.speed), ("requests", settings.requests), ("duration_s", settings.duration_s),
        ("arrivals.rate", arrivals.rate), ("arrivals.cv", arrivals.cv), ("arrivals.concurrency", arrivals.concurrency),
    )  # fmt: skip
    for name, value in positive:
        if value is not None and not 0 < value < float("inf"):
            raise _wrong(name, value, "it must be a positive number", "such as 1")
    if arrivals.law is not None and arrivals.law not in LAWS:
        raise _wrong("arrivals.law", arrivals.law, "no such law of arrival", "one of " + ", ".join(LAWS))
    if settings.trace_format not in FORMATS:
        raise _wrong("trace_format", settings.trace_format, "no such format", "one of " + ", ".join(FORMATS))
    shared = settings.shared_prefix.tokens
    if settings.context_tokens is not None and settings.context_tokens < 2 + shared:
        raise _wrong("context_tokens", settings.context_tokens, "too short for any request", f"{2 + shared} or more")
    _check_belongs(settings)


def _check_belongs(settings: WorkloadSettings) -> None:
    """Settings that the chosen kind of workload would ignore."""
    arrivals, law = settings.arrivals, settings.arrivals.law
    pool = settings.trace is not None and is_pool(settings.trace, settings.trace_format)
    rows = settings.trace is not None and not pool
    pause = None if str(arrivals.think_s) in _NO_PAUSE else arrivals.think_s
    without: list[tuple[str, object, bool, str]] = [
        ("arrivals.cv", arrivals.cv, law == "gamma", "law: gamma"),
        ("arrivals.concurrency", arrivals.concurrency, law == "closed", "law: closed"),
        ("arrivals.turns", arrivals.turns, law == "sessions", "law: sessions"),
        ("arrivals.think_s", pause, law in ("closed", "sessions"), "law: closed or sessions"),
        ("arrivals.rate", arrivals.rate, law not in ("closed", "batch"), "a law with a rate"),
        ("speed", None if settings.speed == 1 else settings.speed, settings.trace is not None and law is None,
         "a trace at its own times"),
        ("trace_format", None if settings.trace_format == "auto" else settings.trace_format,
         settings.trace is not None, "a trace"),
        ("begin_s", settings.begin_s or None, pool, "a ServeGen pool"),
        ("dequantise", settings.dequantise or None, rows, "a trace"),
        ("scale_to", settings.scale_to, rows, "a trace"),
        ("shared_prefix.tokens", settings.shared_prefix.tokens or None, settings.trace is None,
         "generated requests; a trace has its own prefixes"),
        ("shared_prefix.share", None if settings.shared_prefix.share == 1 else settings.shared_prefix.share,
         settings.shared_prefix.tokens > 0, "shared_prefix.tokens"),
        ("shared_prefix.groups", None if settings.shared_prefix.groups == 1 else settings.shared_prefix.groups,
         settings.shared_prefix.tokens > 0, "shared_prefix.tokens"),
        ("context_tokens", settings.context_tokens, not rows or law == "sessions",
         "generated requests; a trace has scale_to"),
        ("arrivals.law", law, not pool, "a trace of rows; a ServeGen pool has its own times"),
    ]  # fmt: skip
    for name, value, belongs, place in without:
        if value is not None and not belongs:
            raise _wrong(name, value, "it would have no effect here", f"leave it out, or use it with {place}")


def _wrong(name: str, value: object, why: str, remedy: str) -> BadInput:
    return BadInput(field=f"workload.{name}", value=value, why=why, remedy=remedy)
