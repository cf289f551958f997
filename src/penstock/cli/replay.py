"""`penstock replay`: a recorded schedule again, in the twin. Exit code 0: every step is identical; 1: one is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from penstock.cli.console import stdout
from penstock.errors import BadInput
from penstock.report.compare import Comparison, compare
from penstock.report.compare_read import CONTROL, run_of
from penstock.report.compare_table import comparison_table
from penstock.runtime.replay import Replayed
from penstock.runtime.replay import replay as replay_schedule
from penstock.runtime.schedule import NANOSECONDS, Schedule, read_schedule


def replay(
    schedule: Annotated[Path, typer.Argument(help="File of `penstock record` or of `serve --server.record`.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
) -> None:
    """Run a recorded schedule again at virtual time, and show the first step that differs.

    Arrivals, step durations and token counts come from the recording; which steps follow from them is decided anew by
    the same control plane. Latencies of both, side by side, say what a difference meant for users.
    """
    recording = read_schedule(schedule)
    found = replay_schedule(recording)
    beside = _beside(recording, found)
    if as_json:
        print(json.dumps(found.to_json() | {"latency": None if beside is None else beside.to_json()}))
    else:
        if beside is not None:
            print(comparison_table(beside))
        stdout().print(escape(_text(found)))
    raise typer.Exit(0 if found.identical else 1)


def _beside(recording: Schedule, found: Replayed) -> Comparison | None:
    """Latencies as recorded and as replayed, up to the difference if there is one: there the replay ends. None where
    nothing was completed, and of a recording that contradicts itself: what does, the difference says."""
    until = found.virtual_s * NANOSECONDS
    events = recording.events if found.identical else [event for event in recording.events if event.t <= until]
    same = Schedule(recording.header, events, recording.truncated)
    try:
        return compare(run_of(same, "recorded", CONTROL), run_of(found.schedule, "replayed", "replayed by the twin"))
    except BadInput:
        return None


def _text(found: Replayed) -> str:
    statistics = found.statistics
    lines = [
        f"{statistics.submitted} requests, {statistics.finished} finished, {statistics.cancelled} cancelled, "
        f"{statistics.preemptions} preemptions, {statistics.swaps} swaps, {statistics.stalls} stalls, "
        f"{statistics.prefix_hit_tokens} of {statistics.prefix_query_tokens} prompt tokens from the prefix cache",
        f"{found.virtual_s:.3f} s replayed in {found.wall_s:.3f} s",
    ]
    if found.truncated:
        lines.append("the recording was cut off: replayed up to there")
    if found.difference is None:
        return "\n".join([*lines, f"{found.steps} steps identical"])
    return "\n".join([*lines, f"{found.steps} steps identical, then", str(found.difference)])
