"""Contract 3 on the real engine: record a run, replay it in the twin, count the steps that differ.

For every policy, and for the other orders, evictions and memories: the first 2,000 requests of the Azure 2023
conversation trace, lengths scaled to a context of 512, through the model in the box in real time. KV memory is kept
small, so that requests give way; 4 in 10 prompts begin with a common prefix; 1 in 10 clients leaves; every second
request may stop by itself. `worker` is the same through the server's worker process and its threads. Then the
recording is replayed: only arrivals, durations and token counts come from it, and each step is compared down to the
block numbers.

Prediction, written before the first run: no step differs.

    python benchmarks/schedule_identity.py [--requests 2000] [--rate 50] [--only sarathi,worker]

Without ../shared/data, requests are drawn from the trace's published laws. The last line is JSON; exit 1 if any
step differs.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from penstock.deployment import Deployment
from penstock.runtime.build import build
from penstock.runtime.feed import Feed
from penstock.runtime.paced import Arrival, Paced
from penstock.runtime.record import recorder_for
from penstock.runtime.replay import Replayed, replay
from penstock.runtime.schedule import read_schedule
from penstock.runtime.service import Service
from penstock.workload.arrivals import arrivals
from penstock.workload.lengths import MEASURED
from penstock.workload.trace import Trace, TraceRequest, read_trace

ROOT = Path(__file__).parents[1]
TRACE = ROOT.parent / "shared" / "data" / "azure-llm-2023" / "AzureLLMInferenceTrace_conv.csv.gz"
SMALL: dict[str, Any] = {
    "model.max_sequence_tokens": 512, "memory.kv_bytes": "6MiB", "policy.max_seqs": 32, "hardware.threads": 1,
}  # fmt: skip
SWAP = {"policy.evict": "swap", "memory.host_bytes": "4MiB"}
VARIANTS: dict[str, dict[str, Any]] = {
    "sarathi": {},
    "splitfuse": {"policy.name": "splitfuse"},
    "orca": {"policy.name": "orca"},
    "vllm_prefill_first": {"policy.name": "vllm_prefill_first"},
    "request_level": {"policy.name": "request_level"},
    "priority": {"policy.order": "priority", "policy.ageing_s": 2},
    "shortest": {"policy.order": "shortest", "policy.ageing_s": 2},
    "fair_share": {"policy.order": "fair_share"},
    "swap": SWAP,
    "prefill_first swap": {"policy.name": "vllm_prefill_first", **SWAP},
    "paged": {"memory.kind": "paged"},
    "no plan ahead": {"policy.plan_ahead": False},
    "worker": {},
}
FEED = Feed(seed=3, shared=0.4, shared_tokens=96, cancelled=0.1, patience_s=0.4, stop_ids=(2, 300, 301, 302))


def requests(count: int, rate: float, context: int) -> Trace:
    """The trace's first `count` requests at `rate` a second, scaled to `context` tokens."""
    if TRACE.is_file():
        return read_trace(TRACE).fit(context).first(count).at_rate(rate)
    generator = np.random.default_rng(0)
    times = arrivals("azure-conv", 5.53).times(count, generator).tolist()
    prompts, outputs = (law.draw(count, generator).tolist() for law in MEASURED["azure-conv"])
    rows = tuple(TraceRequest(*row) for row in zip(times, prompts, outputs, strict=True))
    return Trace("azure-conv, drawn from its published laws", rows).fit(context).at_rate(rate)


def record_here(deployment: Deployment, trace: Trace, out: Path) -> None:
    """Through the loop in this process."""
    built = build(deployment, lambda name, seconds, detail: None)
    recorder = recorder_for(
        out, deployment, blocks=built.info.blocks, max_sequence_tokens=built.info.max_sequence_tokens,
        host_blocks=built.host_blocks, now=time.monotonic(), model=built.info.fingerprint,
    )  # fmt: skip
    for _ in Paced(built, FEED.arrivals(trace, built.info.vocab_size), observer=recorder).run():
        pass
    recorder.close()
    built.executor.close()


async def record_worker(deployment: Deployment, trace: Trace) -> None:
    """Through the server's worker process; `server.record` names the file."""
    service = await Service.start(deployment)

    async def client(arrival: Arrival) -> None:
        await asyncio.sleep(start + arrival.at_s - time.monotonic())
        timeout = None if arrival.cancel_s is None else start + arrival.cancel_s
        loop_time = None if timeout is None else asyncio.get_running_loop().time() + timeout - time.monotonic()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(loop_time), contextlib.aclosing(service.generate(arrival.request)) as outputs:
                async for _ in outputs:
                    pass

    feed = FEED.arrivals(trace, service.info.vocab_size)
    start = time.monotonic() + 0.2
    await asyncio.gather(*(client(arrival) for arrival in feed))
    await service.close()


def run(name: str, trace: Trace, folder: Path) -> tuple[Replayed, float, int]:
    """Record and replay one variant. Returns what the replay found, and the recording's seconds and bytes."""
    out = folder / f"{name.replace(' ', '-')}.jsonl.gz"
    overrides = {**SMALL, **VARIANTS[name]}
    started = time.monotonic()
    if name == "worker":
        queue = {
            "server.record": str(out),
            "server.queue.max_requests": 10_000,
            "server.queue.max_prompt_tokens": 10**8,
        }
        asyncio.run(record_worker(Deployment.load(None, {**overrides, **queue}), trace))
    else:
        record_here(Deployment.load(None, overrides), trace, out)
    return replay(read_schedule(out)), time.monotonic() - started, out.stat().st_size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--rate", type=float, default=50.0, help="requests per second")
    parser.add_argument("--only", help="some variants, separated by commas")
    parser.add_argument("--keep", type=Path, help="folder for the recordings; default: they are deleted")
    options = parser.parse_args()
    names = options.only.split(",") if options.only else list(VARIANTS)
    trace = requests(options.requests, options.rate, SMALL["model.max_sequence_tokens"])
    table = Table("variant", "steps identical", "requests", "cancelled", "preempted", "swapped", "stalls", "hits",
                  "recorded s", "kB", title=f"Contract 3: {trace.name}, {len(trace)} requests")  # fmt: skip
    rows = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        for name in names:
            found, seconds, size = run(name, trace, folder)
            s = found.statistics
            hits = f"{100 * s.prefix_hit_tokens / max(1, s.prefix_query_tokens):.0f} %"
            verdict = f"{found.steps}" if found.identical else f"{found.steps}, then DIFFERS"
            table.add_row(name, verdict, str(s.submitted), str(s.cancelled), str(s.preemptions), str(s.swaps),
                          str(s.stalls), hits, f"{seconds:.0f}", f"{size / 1e3:.0f}")  # fmt: skip
            rows[name] = {
                "identical": found.identical, "steps": found.steps, "requests": s.submitted, "cancelled": s.cancelled,
                "preemptions": s.preemptions, "swaps": s.swaps, "stalls": s.stalls,
                "prefix_hit_tokens": s.prefix_hit_tokens, "recorded_s": seconds, "replayed_s": found.wall_s,
            }  # fmt: skip
            print(f"{name}: {verdict}, {seconds:.0f} s", file=sys.stderr, flush=True)
            if found.difference is not None:
                print(found.difference, file=sys.stderr)
    Console(width=160, highlight=False).print(table)
    print(json.dumps({"benchmark": "schedule_identity", "trace": trace.name, "variants": rows}))
    sys.exit(0 if all(row["identical"] for row in rows.values()) else 1)


if __name__ == "__main__":
    main()
