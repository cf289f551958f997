"""`penstock bench --offline`: engine and control plane in this process, no HTTP: what a batch job would get.

All requests are submitted at once (a trace's lengths, not its times), greedy, the end token means nothing. Reported
beside tokens/s and latencies: the share of optimal as NanoFlow counts it (arXiv 2408.12757), which is tokens/s x 2 x
parameters / the machine's peak of fp32 matrix products; seconds from the start of the process to a loaded model; and
the largest memory that the process held.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from penstock.cli.began import process_began
from penstock.cli.console import stderr
from penstock.control.step import Failed, Finished, NewTokens
from penstock.errors import BadInput
from penstock.report.latency import RequestRecord
from penstock.report.result import StageResult
from penstock.report.table import console_block, formulas, write_requests
from penstock.runtime.build import Built
from penstock.runtime.local import Turn
from penstock.units import format_bytes
from penstock.workload.plan import Workload
from penstock.workload.prompts import IdPrompts, Vocabulary, phase_seed
from penstock.workload.trace import Trace, TraceRequest

_WARMUP = (TraceRequest(0.0, 32, 4), TraceRequest(0.0, 32, 4))


@dataclass(frozen=True, slots=True)
class Offline:
    """What the flags ask for."""

    model: str
    dtype: str | None
    requests: tuple[TraceRequest, ...]
    block_tokens: int
    """Tokens that one prefix block of the trace stands for."""
    seed: int
    threads: int | None
    token_budget: int | None
    peak_flop_per_s: float | None
    """None: it is measured."""


def without_server(
    pace: list[str], *, trace: Trace | None, workload: Workload, requests: int | None, model: str | None,
    dtype: str | None, threads: int | None, token_budget: int | None, peak: float | None, seed: int, as_json: bool,
    out: Path | None,
) -> None:  # fmt: skip
    """The flags of `penstock bench --offline`; `pace`: those of a load, which it has not. Raises BadInput, as below."""
    if pace:
        raise BadInput(field="--" + pace[0], value=True, why="--offline has no pace", remedy="leave one of them out")
    if trace is not None:
        rows = trace if requests is None else trace.first(requests)
        asked, block_tokens = rows.requests, rows.block_tokens
    else:
        asked, block_tokens = workload.requests(requests or 100, seed), 512
    bench_offline(
        Offline(
            model=model or "millrace", dtype=dtype, requests=asked, block_tokens=block_tokens, seed=seed,
            threads=threads, token_budget=token_budget, peak_flop_per_s=None if peak is None else peak * 1e9,
        ),
        as_json=as_json, out=out,
    )  # fmt: skip


def bench_offline(asked: Offline, *, as_json: bool, out: Path | None) -> None:
    """Load, run, print; after Ctrl-C what had been answered until then, and exit code 130.

    Raises InvalidDeployment, UnsupportedModel, InvalidRequest.
    """
    from penstock.runtime.offline import load, offline_deployment

    deployment = offline_deployment(
        asked.model, dtype=asked.dtype, threads=asked.threads, token_budget=asked.token_budget,
        requests=max(len(asked.requests), len(_WARMUP)),
        tokens=max(request.prompt_tokens + request.output_tokens for request in (*_WARMUP, *asked.requests)),
    )  # fmt: skip
    built = load(deployment)
    load_s = time.monotonic() - process_began()
    try:
        _, interrupted = _run(built, _WARMUP, asked, "warm-up")
        if interrupted:
            raise typer.Exit(130)
        records, interrupted = _run(built, asked.requests, asked, "offline")
    finally:
        built.executor.close()
    memory_bytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    result = StageResult.of("offline", records, interrupted=interrupted)
    peak = asked.peak_flop_per_s or (None if interrupted else _measured_peak())
    share = None if peak is None else result.report.total_tokens_per_s * 2 * built.info.parameters / peak
    facts: dict[str, Any] = {
        "model": built.info.name, "dtype": built.info.dtype, "parameters": built.info.parameters,
        "token_budget": deployment.policy.token_budget, "load_s": load_s, "peak_memory_bytes": memory_bytes,
        "peak_flop_per_s": peak, "share_of_optimal": share,
    }  # fmt: skip
    # The result first: a file that cannot be written must not lose it.
    if as_json:
        print(json.dumps(result.to_json() | facts, allow_nan=False))
    else:
        _show(result, facts)
    if out is not None:
        write_requests(out, [result])
    if interrupted:
        raise typer.Exit(130)


def _show(result: StageResult, facts: dict[str, Any]) -> None:
    print(console_block(result))
    optimal = "" if facts["share_of_optimal"] is None else (
        f", {facts['share_of_optimal']:.3f} of optimal ({facts['parameters'] / 1e6:,.1f}M parameters, fp32 matrix peak "
        f"{facts['peak_flop_per_s'] / 1e9:,.0f} GFLOP/s)"
    )  # fmt: skip
    print(f"{facts['model']} as {facts['dtype']}: {result.report.total_tokens_per_s:,.1f} tokens/s{optimal}")
    print(f"loaded {facts['load_s']:.2f} s after the start of the process; at most "
          f"{format_bytes(facts['peak_memory_bytes'])} of memory")  # fmt: skip
    print(formulas())


def _run(
    built: Built, requests: tuple[TraceRequest, ...], asked: Offline, phase: str
) -> tuple[list[RequestRecord], bool]:
    """Records of those that ended, and whether Ctrl-C came before all had."""
    from penstock.control.request import Request, Sampling
    from penstock.runtime.offline import run

    vocabulary = Vocabulary.of_size(built.info.vocab_size)
    prompts = IdPrompts(vocabulary, phase_seed(asked.seed, phase), asked.block_tokens)
    submitted = [
        Request(
            id=str(index), prompt=tuple(prompts.make(index, request)), max_tokens=request.output_tokens,
            sampling=Sampling(temperature=0.0),
        )
        for index, request in enumerate(requests)
    ]  # fmt: skip
    times: dict[str, list[float]] = {request.id: [] for request in submitted}
    ended: dict[str, tuple[float, Finished | Failed]] = {}
    console = stderr()
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    # Two frames a second: drawing takes CPU from what is measured.
    with Progress(*columns, console=console, disable=not console.is_terminal, refresh_per_second=2) as bar:
        task = bar.add_task(phase, total=len(submitted))

        def note(turn: Turn) -> None:
            for update in turn.updates:
                if isinstance(update, NewTokens):
                    for id in update.tokens:
                        times[id].append(turn.ended)
                elif isinstance(update, Finished | Failed):
                    ended[update.id] = turn.ended, update
                    bar.advance(task)

        began = time.monotonic()
        interrupted = False
        try:
            run(built, submitted, note)
        except KeyboardInterrupt:
            interrupted = True
    records = []
    for index, request in enumerate(requests):
        if (last := ended.get(str(index))) is None:
            continue
        end_s, update = last
        records.append(
            RequestRecord(
                index=index, arrival_s=began, sent_s=began, end_s=end_s, prompt_tokens=request.prompt_tokens,
                output_tokens=len(times[str(index)]), token_s=times[str(index)],
                outcome="completed" if isinstance(update, Finished) else "failed",
                reason="" if isinstance(update, Finished) else update.why,
                cached_tokens=update.cached_tokens if isinstance(update, Finished) else 0,
            )
        )  # fmt: skip
    return records, interrupted


def _measured_peak() -> float:
    from penstock.calibrate.machine import peak_flop_per_s

    return peak_flop_per_s("float32", width=3072, times=8)
