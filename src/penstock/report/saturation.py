"""Whether a run asked for more than the system could do: then its latencies say how long it ran, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from penstock.report.simulation import Floats, SimulationResult

GROWTH = 0.02
"""Share of the arrivals that must stay behind."""
SIGMAS = 3.0
LEAST_REQUESTS = 40


@dataclass(frozen=True, slots=True)
class Saturation:
    """The verdict, with the reason in words."""

    past: bool
    why: str


def saturation(result: SimulationResult) -> Saturation:
    """Past saturation means: arrivals exceed completions, so that a backlog grows for as long as requests arrive.

    The time from the first to the last arrival is cut into quarters; the first is left out as ramp. A backlog is the
    mean number of requests in a state over a quarter. It grows when it rises from quarter 2 to 3 to 4, and from 2 to 4
    by more than 2 % of the arrivals between the middles of these quarters and by more than 3 standard deviations of
    their number (which a system that just keeps up may drift by; their variance is measured, so bursts count).

    Two backlogs are looked at: requests without a first token, and requests in the system; the second only when the
    median completed request took less than a quarter, because until then a system fills up however fast it is.
    A closed loop, requests that arrive all at once, and fewer than 40 requests have no saturation.
    """
    columns = result.requests
    if not result.open_loop:
        return Saturation(False, "closed loop: the load follows the system")
    if len(columns) < LEAST_REQUESTS:
        return Saturation(False, f"fewer than {LEAST_REQUESTS} requests: no trend to speak of")
    first, last = float(columns.arrival_s.min()), float(columns.arrival_s.max())
    if last <= first:
        return Saturation(False, "all requests arrived at once")
    edges = np.linspace(first, last, 5)
    never = np.inf
    left = np.where(np.isnan(columns.finish_s), never, columns.finish_s)
    begun = np.minimum(np.where(np.isnan(columns.first_token_s), never, columns.first_token_s), left)
    counts = np.histogram(columns.arrival_s, bins=40, range=(first, last))[0]
    # Middles of quarters 2 and 4: bins 15 to 35 of 40.
    between = float(counts[15:35].sum())
    allowed = max(GROWTH * between, SIGMAS * float(np.sqrt(20 * max(counts[15:35].var(), counts[15:35].mean()))))
    backlogs = [("without a first token", begun)]
    ended = np.isfinite(left)
    if ended.any() and float(np.median((left - columns.arrival_s)[ended])) < (last - first) / 4:
        backlogs.append(("in the system", left))
    for name, until in backlogs:
        two, three, four = (_mean_level(columns.arrival_s, until, *edges[at : at + 2]) for at in (1, 2, 3))
        if two < three < four and four - two > allowed:
            why = f"requests {name} rose from {two:.0f} to {four:.0f} while {between:.0f} arrived"
            return Saturation(True, why)
    return Saturation(False, "no backlog grew over the run")


def _mean_level(begins: Floats, ends: Floats, low: float, high: float) -> float:
    """Mean number of intervals [begin, end) that are open during [low, high)."""
    return float(np.clip(np.minimum(ends, high) - np.maximum(begins, low), 0, None).sum()) / (high - low)
