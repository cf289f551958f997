"""A simulated run on the console: the block that benchmark users know, and what only a simulation can tell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

_WIDTH: Final = 50
SECTIONS: Final = (
    ("ttft", "TTFT", "Time to First Token"),
    ("tpot", "TPOT", "Time per Output Token (excl. 1st token)"),
    ("itl", "ITL", "Inter-token Latency"),
    ("e2el", "E2EL", "End-to-end Latency"),
)
"""Key in the JSON, short name, title."""


def console_table(summary: Mapping[str, Any]) -> str:
    """The block for a `report.summary.summary`, 50 columns; what was not measured or not stated has no line."""
    lines = [f"{' Simulated Serving Result ':=^{_WIDTH}}", f"{summary['title']:^{_WIDTH}}".rstrip()]
    lines += _rows(
        ("Completed requests:", _count(summary["completed"])),
        *((f"{name.capitalize()} requests:", _count(summary[name]))
          for name in ("rejected", "failed", "cancelled", "unfinished") if summary[name]),
        ("Simulated duration (s):", _number(summary["duration"], 2)),
        ("Arrival rate (req/s):", _number(summary["achieved_request_rate"], 2)),
        ("Total input tokens:", _count(summary["total_input_tokens"])),
        ("  of which from prefix cache:", _share(summary["prefix_hit_share"])),
        ("Total generated tokens:", _count(summary["total_output_tokens"])),
        ("Request throughput (req/s):", _number(summary["request_throughput"], 2)),
        ("Request goodput (req/s):", _number(summary["request_goodput"], 2)),
        ("Output token throughput (tok/s):", _number(summary["output_throughput"], 2)),
        ("Total token throughput (tok/s):", _number(summary["total_token_throughput"], 2)),
        ("Preemptions:", _count(summary["preemptions"])),
        ("Time in steps, mean of replicas:", _share(summary["utilisation"])),
    )  # fmt: skip
    for key, short, title in SECTIONS:
        approximate = key == "itl" and summary["itl_approximate"]
        lines.append(f"{title + (' (approximate)' if approximate else ''):-^{_WIDTH}}")
        names = (("Mean", "mean"), ("Median", "p50"), ("P90", "p90"), ("P99", "p99"))
        lines += _rows(
            *((f"{label} {short} (ms):", _number(summary[f"{name}_{key}_ms"], 2) or "-") for label, name in names)
        )
    lines += _bill(summary)
    lines += [f"{'What it rests on':-^{_WIDTH}}", *_rows(*_basis(summary))]
    lines.append("=" * _WIDTH)
    lines += [f"note: {note}" for note in summary["notes"]]
    return "\n".join(lines)


def _bill(summary: Mapping[str, Any]) -> list[str]:
    rows = _rows(
        ("Cost per million output tokens:", _number(summary["cost_per_million_output_tokens"], 3)),
        ("Cost per million tokens:", _number(summary["cost_per_million_tokens"], 3)),
        ("Energy per output token (J):", _number(summary["energy_j_per_output_token"], 3)),
        ("Mean power (W):", _number(summary["mean_power_w"], 0)),
    )
    return [f"{'Money and energy':-^{_WIDTH}}", *rows] if rows else []


def _basis(summary: Mapping[str, Any]) -> list[tuple[str, str | None]]:
    """Shares of the time by basis, then the costliest kinds of operators."""
    total = sum(summary["operator_seconds"].values())
    kinds = list(summary["operator_seconds"].items())[:5] if total else []
    return [
        *((f"Time on {basis} prices:", _share(share)) for basis, share in summary["basis_share"].items()),
        *((f"  in {kind}:", _share(seconds / total)) for kind, seconds in kinds),
        ("Steps:", _count(summary["steps"])),
        ("Requests simulated per second:", _number(summary["simulated_requests_per_wall_s"], 0)),
    ]


def _rows(*rows: tuple[str, str | None]) -> list[str]:
    return [f"{label:<{_WIDTH - 16}}{value:>16}" for label, value in rows if value is not None]


def _count(value: int | None) -> str | None:
    return None if value is None else f"{value}"


def _number(value: float | None, digits: int) -> str | None:
    return None if value is None else f"{value:.{digits}f}"


def _share(value: float | None) -> str | None:
    return None if value is None else f"{value:.1%}"
