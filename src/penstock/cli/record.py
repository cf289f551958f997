"""`penstock record`: a trace through the real engine in this process; its schedule goes to a file."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from penstock.cli.console import stderr
from penstock.cli.counts import count
from penstock.cli.flags import FileOption, ModelArgument, load, with_flags_of
from penstock.errors import BadInput


@with_flags_of("record")
def record(
    out: Annotated[Path, typer.Option(help="New schedule file; compressed if it ends in .gz.")],
    trace: Annotated[
        Path,
        typer.Option(help="Azure, Mooncake, BurstGPT, LLMServingSim or Vidur file, or .gz; lengths are scaled to fit."),
    ],
    model: ModelArgument = None,
    file: FileOption = None,
    requests: Annotated[
        Optional[int],  # noqa: UP045
        typer.Option(help="The first so many; default: all.", **count("--requests", least=1)),
    ] = None,
    rate: Annotated[
        Optional[float],  # noqa: UP045
        typer.Option(min=0.001, help="Stretch arrivals to so many a second; default: the trace's own times."),
    ] = None,
    shared: Annotated[
        float, typer.Option(min=0, max=1, help="Share of prompts that begin with one of four common prefixes.")
    ] = 0.0,
    cancelled: Annotated[float, typer.Option(min=0, max=1, help="Share of clients who leave in mid-answer.")] = 0.0,
    seed: Annotated[int, typer.Option(min=0, help="Of prompts, prefixes and leavers.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")] = False,
    **flags: str | None,
) -> None:
    """Run a trace through the real engine, open loop, and record its schedule for `penstock replay`.

    Nothing listens. Ctrl-C ends it and keeps what ran.
    """
    from penstock.runtime.build import build
    from penstock.runtime.feed import Feed
    from penstock.runtime.paced import Paced
    from penstock.runtime.record import recorder_for
    from penstock.workload.trace import read_trace

    deployment = load(file, model, flags, reader="record")
    if out.exists():
        raise BadInput(field="--out", value=str(out), why="there is such a file already", remedy="a new name")
    rows = read_trace(trace)
    console = stderr()
    built = build(deployment, lambda name, seconds, detail: None)
    rows = rows.fit(built.info.max_sequence_tokens)
    rows = rows if requests is None else rows.first(requests)
    rows = rows if rate is None else rows.at_rate(rate)
    feed = Feed(seed=seed, shared=shared, cancelled=cancelled)
    recorder = recorder_for(
        out, deployment, blocks=built.info.blocks, max_sequence_tokens=built.info.max_sequence_tokens,
        host_blocks=built.host_blocks, now=time.monotonic(), model=built.info.fingerprint,
    )  # fmt: skip
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    steps, interrupted = 0, False
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("requests", total=len(rows))
        try:
            for turn in Paced(built, feed.arrivals(rows, built.info.vocab_size), observer=recorder).run():
                steps += 1
                if turn.result.finished:
                    bar.advance(task, len(turn.result.finished))
        except KeyboardInterrupt:
            interrupted = True
        finally:
            recorder.close()
            built.executor.close()
    statistics = built.replica.statistics()
    if as_json:
        print(json.dumps({"out": str(out), "steps": steps, "submitted": statistics.submitted, "finished":
                          statistics.finished, "cancelled": statistics.cancelled, "preemptions": statistics.preemptions,
                          "prefix_hit_tokens": statistics.prefix_hit_tokens, "interrupted": interrupted}))  # fmt: skip
    else:
        print(f"{out}: {steps} steps of {statistics.submitted} requests ({statistics.cancelled} cancelled)")
    if interrupted:
        raise typer.Exit(130)
