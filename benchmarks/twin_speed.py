"""How fast the twin is: simulated requests and steps per wall second on one core, and its memory.

    one_replica        100,000 requests, 512 tokens in and 128 out, Poisson at 20/s
    sixteen_replicas   the same at 160/s, least loaded first
    million            a million requests on one replica at 0.9 of its capacity

Llama-3-8B on A100 SXM 80 GB (Vidur's pair, and the sketch's) by the roofline price; stall-free chunks in a budget of
2,048 tokens (vLLM's default for serving is 2,048 or more), blocks of 16 tokens in a prefix tree, one step planned at a
time (`--ahead`: two). The time holds everything of a simulation but its report: drawing the requests, routing, every
decision of the control plane, prices, the columns of results. Each measurement is a process of its own, three of each
(the million once); the report gives best, median and load, the JSON the median.

Prediction before the first compiled run: 15 us a request. It was 45, and 35 to 40 after the profile was followed: three
quarters of the time is in CPython's own objects (dicts, lists, ints), which compiling does not make cheaper.

    python benchmarks/twin_speed.py [--requests N] [--runs N] [--no-million] [--ahead] [--python]

`--python` leaves compiled modules aside (penstock/compiled). The last line is JSON.
"""

from __future__ import annotations

import argparse
import cProfile
import json
import os
import pstats
import resource
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from statistics import median
from typing import Any

HARDWARE = "a100-sxm-80"
PROFILED = 4000
CAPACITY_SAMPLE = 20_000
SKETCH = Path(__file__).parents[2] / "shared" / "examples" / "fast_sarathi_sketch.py"


def deployment(requests: int, rate: float | None, replicas: int, ahead: bool) -> Any:
    from penstock.deployment import Deployment

    workload = {"requests": requests, "prompt_tokens": "512", "output_tokens": "128"}
    return Deployment.parse({
        "model": {"path": "llama-3-8b"},
        "hardware": {"name": HARDWARE},
        "policy": {"name": "sarathi", "token_budget": 2048, "max_seqs": 256, "plan_ahead": ahead},
        "memory": {"kind": "prefix_tree"},
        "twin": {"price": "roofline"},
        "cluster": {"replicas": replicas, "router": "least_loaded"},
        "workload": workload | ({"law": "batch"} if rate is None else {"rate": rate}),
    })  # fmt: skip


def run(requests: int, rate: float | None, replicas: int = 1, *, ahead: bool = False) -> dict[str, Any]:
    """One simulation without its report."""
    from penstock.compiled import in_use
    from penstock.control.cluster.router import build_router
    from penstock.runtime.collect import Collector
    from penstock.runtime.instance import Instance
    from penstock.runtime.modelled import model
    from penstock.runtime.virtual import Cluster
    from penstock.runtime.workload_of import source_of, stated_bound

    asked = deployment(requests, rate, replicas, ahead)
    modelled = model(asked)
    collector = Collector(replicas)
    router = build_router(asked.cluster.router)
    cluster = Cluster(router, source_of(asked), collector, max_tokens=stated_bound(asked))
    for number in range(replicas):
        cluster.instances.append(
            Instance(number, modelled.replica(), modelled.twin(), cluster, plan_ahead=asked.policy.plan_ahead)
        )
    started, cpu = time.perf_counter(), time.process_time()
    cluster.run()
    wall_s, cpu_s = time.perf_counter() - started, time.process_time() - cpu
    steps = sum(collector.steps)
    both = zip(collector.first_s[:requests], collector.arrival_s[:requests], strict=True)
    ttft = sorted(first - arrival for first, arrival in both)
    return {
        "requests_per_s": requests / wall_s, "steps_per_s": steps / wall_s, "wall_s": wall_s, "cpu_s": cpu_s,
        "steps": steps, "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "virtual_s": collector.last_s, "ttft_p50_s": median(ttft), "ttft_p99_s": ttft[len(ttft) * 99 // 100],
        "compiled": in_use(),
    }  # fmt: skip


def measured(options: argparse.Namespace, *load: str) -> dict[str, Any]:
    """A run in a process of its own; `load`: requests, rate (0: all at once), replicas."""
    environment = os.environ | ({"PENSTOCK_COMPILED": "0"} if options.python else {})
    command = [sys.executable, __file__, "--one", *load, *(["--ahead"] if options.ahead else [])]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def profile() -> None:
    """Share of time by part: as Python, since a profiler does not see into compiled code."""
    run(200, 20.0)
    profiler = cProfile.Profile()
    profiler.enable()
    run(PROFILED, 20.0)
    profiler.disable()
    parts: dict[str, float] = defaultdict(float)
    functions: list[tuple[float, int, str]] = []
    for (file, _, name), (_, calls, own, _, _) in pstats.Stats(profiler).stats.items():  # type: ignore[attr-defined]
        _, found, place = file.partition("penstock" + os.sep)
        parts[place if found else "Python's own (dict, list, heapq, msgspec, numpy)"] += own
        functions.append((own, calls, f"{place if found else ''} {name}"))
    total = sum(parts.values())
    print(f"\nwhere the time goes, of {PROFILED} requests run as Python under a profiler")
    for place, own in sorted(parts.items(), key=lambda item: -item[1])[:16]:
        print(f"  {own / total:6.1%}  {place}")
    print("the functions that take most, and their calls per request")
    for own, calls, name in sorted(functions, reverse=True)[:12]:
        print(f"  {own / total:6.1%}  {calls / PROFILED:6.1f}  {name}")


