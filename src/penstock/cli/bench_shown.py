"""What `penstock bench` shows: progress on a terminal, then the result as text or JSON."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.status import Status

from penstock.report.latency import RequestRecord
from penstock.report.table import console_block, formulas, sweep_table
from penstock.workload.bench import BenchResult


def show(result: BenchResult, as_json: bool) -> None:
    """Print it to stdout."""
    if as_json:
        print(json.dumps(result.to_json(), allow_nan=False))
        return
    stages = (*result.search, *result.stages)
    for stage in result.stages:
        print(console_block(stage))
    if len(stages) > 1:
        # A pipe gets the whole table, not one folded to 80 columns.
        Console(width=None if sys.stdout.isatty() else 200, highlight=False).print(sweep_table(stages))
    if result.capacity is not None:
        found = result.capacity
        print(
            f"capacity: {found.requests_per_s:.2f} req/s, {found.work.output_tokens_per_s:.1f} output tok/s, "
            f"{found.work.total_tokens_per_s:.1f} total tok/s at concurrency {found.concurrency}"
        )
    if result.token_events:
        cost = 1e6 * result.generator_cpu_s / result.token_events
        print(f"load generator: {result.generator_cpu_s:.2f} s CPU, {cost:.1f} us per token event")
    for note in result.notes:
        print(f"note: {note}")
    print(formulas())


class Shown:
    """Progress as one line that changes, or silence."""

    def __init__(self, status: Status | None) -> None:
        self._status, self._name, self._total = status, "", 0
        self._outcomes: Counter[str] = Counter()

    def stage(self, name: str, requests: int | None) -> None:
        self._name, self._total, self._outcomes = name, requests or 0, Counter()
        self._update()

    def record(self, record: RequestRecord) -> None:
        self._outcomes[record.outcome] += 1
        if self._status is not None and self._outcomes.total() % 16 == 0:
            self._update()

    def _update(self) -> None:
        if self._status is not None:
            shown = "".join(f", {count} {outcome}" for outcome, count in self._outcomes.items())
            self._status.update(f"{self._name}: {self._total} requests{shown}")


@contextmanager
def progress_shown() -> Iterator[Shown]:
    """Progress of a run while the block runs, on stderr where that is a terminal."""
    if not sys.stderr.isatty():
        yield Shown(None)
        return
    # Two frames a second: the animation takes CPU from the generator.
    with Console(stderr=True).status("asking the server", refresh_per_second=2) as status:
        yield Shown(status)
