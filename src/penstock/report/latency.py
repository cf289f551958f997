"""The one place where TTFT, TPOT, ITL and goodput are computed: for real, replayed and simulated runs alike.

A run is a list of `RequestRecord`: when a request was sent, when its tokens arrived, how many tokens went in and came
out. Nothing here knows HTTP, a server or a clock. Seconds everywhere; only `report.table` turns them into ms.

    TTFT   first non-empty token - send
    ITL    each gap between consecutive token events
    TPOT   (last token - first token) / (n - 1), n output tokens; a request with n = 1 has none
    NTPOT  e2e / n
    e2e    last token - send
    goodput  completed requests per second for which every stated limit holds
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

Outcome = Literal["completed", "rejected", "failed", "cancelled"]

FORMULAS: Final[dict[str, str]] = {
    "TTFT": "first non-empty token - send",
    "TPOT": "(last token - first token) / (n - 1) per request, n from usage; undefined for n = 1",
    "ITL": "each gap between token events, all requests together",
    "NTPOT": "e2e / n per request",
    "e2e": "last token - send",
    "goodput": "completed requests per second of which every stated limit holds",
}


@dataclass(slots=True, kw_only=True)
class RequestRecord:
    """What was observed of one request. Times are seconds on one clock, any origin."""

    index: int
    arrival_s: float
    """When it was due: the trace's or the arrival law's time."""
    sent_s: float
    """When its bytes left; in a simulation the arrival."""
    end_s: float
    """When its answer, refusal or error was complete."""
    prompt_tokens: int
    output_tokens: int
    """n: counted by the server (usage), not by the number of events."""
    token_s: Sequence[float] = ()
    """Arrival of each event that carried at least one token, ascending."""
    outcome: Outcome = "completed"
    status: int | None = None
    """HTTP status; None where there was no HTTP answer."""
    reason: str = ""
    """Why it failed; empty otherwise."""
    cached_tokens: int = 0
    """Prompt tokens the server took from its prefix cache."""
    retry_after_s: float | None = None
    """What a refusal asked for."""
    retries: int = 0


def ttft_s(record: RequestRecord) -> float | None:
    """Seconds from send to the first token; None without a token."""
    return record.token_s[0] - record.sent_s if len(record.token_s) else None


def e2e_s(record: RequestRecord) -> float | None:
    """Seconds from send to the last token; None without a token."""
    return record.token_s[-1] - record.sent_s if len(record.token_s) else None


def tpot_s(record: RequestRecord) -> float | None:
    """Mean seconds per token after the first; None when there is no second token.

    n is the token count, not the event count, so a server that sends several tokens in one event is not flattered.
    """
    if record.output_tokens < 2 or not len(record.token_s):
        return None
    return (record.token_s[-1] - record.token_s[0]) / (record.output_tokens - 1)


def ntpot_s(record: RequestRecord) -> float | None:
    """End-to-end seconds per output token; None without a token."""
    whole = e2e_s(record)
    return whole / record.output_tokens if whole is not None and record.output_tokens else None


def itl_s(record: RequestRecord) -> NDArray[np.float64]:
    """[events - 1] gaps between token events, seconds."""
    return np.diff(np.asarray(record.token_s, dtype=np.float64))


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a request must keep to count as good. None: no such limit."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None
    token_rate: float | None = None
    """DeepSpeed-FastGen's effective throughput, tokens/s: the moving average (span 16) of the generation rate never
    falls below this, and the first token comes within prompt_tokens / 512 s."""

    @property
    def stated(self) -> bool:
        return any(limit is not None for limit in (self.ttft_s, self.tpot_s, self.e2e_s, self.token_rate))

    def met(self, record: RequestRecord) -> bool:
        """Whether every stated limit holds. What the request does not have (TPOT of one token) cannot break a limit."""
        if record.outcome != "completed":
            return False
        pairs = ((self.ttft_s, ttft_s(record)), (self.tpot_s, tpot_s(record)), (self.e2e_s, e2e_s(record)))
        if any(limit is not None and seen is not None and seen > limit for limit, seen in pairs):
            return False
        return self.token_rate is None or _keeps_rate(record, self.token_rate)


PROMPT_RATE: Final = 512.0
"""Tokens/s at which FastGen's metric lets a prompt be read (arXiv 2401.08671, section 4)."""
EMA_SPAN: Final = 16


