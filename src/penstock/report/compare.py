"""Two runs side by side, whatever they are: served, recorded, replayed or simulated; and how far the second is off.

Both sides come as the keys of `StageResult.to_json` and, where there is a file of them, as requests. What a key means,
and how it is computed, says `report.latency`; nothing is computed anew here but differences and distances.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from penstock.errors import BadInput
from penstock.report.latency import RequestRecord, e2e_s, itl_s, tpot_s, ttft_s
from penstock.report.result import LATENCIES

Floats = NDArray[np.float64]

ALIKE: Final = 0.02
"""Share by which rates and mean lengths may differ before a reader is warned."""
STATISTICS: Final = ("mean", "p50", "p90", "p95", "p99", "std")


@dataclass(frozen=True, slots=True)
class Metric:
    """What is compared."""

    name: str
    """As `--metric` names it, such as ttft_p50."""
    key: str
    """In the JSON of a result, such as p50_ttft_ms."""


_WHOLE: Final = (
    ("duration", "duration"), ("requests_per_s", "request_throughput"), ("goodput", "request_goodput"),
    ("output_tokens_per_s", "output_throughput"), ("total_tokens_per_s", "total_token_throughput"),
    ("steady_output_tokens_per_s", "steady_output_throughput"),
    ("steady_total_tokens_per_s", "steady_total_token_throughput"),
    ("in_flight", "mean_in_flight"), ("peak_in_flight", "peak_in_flight"), ("cached_tokens", "cached_input_tokens"),
)  # fmt: skip
METRICS: Final = (
    *(Metric(f"{key}_{statistic}", f"{statistic}_{key}_ms") for key, _ in LATENCIES for statistic in STATISTICS),
    *(Metric(name, key) for name, key in _WHOLE),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One side."""

    name: str
    """Of its file, or what it is."""
    source: str
    """What it is a result of, and where its times were taken."""
    numbers: Mapping[str, Any]
    """Keys of `StageResult.to_json`; what was not measured is None or not there."""
    model: str | None = None
    records: Sequence[RequestRecord] | None = None
    """Its requests; None: only the numbers are known."""
    token_times: bool = True
    """The records hold the time of each token; if not, of the first and the last."""
    notes: tuple[str, ...] = ()

    def number(self, key: str) -> float | None:
        """None of what is not there."""
        value = self.numbers.get(key)
        return None if value is None or not math.isfinite(value) else float(value)

    @property
    def facts(self) -> dict[str, float | None]:
        """What ran: requests, completed ones, their arrival rate (requests/s) and mean lengths (tokens)."""
        requests, completed = self.number("num_prompts"), self.number("completed")
        prompt, output = self.number("total_input_tokens"), self.number("total_output_tokens")
        return {
            "requests": None if requests is None else int(requests),
            "completed": None if completed is None else int(completed), "rate": self.number("achieved_request_rate"),
            "prompt_tokens": None if prompt is None or not completed else prompt / completed,
            "output_tokens": None if output is None or not completed else output / completed,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Row:
    """One metric of both, in the unit of its key."""

    metric: Metric
    a: float
    b: float

    @property
    def difference(self) -> float:
        return self.b - self.a

    @property
    def relative(self) -> float | None:
        """Of b to a; None where a is 0 and b is not."""
        return self.difference / self.a if self.a else None if self.b else 0.0

    def over(self, share: float) -> bool:
        """Whether b is further from a than this share of a."""
        relative = self.relative
        return relative is None or abs(relative) > share


@dataclass(frozen=True, slots=True)
class Distance:
    """Kolmogorov and Smirnov's statistic: the largest gap between the two distribution functions, 0 to 1."""

    gap: float
    at_s: float
    """Where it is; `a_share` and `b_share` of the values lie at or below."""
    a_share: float
    b_share: float
    a_count: int
    b_count: int

    @classmethod
    def of(cls, a: Floats, b: Floats) -> Distance | None:
        """Of two samples, [N] and [M] seconds; None if one is empty."""
        if not a.size or not b.size:
            return None
        at = np.concatenate([a, b])
        shares = [np.searchsorted(np.sort(sample), at, side="right") / sample.size for sample in (a, b)]
        widest = int(np.argmax(np.abs(shares[0] - shares[1])))
        low, high = float(shares[0][widest]), float(shares[1][widest])
        return cls(abs(low - high), float(at[widest]), low, high, a.size, b.size)


def _each(metric: Callable[[RequestRecord], float | None]) -> Callable[[Sequence[RequestRecord]], Floats]:
    def values(done: Sequence[RequestRecord]) -> Floats:
        return np.array([value for value in map(metric, done) if value is not None], dtype=np.float64)

    return values


def _gaps(done: Sequence[RequestRecord]) -> Floats:
    return np.concatenate([np.empty(0), *map(itl_s, done)])


_SAMPLED: Final = {"ttft": _each(ttft_s), "tpot": _each(tpot_s), "itl": _gaps, "e2el": _each(e2e_s)}


def samples(run: Run) -> dict[str, Floats]:
    """ttft, tpot, itl and e2el -> [N] seconds of the completed requests; empty where only numbers are known."""
    if run.records is None:
        return {}
    done = [record for record in run.records if record.outcome == "completed"]
    return {name: of(done) for name, of in _SAMPLED.items() if name != "itl" or run.token_times}


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """What both sides have, beside each other."""

    a: Run
    b: Run
    rows: Mapping[str, Row]
    """By name of the metric, in the order of METRICS."""
    distances: Mapping[str, Distance]
    warnings: tuple[str, ...]
    """Why like may not stand beside like."""
    notes: tuple[str, ...]
    """Where the times were taken, and what is approximate."""
    curves: tuple[Mapping[str, Floats], Mapping[str, Floats]] = field(repr=False)
    """`samples` of both."""

    def row(self, name: str) -> Row:
        """By name or key. Raises BadInput: no such metric, or a side has none."""
        known = {each: metric for metric in METRICS for each in (metric.name, metric.key)}
        metric = known.get(name)
        if metric is None:
            near = get_close_matches(name, known, n=3, cutoff=0.5) or [*self.rows][:5]
            raise BadInput(field="--metric", value=name, why="no such metric", remedy=", ".join(near))
        row = self.rows.get(metric.name)
        if row is None:
            lacking = " and ".join(run.name for run in (self.a, self.b) if run.number(metric.key) is None)
            raise BadInput(
                field="--metric", value=name, why=f"{lacking} has none", remedy=f"one of {', '.join(self.rows)}"
            )
        return row

    def to_json(self) -> dict[str, Any]:
        """Plain data: metrics in the unit of their key, shares of 1."""
        return {
            **{side: {"name": run.name, "source": run.source, "model": run.model, **run.facts}
               for side, run in (("a", self.a), ("b", self.b))},
            "metrics": {
                name: {"key": row.metric.key, "a": row.a, "b": row.b, "difference": row.difference,
                       "relative": row.relative}
                for name, row in self.rows.items()
            },
            "distances": {
                name: {"gap": one.gap, "at_ms": 1e3 * one.at_s, "a_share": one.a_share, "b_share": one.b_share,
                       "a_count": one.a_count, "b_count": one.b_count}
                for name, one in self.distances.items()
            },
            "warnings": list(self.warnings), "notes": list(self.notes),
        }  # fmt: skip


def compare(a: Run, b: Run) -> Comparison:
    """Set two runs side by side. Raises BadInput: one completed no request, or they have no metric in common."""
    for run in (a, b):
        if run.number("completed") == 0:
            raise BadInput(
                field=run.name, value=0, why="no request was completed", remedy="a run whose requests were answered"
            )
    rows = {}
    for metric in METRICS:
        of_a, of_b = a.number(metric.key), b.number(metric.key)
        if of_a is not None and of_b is not None:
            rows[metric.name] = Row(metric, of_a, of_b)
    if not rows:
        raise BadInput(
            field=b.name, value=b.source, why=f"it has no metric in common with {a.name} ({a.source})",
            remedy="two results of penstock bench or simulate",
        )  # fmt: skip
    curves = samples(a), samples(b)
    found = {name: Distance.of(curves[0][name], curves[1][name]) for name in _SAMPLED if all(name in c for c in curves)}
    distances = {name: distance for name, distance in found.items() if distance is not None}
    return Comparison(
        a=a, b=b, rows=rows, distances=distances, warnings=tuple(_warnings(a, b)), notes=tuple(_notes(a, b)),
        curves=curves,
    )  # fmt: skip


def _warnings(a: Run, b: Run) -> list[str]:
    """What a reader must know before the differences, the gravest first."""
    told = [f"{side} {why}" for side, run in (("A", a), ("B", b)) for why in _troubles(run)]
    if a.model and b.model and _plain(a.model) != _plain(b.model):
        told.append(f"models differ: A {a.model}, B {b.model}")
    one, other = a.facts, b.facts
    for name, what in (("requests", "requests"), ("completed", "completed requests")):
        of_a, of_b = one[name], other[name]
        if of_a is not None and of_b is not None and of_a != of_b:
            told.append(f"{what} differ: A {of_a:.0f}, B {of_b:.0f}")
    for name, what, unit in (
        ("rate", "arrival rates", "requests/s"), ("prompt_tokens", "mean prompts", "tokens"),
        ("output_tokens", "mean outputs", "tokens"),
    ):  # fmt: skip
        of_a, of_b = one[name], other[name]
        if of_a is not None and of_b is not None:
            if abs(of_a - of_b) > ALIKE * max(of_a, of_b):
                told.append(f"{what} differ: A {of_a:.4g}, B {of_b:.4g} {unit}")
        elif name == "rate" and (of_a is None) != (of_b is None):
            told.append(f"{'A' if of_a is None else 'B'} has no arrival rate: all requests came at once, or one came")
    slo_a, slo_b = a.numbers.get("slo"), b.numbers.get("slo")
    if None not in (a.number("request_goodput"), b.number("request_goodput")) and slo_a != slo_b:
        told.append("their limits (slo) differ, so their goodput does not compare")
    return told


def _notes(a: Run, b: Run) -> list[str]:
    told = [
        f"{side} has no token times: its ITL is exact in the mean only"
        for side, run in (("A", a), ("B", b))
        if run.numbers.get("itl_approximate")
    ]
    return [*told, f"both {a.source}" if a.source == b.source else f"A {a.source}; B {b.source}"]


def _troubles(run: Run) -> list[str]:
    numbers = run.numbers
    told = [f"is INVALID: {numbers['invalid_because']}"] if numbers.get("invalid_because") else []
    if numbers.get("interrupted"):
        told.append(f"was cut off: {numbers['interrupted']}")
    if numbers.get("saturated"):
        told.append("is past saturation: its latencies grow with the length of the run")
    return [*told, *run.notes]


def _plain(model: str) -> str:
    """What two spellings of a model have in common: no directory, no precision behind a comma."""
    return model.partition(",")[0].rstrip("/").rpartition("/")[2].lower()
