"""One stage of load and what came of it: asked and achieved, honest or not, as plain data with the common JSON keys.

A stage is invalid, and its numbers mean nothing, when the generator itself was late (median send delay of 10 ms or
more: the load was not the one asked for) or when nothing was answered.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from penstock.report.latency import Distribution, LatencyReport, Limits, RequestRecord, analyse, saturated

SEND_DELAY_LIMIT_S: Final = 0.010
LATENCIES: Final = (("ttft", "ttft"), ("tpot", "tpot"), ("itl", "itl"), ("e2el", "e2e"), ("ntpot", "ntpot"))
_STATISTICS: Final = ("mean", "median", "std", "p50", "p90", "p95", "p99")


@dataclass(frozen=True, slots=True, kw_only=True)
class StageResult:
    """A stage, measured. Rates in requests per second."""

    name: str
    records: Sequence[RequestRecord]
    report: LatencyReport
    requested_rate: float | None
    """None: closed loop, or a trace without a rate."""
    concurrency: int | None
    load: float | None = None
    """Requested rate as a share of the capacity measured in the same run."""
    limits: Limits = field(default_factory=Limits)
    notes: tuple[str, ...] = ()
    interrupted: bool = False
    """It ended before its time: the records are those of requests that had been answered."""

    @classmethod
    def of(
        cls,
        name: str,
        records: Sequence[RequestRecord],
        *,
        requested_rate: float | None = None,
        concurrency: int | None = None,
        load: float | None = None,
        limits: Limits | None = None,
        notes: tuple[str, ...] = (),
        interrupted: bool = False,
    ) -> StageResult:
        """Compute the metrics of `records`."""
        limits = limits or Limits()
        return cls(
            name=name,
            records=records,
            report=analyse(records, limits=limits, users=concurrency),
            requested_rate=requested_rate,
            concurrency=concurrency,
            load=load,
            limits=limits,
            notes=(*notes, "interrupted; requests without a whole answer are left out") if interrupted else notes,
            interrupted=interrupted,
        )

    @property
    def achieved_rate(self) -> float | None:
        """Requests per second that left, over the time in which they left; None of fewer than two."""
        sent = [record.sent_s for record in self.records]
        span = max(sent) - min(sent) if len(sent) > 1 else 0.0
        return (len(sent) - 1) / span if span > 0 else None

    @property
    def invalid(self) -> str:
        """Why the numbers mean nothing; empty when they do."""
        report = self.report
        if not self.records:
            return "no request was sent"
        if report.send_delay is not None and report.send_delay.p50 >= SEND_DELAY_LIMIT_S:
            late = f"{1e3 * report.send_delay.p50:.1f} ms"
            return f"the load generator was late: median send delay {late}, limit {1e3 * SEND_DELAY_LIMIT_S:.0f} ms"
        if not report.completed:
            return "no request was completed"
        return ""

    @property
    def reasons(self) -> dict[str, int]:
        """Failures by reason, the most frequent first."""
        return dict(Counter(record.reason for record in self.records if record.outcome == "failed").most_common())

    @property
    def statuses(self) -> dict[str, int]:
        """Answers by HTTP status; 'none' is no answer at all."""
        seen = Counter("none" if record.status is None else str(record.status) for record in self.records)
        return dict(sorted(seen.items()))

    def to_json(self) -> dict[str, Any]:
        """Plain data; latencies in ms, None where there is nothing to measure."""
        report = self.report
        waits = Distribution.of(r.retry_after_s for r in self.records if r.retry_after_s is not None)
        data: dict[str, Any] = {
            "stage": self.name,
            "valid": not self.invalid,
            "invalid_because": self.invalid or None,
            "interrupted": "interrupted" if self.interrupted else None,
            "completed": report.completed,
            "failed": report.failed,
            "rejected": report.rejected,
            "cancelled": report.cancelled,
            "num_prompts": len(self.records),
            "status_codes": self.statuses,
            "failures": self.reasons,
            "retry_after_s": None if waits is None else {"count": waits.count, "p50": waits.p50, "max": waits.max},
            "retries": sum(record.retries for record in self.records),
            "duration": report.duration_s,
            "request_rate": self.requested_rate,
            "achieved_request_rate": self.achieved_rate,
            "load": self.load,
            "max_concurrency": self.concurrency,
            "peak_in_flight": report.peak_in_flight,
            "mean_in_flight": report.mean_in_flight,
            "saturated": self.concurrency is None and saturated(self.records),
            "total_input_tokens": report.input_tokens,
            "total_output_tokens": report.output_tokens,
            "cached_input_tokens": report.cached_tokens,
            "request_throughput": report.requests_per_s,
            "request_goodput": report.goodput_per_s,
            "output_throughput": report.output_tokens_per_s,
            "total_token_throughput": report.total_tokens_per_s,
            "steady_input_throughput": report.steady.prompt_tokens_per_s if report.steady else None,
            "steady_output_throughput": report.steady.output_tokens_per_s if report.steady else None,
            "steady_total_token_throughput": report.steady.total_tokens_per_s if report.steady else None,
            "slo": limits_json(self.limits),
            "notes": list(self.notes),
        }
        for key, name in LATENCIES:
            data |= in_ms(key, getattr(report, name))
        return data | in_ms("send_delay", report.send_delay)


def _ms(seconds: float | None) -> float | None:
    return None if seconds is None else 1e3 * seconds


def limits_json(limits: Limits) -> dict[str, float | None]:
    """The limits under their JSON names."""
    return {
        "ttft_ms": _ms(limits.ttft_s),
        "tpot_ms": _ms(limits.tpot_s),
        "e2el_ms": _ms(limits.e2e_s),
        "token_rate": limits.token_rate,
    }


def in_ms(key: str, distribution: Distribution | None) -> dict[str, float | None]:
    """mean_KEY_ms, p50_KEY_ms, ...: None of no distribution."""
    return {
        f"{name}_{key}_ms": None
        if distribution is None
        else 1e3 * float(getattr(distribution, "p50" if name == "median" else name))
        for name in _STATISTICS
    }