def _keeps_rate(record: RequestRecord, tokens_per_s: float) -> bool:
    first = ttft_s(record)
    if first is None or first > record.prompt_tokens / PROMPT_RATE:
        return False
    weight = 2 / (EMA_SPAN + 1)
    average: float | None = None
    per_event = record.output_tokens / len(record.token_s)
    for gap in itl_s(record):
        average = gap if average is None else weight * gap + (1 - weight) * average
        if average > per_event / tokens_per_s:
            return False
    return True


@dataclass(frozen=True, slots=True)
class Distribution:
    """One metric over a run, in seconds. Percentiles interpolate linearly between order statistics."""

    count: int
    mean: float
    std: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float

    @classmethod
    def of(cls, values: Iterable[float] | NDArray[np.float64]) -> Distribution | None:
        """None of no values: an empty run has no percentiles, and a zero would be a lie."""
        sample = np.asarray(values if isinstance(values, np.ndarray) else list(values), dtype=np.float64)
        if not sample.size:
            return None
        p50, p90, p95, p99 = (float(value) for value in np.percentile(sample, (50, 90, 95, 99)))
        return cls(sample.size, float(sample.mean()), float(sample.std()), p50, p90, p95, p99, float(sample.max()))


@dataclass(frozen=True, slots=True, kw_only=True)
class Steady:
    """Rates inside the window where load was on: ramp and drain left out."""

    begin_s: float
    end_s: float
    prompt_tokens_per_s: float
    """A prompt counts when its first output token appears."""
    output_tokens_per_s: float

    @property
    def total_tokens_per_s(self) -> float:
        return self.prompt_tokens_per_s + self.output_tokens_per_s

    def requests_per_s(self, prompt_tokens: float, output_tokens: float) -> float:
        """This work in requests of the given mean lengths: half for what was read, half for what was written.

        Counting completions instead would let the mix of a short window decide: of 250 Azure requests the mean length
        is uncertain by 6 %, while the time they take is close to linear in their tokens.
        """
        return (self.prompt_tokens_per_s / prompt_tokens + self.output_tokens_per_s / output_tokens) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyReport:
    """Everything section 11 of the serving checklist asks of one run. Seconds, tokens, requests."""

    completed: int
    rejected: int
    failed: int
    cancelled: int
    duration_s: float
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    requests_per_s: float
    goodput_per_s: float | None
    output_tokens_per_s: float
    total_tokens_per_s: float
    ttft: Distribution | None
    tpot: Distribution | None
    itl: Distribution | None
    ntpot: Distribution | None
    e2e: Distribution | None
    send_delay: Distribution | None
    peak_in_flight: int
    mean_in_flight: float
    steady: Steady | None


def analyse(
    records: Sequence[RequestRecord], *, limits: Limits | None = None, users: int | None = None
) -> LatencyReport:
    """All metrics of a run. Latencies are those of completed requests; a refusal is not a fast answer.

    `users` is the concurrency of a closed loop; it only sets where the steady window begins.
    """
    done = [record for record in records if record.outcome == "completed"]
    begin = min((record.sent_s for record in records), default=0.0)
    duration = max((record.end_s for record in records), default=0.0) - begin
    per_s = 1 / duration if duration > 0 else 0.0
    inputs, outputs = sum(record.prompt_tokens for record in done), sum(record.output_tokens for record in done)
    gaps = [itl_s(record) for record in done]
    busy_s = sum(record.end_s - record.sent_s for record in records)
    return LatencyReport(
        completed=len(done),
        rejected=sum(record.outcome == "rejected" for record in records),
        failed=sum(record.outcome == "failed" for record in records),
        cancelled=sum(record.outcome == "cancelled" for record in records),
        duration_s=duration,
        input_tokens=inputs,
        output_tokens=outputs,
        cached_tokens=sum(record.cached_tokens for record in done),
        requests_per_s=len(done) * per_s,
        goodput_per_s=sum(map(limits.met, done)) * per_s if limits is not None and limits.stated else None,
        output_tokens_per_s=outputs * per_s,
        total_tokens_per_s=(inputs + outputs) * per_s,
        ttft=Distribution.of(_present(map(ttft_s, done))),
        tpot=Distribution.of(_present(map(tpot_s, done))),
        itl=Distribution.of(np.concatenate(gaps)) if gaps else None,
        ntpot=Distribution.of(_present(map(ntpot_s, done))),
        e2e=Distribution.of(_present(map(e2e_s, done))),
        send_delay=Distribution.of(record.sent_s - record.arrival_s for record in records),
        peak_in_flight=int(in_flight(records)[1].max()) if records else 0,
        mean_in_flight=busy_s * per_s,
        steady=steady(records, users=users),
    )


