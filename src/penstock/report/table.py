"""The console block that benchmark users know, a line per stage for sweeps, and the files beside them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from rich.table import Table

from penstock.errors import BadInput
from penstock.report.latency import FORMULAS, Distribution, as_row
from penstock.report.result import StageResult

_WIDTH: Final = 50
_SECTIONS: Final = (
    ("ttft", "TTFT", "Time to First Token"),
    ("tpot", "TPOT", "Time per Output Token (excl. 1st token)"),
    ("itl", "ITL", "Inter-token Latency"),
    ("e2e", "E2EL", "End-to-end Latency"),
)


def console_block(result: StageResult) -> str:
    """The common serving benchmark block, 50 columns, with what the generator did to itself at the end."""
    report = result.report
    goodput = [] if report.goodput_per_s is None else [("Request goodput (req/s):", f"{report.goodput_per_s:.2f}")]
    lines = [
        f"{' Serving Benchmark Result ':=^{_WIDTH}}",
        f"{result.name:^{_WIDTH}}".rstrip(),
        *_rows(
            ("Successful requests:", f"{report.completed}"),
            ("Failed requests:", f"{report.failed}"),
            ("Rejected requests (429):", f"{report.rejected}"),
            ("Cancelled requests:", f"{report.cancelled}"),
            ("Benchmark duration (s):", f"{report.duration_s:.2f}"),
            ("Total input tokens:", f"{report.input_tokens}"),
            ("  of which from prefix cache:", f"{report.cached_tokens}"),
            ("Total generated tokens:", f"{report.output_tokens}"),
            ("Request throughput (req/s):", f"{report.requests_per_s:.2f}"),
            *goodput,
            ("Output token throughput (tok/s):", f"{report.output_tokens_per_s:.2f}"),
            ("Total token throughput (tok/s):", f"{report.total_tokens_per_s:.2f}"),
            ("Requests in flight, mean / peak:", f"{report.mean_in_flight:.1f} / {report.peak_in_flight}"),
        ),
    ]
    for name, short, title in _SECTIONS:
        lines += [f"{title:-^{_WIDTH}}", *_latency_rows(short, getattr(report, name))]
    delay = report.send_delay
    lines += [
        f"{'Load generator':-^{_WIDTH}}",
        *_rows(
            (
                "Requested rate (req/s):",
                "closed loop" if result.requested_rate is None else f"{result.requested_rate:.3f}",
            ),
            ("Achieved rate (req/s):", "-" if result.achieved_rate is None else f"{result.achieved_rate:.3f}"),
            ("Send delay p50 / p99 (ms):", "-" if delay is None else f"{1e3 * delay.p50:.2f} / {1e3 * delay.p99:.2f}"),
            ("Run is:", "INVALID" if result.invalid else "valid"),
        ),
        "=" * _WIDTH,
    ]
    if result.invalid:
        lines.append(f"INVALID: {result.invalid}")
    lines += [f"failed: {count} x {reason}" for reason, count in result.reasons.items()]
    lines += [f"note: {note}" for note in result.notes]
    return "\n".join(lines)


def formulas() -> str:
    """The definitions behind the numbers, one per line."""
    return "\n".join(f"{name:8} {formula}" for name, formula in FORMULAS.items())


def _rows(*rows: tuple[str, str]) -> list[str]:
    return [f"{label:<{_WIDTH - 16}}{value:>16}" for label, value in rows]


def _latency_rows(short: str, distribution: Distribution | None) -> list[str]:
    if distribution is None:
        return _rows((f"Mean {short} (ms):", "-"))
    names = (("Mean", "mean"), ("Median", "p50"), ("P90", "p90"), ("P99", "p99"))
    return _rows(*((f"{label} {short} (ms):", f"{1e3 * getattr(distribution, key):.2f}") for label, key in names))


def sweep_table(results: Sequence[StageResult]) -> Table:
    """One line per stage."""
    table = Table(title="Stages", title_justify="left")
    columns = ("stage", "req/s asked", "sent", "done", "goodput", "tok/s out", "ok", "429", "failed",
               "TTFT p50 ms", "p99", "TPOT p50 ms", "p99", "delay p50 ms", "")  # fmt: skip
    for column in columns:
        table.add_column(column, justify="left" if column in ("stage", "") else "right", no_wrap=True)
    for result in results:
        report = result.report
        table.add_row(
            result.name,
            _number(result.requested_rate, 2),
            _number(result.achieved_rate, 2),
            f"{report.requests_per_s:.2f}",
            _number(report.goodput_per_s, 2),
            f"{report.output_tokens_per_s:.0f}",
            str(report.completed),
            str(report.rejected),
            str(report.failed),
            *_tails(report.ttft),
            *_tails(report.tpot),
            _number(None if report.send_delay is None else 1e3 * report.send_delay.p50, 2),
            "INVALID" if result.invalid else "interrupted" if result.interrupted else "",
        )  # fmt: skip
    return table


def _tails(distribution: Distribution | None) -> tuple[str, str]:
    return ("-", "-") if distribution is None else (f"{1e3 * distribution.p50:.1f}", f"{1e3 * distribution.p99:.1f}")


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def write_requests(path: Path, results: Iterable[StageResult]) -> None:
    """One JSON line per request of every stage; those of one that was interrupted say so.

    Raises BadInput when the file cannot be written.
    """
    lines = []
    for result in results:
        head = {"stage": result.name, **({"interrupted": True} if result.interrupted else {})}
        lines += [json.dumps({**head, **as_row(record)}, separators=(",", ":")) for record in result.records]
    write_text(path, "".join(line + "\n" for line in lines), field="--out")


def write_text(path: Path, text: str, *, field: str) -> None:
    """Write a result file, compressed if it ends in .gz. Raises BadInput naming the flag `field`."""
    raw = text.encode("utf-8")
    try:
        path.write_bytes(gzip.compress(raw, mtime=0) if path.suffix == ".gz" else raw)
    except OSError as error:
        raise BadInput(
            field=field, value=str(path), why=f"it cannot be written: {error}", remedy="a path in a writable directory"
        ) from None
