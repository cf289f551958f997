"""The numbers of a simulated run, from its columns, by the definitions and percentiles of `report.latency`.

The keys are those of `StageResult.to_json`, so a simulated and a measured run compare key by key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from penstock.report.latency import Distribution, Limits
from penstock.report.result import LATENCIES, in_ms, limits_json
from penstock.report.saturation import Saturation, saturation
from penstock.report.simulation import COMPLETED, OUTCOMES, Floats, RequestColumns, SimulationResult

BASES: Final = ("measured", "extrapolated", "assumed")
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Latencies:
    """Seconds of each completed request, [D]; NaN where a request has none (TPOT of one token)."""

    ttft: Floats
    tpot: Floats
    e2e: Floats
    ntpot: Floats
    done: Mask
    """[R]: which requests these are."""

    @classmethod
    def of(cls, columns: RequestColumns) -> Latencies:
        done = columns.outcome == COMPLETED
        arrival, first, finish = (
            times[done] for times in (columns.arrival_s, columns.first_token_s, columns.finish_s)
        )  # fmt: skip
        tokens = columns.output_tokens[done]
        e2e = finish - arrival
        with np.errstate(divide="ignore", invalid="ignore"):
            tpot = np.where(tokens > 1, (finish - first) / (tokens - 1), np.nan)
            ntpot = np.where(tokens > 0, e2e / tokens, np.nan)
        return cls(first - arrival, tpot, e2e, ntpot, done)


def present(values: Floats) -> Floats:
    """Without the NaNs."""
    return values[~np.isnan(values)]


def itl(columns: RequestColumns, latencies: Latencies) -> tuple[Distribution | None, bool]:
    """(gaps between tokens of completed requests, whether they are approximate).

    Without token times every gap of a request is taken to be its mean, its TPOT: the mean over all gaps is exact, the
    tails are not: one long gap in a request is spread over all of its gaps.
    """
    gaps = token_gaps(columns, latencies)
    if gaps is not None:
        return Distribution.of(gaps), False
    weights = np.maximum(columns.output_tokens[latencies.done] - 1, 0)
    kept = ~np.isnan(latencies.tpot) & (weights > 0)
    return _weighted(latencies.tpot[kept], weights[kept].astype(np.float64)), True


def token_gaps(columns: RequestColumns, latencies: Latencies) -> Floats | None:
    """Every gap between tokens of completed requests, all together; None where token times are not kept."""
    if columns.token_s is None or columns.token_start is None:
        return None
    gaps = np.diff(columns.token_s)
    owners = np.repeat(np.arange(len(columns)), np.diff(columns.token_start))
    inside: Floats = gaps[(owners[1:] == owners[:-1]) & latencies.done[owners[1:]]]
    return inside


def _weighted(values: Floats, weights: Floats) -> Distribution | None:
    """Distribution of `values`, each there `weights` times; a percentile is an order statistic."""
    if not values.size:
        return None
    order = np.argsort(values)
    ranks = np.cumsum(weights[order])
    total = float(ranks[-1])
    p50, p90, p95, p99 = (
        float(values[order[np.searchsorted(ranks, share * total)]]) for share in (0.5, 0.9, 0.95, 0.99)
    )
    mean = float((values * weights).sum()) / total
    std = float(np.sqrt((weights * (values - mean) ** 2).sum() / total))
    return Distribution(int(total), mean, std, p50, p90, p95, p99, float(values.max()))


def kept_limits(columns: RequestColumns, latencies: Latencies, limits: Limits) -> Mask | None:
    """[D] whether each completed request keeps every stated limit; None when nothing says so.

    `token_rate` needs the times of all tokens; without them it is not judged, and goodput is unknown.
    """
    if not limits.stated or limits.token_rate is not None:
        return None
    good = np.ones(latencies.e2e.size, dtype=np.bool_)
    for limit, seen in (
        (limits.ttft_s, latencies.ttft),
        (limits.tpot_s, latencies.tpot),
        (limits.e2e_s, latencies.e2e),
    ):
        if limit is not None:
            good &= ~(seen > limit)  # NaN breaks no limit
    return good


def summary(result: SimulationResult) -> dict[str, Any]:
    """Plain data for `--json`; latencies in ms, None where there is nothing to measure. O(R log R)."""
    columns, latencies = result.requests, Latencies.of(result.requests)
    done = latencies.done
    duration = result.end_s - result.begin_s
    per_s = 1 / duration if duration > 0 else 0.0
    inputs, outputs = int(columns.prompt_tokens[done].sum()), int(columns.output_tokens[done].sum())
    good = kept_limits(columns, latencies, result.limits)
    gaps, approximate = itl(columns, latencies)
    verdict = saturation(result)
    counts = {name: int((columns.outcome == code).sum()) for code, name in enumerate(OUTCOMES)}
    span = float(columns.arrival_s.max()) - result.begin_s if len(columns) else 0.0
    data: dict[str, Any] = {
        "title": result.title,
        **counts,
        "num_prompts": len(columns),
        "duration": duration,
        "achieved_request_rate": (len(columns) - 1) / span if span > 0 else None,
        "saturated": verdict.past,
        "saturation": verdict.why,
        "interrupted": result.interrupted or None,
        "total_input_tokens": inputs,
        "total_output_tokens": outputs,
        "cached_input_tokens": int(columns.cached_tokens[done].sum()),
        "prefix_hit_share": float(columns.cached_tokens[done].sum()) / inputs if inputs else None,
        "request_throughput": counts["completed"] * per_s,
        "request_goodput": None if good is None else float(good.sum()) * per_s,
        "goodput_share": None if good is None or not len(columns) else float(good.sum()) / len(columns),
        "output_throughput": outputs * per_s,
        "total_token_throughput": (inputs + outputs) * per_s,
        "slo": limits_json(result.limits),
        "preemptions": int(columns.preemptions.sum()),
        "requests_preempted": int((columns.preemptions > 0).sum()),
        "steps": result.steps,
        "utilisation": sum(result.busy_s) * per_s / len(result.busy_s) if result.busy_s else None,
        "requests_per_replica": _per_replica(columns, result.ranks),
        **({"requests_per_rank": _per_replica(columns, 1)} if result.ranks > 1 else {}),
        **_bill(result, duration, outputs, inputs + outputs),
        "operator_seconds": dict(sorted(result.operator_s.items(), key=lambda pair: -pair[1])),
        "basis_share": basis_shares(result),
        "wall_s": result.wall_s,
        "simulated_requests_per_wall_s": len(columns) / result.wall_s if result.wall_s else None,
        "itl_approximate": approximate,
        "notes": list(notes(result, verdict)),
        "config": dict(result.config),
    }
    distributions = {"itl": gaps} | {
        name: Distribution.of(present(getattr(latencies, name))) for name in ("ttft", "tpot", "e2e", "ntpot")
    }
    for key, name in LATENCIES:
        data |= in_ms(key, distributions[name])
    return data


def notes(result: SimulationResult, verdict: Saturation) -> tuple[str, ...]:
    """What a reader must know before the numbers, the gravest first."""
    first = [f"interrupted: {result.interrupted}; what follows is the part that was simulated"] * bool(
        result.interrupted
    )
    if verdict.past:
        first.append(f"past saturation: {verdict.why}; latencies grow with the length of the run")
    if result.limits.token_rate is not None:
        first.append("goodput unknown: a token rate cannot be judged without the times of all tokens")
    return (*first, *result.notes)


def basis_shares(result: SimulationResult) -> dict[str, float]:
    """Share of the priced time by what it rests on, the firmest first."""
    found = shares(result.basis_s)
    return {name: found[name] for name in sorted(found, key=lambda name: (_rank(name), name))}


def _rank(name: str) -> int:
    return BASES.index(name) if name in BASES else len(BASES)


def shares(seconds: Mapping[str, float]) -> dict[str, float]:
    """Each entry over the sum of all; empty without any time."""
    total = sum(seconds.values())
    return {name: value / total for name, value in seconds.items()} if total > 0 else {}


def _per_replica(columns: RequestColumns, ranks: int) -> list[int]:
    served = columns.replica[columns.replica >= 0] // ranks
    counts: list[int] = np.bincount(served).tolist()
    return counts


def _bill(result: SimulationResult, duration: float, outputs: int, tokens: int) -> dict[str, float | None]:
    """Money and energy of the whole run over the tokens of completed requests."""
    cost = None if result.price_per_hour is None else result.price_per_hour * duration / 3600
    return {
        "cost": cost,
        "cost_per_million_output_tokens": None if cost is None or not outputs else 1e6 * cost / outputs,
        "cost_per_million_tokens": None if cost is None or not tokens else 1e6 * cost / tokens,
        "energy_j": result.energy_j,
        "energy_j_per_output_token": None if result.energy_j is None or not outputs else result.energy_j / outputs,
        "energy_kwh_per_million_output_tokens": None
        if result.energy_j is None or not outputs
        else result.energy_j / outputs / 3.6,
        "mean_power_w": result.energy_j / duration if result.energy_j is not None and duration > 0 else None,
    }
