"""What the stages of the overload benchmark say: floods beside the peaks around them, a row a stage, verdicts."""

from __future__ import annotations

from collections.abc import Callable
from statistics import mean, median, quantiles, stdev
from typing import Any

from overload_tenants import Stage
from rich.table import Table


def together(name: str, parts: list[Stage]) -> Stage:
    """Several stages as one that is as long as all of them."""
    seconds = sum(part.seconds for part in parts)
    return Stage(
        name, 0.0, seconds, sum(part.flood_done for part in parts), sum(part.quiet_done for part in parts),
        *([one for part in parts for one in getattr(part, which)]
          for which in ("quiet_ttft", "quiet_failed", "flood_failed")),
        sum(part.sent for part in parts), sum(part.refused for part in parts),
        [one for part in parts for one in part.refusals],
        cpu={who: round(sum(part.cpu[who] * part.seconds for part in parts) / seconds, 4) for who in parts[0].cpu},
    )  # fmt: skip


def of_the_peaks_around(found: list[Stage], measure: Callable[[Stage], float]) -> tuple[float, float]:
    """Each flood over the mean of the two peaks beside it: mean of the turns, and its standard error."""
    ratios = [
        2 * measure(stage) / (measure(found[at - 1]) + measure(found[at + 1]))
        for at, stage in enumerate(found) if stage.name.startswith("flood")
    ]  # fmt: skip
    return mean(ratios), stdev(ratios) / len(ratios) ** 0.5 if len(ratios) > 1 else float("nan")


def p99(values: list[float]) -> float:
    """The largest where there are too few for a percentile; nan: there are none."""
    if len(values) < 2:
        return max(values, default=float("nan"))
    return min(quantiles(values, n=100)[98], max(values))


def row(stage: Stage, peak: float, alone: Stage) -> dict[str, Any]:
    """A stage as numbers."""
    told = [one for one in stage.refusals if not one.early]
    early = [one for one in stage.refusals if one.early]
    kept = [one for one in told if one.place_kept]
    return {
        "stage": stage.name, "seconds": round(stage.seconds, 1),
        "requests_per_s": round(stage.throughput(), 3), "of_peak": round(stage.throughput() / peak, 4),
        "sent": stage.sent, "refused": stage.refused, "flood_done": stage.flood_done,
        "quiet_done": stage.quiet_done, "quiet_ttft_ms": {
            "p50": round(median(stage.quiet_ttft) * 1e3, 1) if stage.quiet_ttft else None,
            "p99": round(p99(stage.quiet_ttft) * 1e3, 1),
        },
        "quiet_p99_of_alone": round(p99(stage.quiet_ttft) / p99(alone.quiet_ttft), 3),
        "quiet_p50_of_alone": round(median(stage.quiet_ttft or [0.0]) / median(alone.quiet_ttft or [1.0]), 3),
        "told": len(told), "told_right": round(sum(one.right for one in told) / len(told), 4) if told else None,
        "place_kept": len(kept), "kept_right": round(sum(one.right for one in kept) / len(kept), 4) if kept else None,
        "told_s_p50": round(median(one.told_s for one in told), 3) if told else None,
        "told_s_max": round(max((one.told_s for one in told), default=0.0), 3),
        "early": len(early),
        "early_let_in": sum(one.let_in_s is not None and one.let_in_s < 0.7 * one.told_s for one in early),
        "cpu": stage.cpu, "quiet_failed": len(stage.quiet_failed), "flood_failed": len(stage.flood_failed),
        "failures": sorted({*stage.quiet_failed, *stage.flood_failed})[:5],
    }  # fmt: skip


def shown(rows: list[dict[str, Any]], times: float) -> Table:
    """The rows for people."""
    table = Table(title=f"Two tenants, one of which floods {times:g}x")
    for name in ("stage", "requests/s", "of best peak", "sent", "refused", "quiet p50 / p99 TTFT", "of alone",
                 "told right", "told p50 (max)", "early in"):  # fmt: skip
        table.add_column(name)
    for one in rows:
        right = "" if one["told_right"] is None else f"{one['told_right']:.1%} of {one['told']}"
        told = "" if one["told_s_p50"] is None else f"{one['told_s_p50']:.2f} ({one['told_s_max']:.1f}) s"
        ttft = one["quiet_ttft_ms"]
        table.add_row(
            one["stage"], f"{one['requests_per_s']:.2f}", f"{one['of_peak']:.1%}", str(one["sent"]),
            str(one["refused"]),
            f"{ttft['p50']} / {ttft['p99']} ms", f"{one['quiet_p99_of_alone']:.2f}x", right, told,
            f"{one['early_let_in']} of {one['early']}",
        )  # fmt: skip
    return table


def verdicts(rows: list[dict[str, Any]], paired: float) -> dict[str, bool]:
    """What must hold. paired: the floods over the peaks around them; the last two rows are all floods and the crowd."""
    loaded = rows[-2:]
    return {
        "throughput of the floods within 5 % of the peaks around them": paired >= 0.95,
        "quiet p99 TTFT within 2x": all(one["quiet_p99_of_alone"] <= 2.0 for one in loaded),
        "Retry-After right within 30 % for 90 % of the places kept": all(
            (one["kept_right"] or 0) >= 0.9 for one in loaded
        ),
        "nobody failed, nothing quiet refused": all(one["quiet_failed"] + one["flood_failed"] == 0 for one in rows),
    }