def _present(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def in_flight(records: Sequence[RequestRecord]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """([2R] times, [2R] requests in flight from that time on), R records; an end at the time of a send comes first."""
    times = np.array([record.sent_s for record in records] + [record.end_s for record in records], dtype=np.float64)
    steps = np.repeat(np.array([1, -1], dtype=np.int64), len(records))
    order = np.lexsort((steps, times))
    return times[order], np.cumsum(steps[order])


def token_flow(records: Iterable[RequestRecord]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """([E] times, [E] output tokens) of all token events; a request's n tokens are spread evenly over its events."""
    live = [record for record in records if len(record.token_s)]
    if not live:
        return np.empty(0), np.empty(0)
    times = np.concatenate([np.asarray(record.token_s, dtype=np.float64) for record in live])
    weights = [np.full(len(record.token_s), record.output_tokens / len(record.token_s)) for record in live]
    return times, np.concatenate(weights)


def steady(records: Sequence[RequestRecord], *, users: int | None = None, ramp: float = 0.25) -> Steady | None:
    """Rates from the end of the ramp to the last send: the time in which the load was fully on.

    The ramp of a closed loop of `users` ends with as many answers; that of an open loop is the share `ramp` of the
    sending time. Counts the tokens of every request, also of those that the client cut at the end, because the server
    made them. None when the window is empty.
    """
    live = [record for record in records if len(record.token_s)]
    if not live:
        return None
    first, last = min(record.sent_s for record in records), max(record.sent_s for record in records)
    if users is None:
        begin = first + ramp * (last - first)
    else:
        ends = sorted(record.end_s for record in records if record.outcome == "completed")
        begin = ends[users - 1] if len(ends) >= users else last
    if last <= begin:
        return None
    times, tokens = token_flow(live)
    window = last - begin
    read = sum(record.prompt_tokens for record in live if begin <= record.token_s[0] < last)
    return Steady(
        begin_s=begin,
        end_s=last,
        prompt_tokens_per_s=read / window,
        output_tokens_per_s=float(tokens[(times >= begin) & (times < last)].sum()) / window,
    )


def saturated(records: Sequence[RequestRecord]) -> bool:
    """Whether requests in flight and TTFT both kept rising: the later half of the run over 1.5 x the earlier.

    Quarters 2 and 4 of the sending time are compared, so a normal ramp at the start is not taken for saturation.
    """
    times = [record.sent_s for record in records]
    if len(times) < 20:
        return False
    stamps, level = in_flight(records)
    first, span = min(times), max(times) - min(times)

    def quarter(number: int) -> tuple[float, float]:
        begin, end = first + span * (number - 1) / 4, first + span * number / 4
        inside = level[(stamps >= begin) & (stamps <= end)]
        waits = _present(ttft_s(record) for record in records if begin <= record.sent_s <= end)
        return (float(inside.mean()) if inside.size else 0.0, float(np.median(waits)) if waits else 0.0)

    (load_2, wait_2), (load_4, wait_4) = quarter(2), quarter(4)
    return load_4 > 1.5 * max(load_2, 1.0) and wait_4 > 1.5 * wait_2 > 0


def as_row(record: RequestRecord) -> dict[str, Any]:
    """One request as plain data: its record and its metrics, for a JSONL file."""
    return {
        "index": record.index,
        "outcome": record.outcome,
        "status": record.status,
        "reason": record.reason,
        "arrival_s": record.arrival_s,
        "sent_s": record.sent_s,
        "end_s": record.end_s,
        "prompt_tokens": record.prompt_tokens,
        "output_tokens": record.output_tokens,
        "cached_tokens": record.cached_tokens,
        "retries": record.retries,
        "retry_after_s": record.retry_after_s,
        "ttft_s": ttft_s(record),
        "tpot_s": tpot_s(record),
        "ntpot_s": ntpot_s(record),
        "e2e_s": e2e_s(record),
        "token_s": [round(float(time), 6) for time in record.token_s],
    }