def sketch(requests: int) -> float | None:
    """Requests per second of the 94-line sketch on the same load, with a table that costs nothing to look up."""
    if not SKETCH.is_file():
        return None
    import importlib.util
    import random
    from types import SimpleNamespace

    spec = importlib.util.spec_from_file_location("sketch", SKETCH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    class Flat(dict[Any, float]):
        """The same time whatever the key."""

        def __init__(self, value: float) -> None:
            super().__init__()
            self.value = value

        def __missing__(self, key: Any) -> float:
            return self.value

    chance = random.Random(0)
    now, rows = 0.0, []
    for _ in range(requests):
        now += chance.expovariate(20.0)
        rows.append((now, 512, 128))
    sizes = {(tokens,): 0.02 for tokens in range(4104)}
    linear = ("mlp_up_proj", "mlp_down_proj", "mlp_act", "post_attention_layernorm", "attn_pre_proj", "attn_post_proj",
              "attn_rope", "input_layernorm", "add", "attn_kv_cache_save")  # fmt: skip
    tables = dict.fromkeys(linear, sizes) | {"attn_decode": Flat(0.02), "attn_prefill": Flat(0.05)}
    scheduler = SimpleNamespace(
        batch_size_cap=256, chunk_size=2048, block_size=16, num_blocks=30_000, watermark_blocks_fraction=0.01
    )
    started = time.perf_counter()
    module.simulate(rows, tables, 32, scheduler, True, 64)
    return requests / (time.perf_counter() - started)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--no-million", action="store_true")
    parser.add_argument("--python", action="store_true")
    parser.add_argument("--ahead", action="store_true", help="plan one step while the one before runs")
    parser.add_argument("--profile", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--one", nargs=3, metavar=("REQUESTS", "RATE", "REPLICAS"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        rate = float(asked.one[1])
        print(json.dumps(run(int(asked.one[0]), rate or None, int(asked.one[2]), ahead=asked.ahead)))
        return 0
    if asked.profile:
        profile()
        return 0
    answer: dict[str, dict[str, float]] = {}
    for name, rate, replicas in (("one_replica", "20", "1"), ("sixteen_replicas", "160", "16")):
        runs = [measured(asked, str(asked.requests), rate, replicas) for _ in range(asked.runs)]
        runs.sort(key=lambda one: -one["requests_per_s"])
        middle = runs[len(runs) // 2]
        answer[name] = {key: round(middle[key], 1) for key in ("requests_per_s", "steps_per_s", "peak_rss_mb")}
        print(
            f"{name}: {middle['requests_per_s']:,.0f} requests/s (best {runs[0]['requests_per_s']:,.0f}), "
            f"{middle['steps_per_s']:,.0f} steps/s, {middle['steps'] / asked.requests:.2f} steps a request, "
            f"{middle['peak_rss_mb']:.0f} MB, CPU/wall {middle['cpu_s'] / middle['wall_s']:.2f}, TTFT p50 "
            f"{middle['ttft_p50_s'] * 1e3:.1f} ms p99 {middle['ttft_p99_s'] * 1e3:.1f} ms, "
            f"{'compiled' if middle['compiled'] else 'plain Python'}, load {os.getloadavg()[0]:.1f}"
        )
    if not asked.no_million:
        flood = measured(asked, str(CAPACITY_SAMPLE), "0", "1")
        capacity = CAPACITY_SAMPLE / flood["virtual_s"]
        million = measured(asked, "1000000", str(0.9 * capacity), "1")
        answer["million"] = {key: round(million[key], 1) for key in ("wall_s", "requests_per_s", "peak_rss_mb")}
        print(
            f"million: {million['wall_s']:.1f} s at {0.9 * capacity:.1f} requests/s, 0.9 of a capacity of "
            f"{capacity:.1f}; {million['requests_per_s']:,.0f} requests/s, {million['steps_per_s']:,.0f} steps/s, "
            f"{million['peak_rss_mb']:.0f} MB, TTFT p99 {million['ttft_p99_s'] * 1e3:.0f} ms"
        )
    flat = sketch(min(asked.requests, 20_000))
    if flat is not None:
        print(f"the 94-line sketch, one replica, prices from a flat table: {flat:,.0f} requests/s")
    sys.stdout.flush()
    subprocess.run(
        [sys.executable, __file__, "--profile"], env=os.environ | {"PENSTOCK_COMPILED": "0"}, check=True
    )  # fmt: skip
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main())
