"""The twin against four per-request vLLM runs on GPUs whose kernels were profiled: RTX 4090 and RTX PRO 6000.

Data: casys-kaist/LLMServingSim (MIT), 300 ShareGPT requests at 10 sessions/s each, vLLM 0.19. The real control plane
(stall-free chunks, budget and sequences as in the run's meta.json, prefix tree, recompute) drives the twin with the
layer profile of the same GPU, as `penstock simulate` prices it: decode attention in one call with a prompt chunk,
uneven contexts, data-parallel ranks that wait for each other, CUDA-graph padding, LM head and sampler. Beside it: the
host's time per step, and messages between GPUs.

    .venv/bin/python benchmarks/llmservingsim.py [--data FOLDER] [--no-host]

Predicted before the first run: TPOT 3 %, TTFT 10 %; decodes beside a chunk matter most. Shown: median over requests of
the absolute percentage error, and the error of the mean, median and p90. The last line of stdout is JSON.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.catalog import model_shape
from penstock.control.cluster.router import LeastWaiting
from penstock.control.policy import build_replica
from penstock.control.replica import Replica
from penstock.control.request import Request
from penstock.control.step import Step, Update
from penstock.runtime.driven import IDLE, Driven
from penstock.runtime.instance import Instance, Observer
from penstock.runtime.lockstep import Lockstep, Unpriced
from penstock.twin.host import HostTime
from penstock.twin.layout import Layout, Precision
from penstock.twin.measured import read_serving_sim
from penstock.twin.memory import Reserve, fit
from penstock.twin.operators import Collective, Operator
from penstock.twin.price import Estimate
from penstock.twin.step_graph import StepGraph
from penstock.twin.step_price import CUDA_GRAPH_SIZES, StepPrice
from penstock.twin.twin import Row, Twin

RUNS = (
    ("RTX4090", "Llama-3.1-8B", "meta-llama/Llama-3.1-8B", "sharegpt-llama-3.1-8b-300-sps10"),
    ("RTXPRO6000", "Llama-3.1-8B", "meta-llama/Llama-3.1-8B", "sharegpt-llama-3.1-8b-300-sps10"),
    ("RTXPRO6000", "Qwen3-32B", "Qwen/Qwen3-32B", "sharegpt-qwen3-300-sps10"),
    ("RTXPRO6000", "Qwen3-30B-A3B-Instruct-2507", "Qwen/Qwen3-30B-A3B-Instruct-2507", "sharegpt-qwen3-300-sps10"),
)
MEMORY_BYTES = {"RTX4090": 25_250_627_584, "RTXPRO6000": 101_971_922_944}
"""Of the first: meta.json, device_total_memory_bytes. Of the second: 97,248 MiB, as its driver shows 96 GB of GDDR7."""
HOST = HostTime(step_s=0.3e-3, request_s=4e-6)
"""vLLM 0.19 plans ahead (async_scheduling), so what shows of the host is small: assumed, the same for all four runs."""

HOST_IN_STEP = HostTime(step_s=1.3e-3, request_s=4e-6)
"""Ranks of data parallelism tell each other their sizes before each step, and what the host prepares after that lies
bare. Assumed, and chosen with the one such run in view: 0.3 ms as above leave its TPOT 2.7 % low."""


class Links:
    """What a layer profile of one GPU lacks: messages between two of them, at the bandwidth and latency that the run's
    config.json gives. vLLM's data-parallel experts gather all tokens and scatter the sums (all2all_backend
    allgather_reducescatter), so a token crosses once and not once for each of its experts."""

    name = "links"

    def __init__(self, bytes_per_s: float, latency_s: float, experts_per_token: int) -> None:
        self._bytes_per_s, self._latency_s, self._choices = bytes_per_s, latency_s, max(1, experts_per_token)

    def price(self, operator: Operator) -> Estimate:
        if not isinstance(operator, Collective):
            return Estimate(0.0, self.name, "assumed")
        moved = operator.work().link_bytes / (self._choices if operator.kind == "all_to_all" else 1)
        return Estimate(self._latency_s + moved / self._bytes_per_s, self.name, "assumed")


@dataclass(slots=True)
class Seen:
    """What one request went through. Seconds from the first arrival."""

    arrival: float
    first: float = math.nan
    last: float = math.nan
    output: int = 0

    @property
    def ttft(self) -> float:
        return self.first - self.arrival

    @property
    def tpot(self) -> float:
        return (self.last - self.first) / max(1, self.output - 1)


class Watch(Observer):
    """Keeps first tokens and ends."""

    def __init__(self, seen: list[Seen]) -> None:
        self.seen = seen

    def stepped(self, instance: Instance, step: Step, started: float, ended: float) -> None:
        """Nothing to keep."""

    def coasted(self, instance: Instance, started: float, ends: list[float]) -> None:
        """Nothing to keep."""

    def first_token(self, row: Row, now: float) -> None:
        """Only the first time counts: an evicted request has shown its tokens already."""
        if math.isnan(self.seen[row.index].first):
            self.seen[row.index].first = now

    def ended(self, row: Row, update: Update, now: float) -> None:
        self.seen[row.index].last = now


def measured(folder: Path) -> list[Seen]:
    """The run's own requests."""
    text = gzip.decompress((folder / "vllm" / "requests.jsonl.gz").read_bytes()).decode()
    rows = [json.loads(line) for line in text.splitlines()]
    rows.sort(key=lambda row: int(row["request_id"].split("-")[1]))
    clock = min(row["queued_ts"] for row in rows)
    start = min(row["arrival_time"] for row in rows)
    return [
        Seen(
            row["arrival_time"] - start, row["first_token_ts"] - clock, row["last_token_ts"] - clock, row["output_toks"]
        )
        for row in rows
    ]  # fmt: skip


def prompts(file: Path) -> list[tuple[int, ...]]:
    """Token ids that share just the prefixes that the real prompts shared."""
    found = []
    for number, line in enumerate(gzip.decompress(file.read_bytes()).decode().splitlines()):
        row = json.loads(line)
        ids = [block * 16 + place for block in row["prefix_blocks_16"] for place in range(16)][: row["input_toks"]]
        tail = range(10**9 + number * 10**5, 10**9 + number * 10**5 + row["input_toks"] - len(ids))
        found.append((*ids, *tail))
    return found


def replay(
    gpu: str, model: str, data: Path, folder: Path, prompt_ids: list[tuple[int, ...]], real: list[Seen], host: HostTime,
    host_in_step: HostTime,
) -> list[Seen]:  # fmt: skip
    """The same requests at the same times through the control plane and the twin."""
    meta: dict[str, Any] = json.loads((folder / "vllm" / "meta.json").read_text())
    config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    engine = meta["engine_kwargs"]
    tensor, groups = engine["tensor_parallel_size"], engine["data_parallel_size"]
    spread = tensor * groups if engine["enable_expert_parallel"] else 1
    shape, precision = model_shape(model), Precision()
    layout = Layout(
        tensor_parallel=tensor, attention_dp=groups, expert_parallel=spread,
        moe_tensor_parallel=tensor * groups // spread,
    )  # fmt: skip
    choices = shape.groups[-1].feed_forward.experts_per_token
    links = Links(config["link_bw"] * 1e9, config["link_latency"] * 1e-9, choices)
    profile = read_serving_sim(data / "profiler" / "perf" / gpu / model / "bf16" / f"tp{tensor}", links)
    stated = meta.get("kv_cache", {}).get("num_gpu_blocks")
    reserve = Reserve(step_tokens=engine["max_num_batched_tokens"], sampled=engine["max_num_seqs"])
    blocks = stated or fit(shape, layout, precision, MEMORY_BYTES[gpu], reserve=reserve).blocks
    graph = StepGraph(shape, layout, precision)
    price = StepPrice(graph, profile, host if groups == 1 else host_in_step, graph_sizes=CUDA_GRAPH_SIZES)
    seen = [Seen(one.arrival, output=one.output) for one in real]

    def replica() -> Replica:
        return build_replica(
            blocks=blocks, max_sequence_tokens=engine["max_model_len"] or shape.max_context,
            token_budget=engine["max_num_batched_tokens"], max_seqs=engine["max_num_seqs"], watermark=0.0,
        )  # fmt: skip

    requests = [
        Request(id=str(index), prompt=prompt, max_tokens=max(1, seen[index].output))
        for index, prompt in enumerate(prompt_ids)
    ]
    watch = Watch(seen)
    if groups > 1:
        ranks = [
            Instance(rank, replica(), Twin(Unpriced(), squares=price.uses_spread), watch, plan_ahead=True)
            for rank in range(groups)
        ]
        driven: Driven = Lockstep(0, ranks, price, LeastWaiting(), plan_ahead=True)
    else:
        driven = Instance(0, replica(), Twin(price, squares=price.uses_spread), watch, plan_ahead=True)
    _drive(driven, requests, seen)
    return seen


def _drive(driven: Driven, requests: list[Request], seen: list[Seen]) -> None:
    """One replica, as `penstock simulate` drives it."""
    order = sorted(range(len(seen)), key=lambda index: (seen[index].arrival, index))
    for place, index in enumerate(order):
        now = seen[index].arrival
        driven.horizon = now
        while driven.wake <= now:
            driven.fire()
        driven.lane(requests[index])
        driven.submit(requests[index], now, output_tokens=requests[index].max_tokens, index=index)
        driven.horizon = seen[order[place + 1]].arrival if place + 1 < len(order) else IDLE
        driven.start(now)
    while driven.wake != IDLE:
        driven.fire()


def errors(real: list[Seen], ours: list[Seen], value: Callable[[Seen], float]) -> dict[str, float]:
    """Per cent: median over requests of the absolute error, and errors of mean, median and p90."""
    pairs = [(value(a), value(b)) for a, b in zip(real, ours, strict=True) if a.output > 1 and value(a) > 0]
    each = [100 * abs(b / a - 1) for a, b in pairs]
    truth, twin = [a for a, _ in pairs], [b for _, b in pairs]

    def off(statistic: Callable[[list[float]], float]) -> float:
        return round(100 * (statistic(twin) / statistic(truth) - 1), 1)

    return {
        "per_request_median": round(statistics.median(each), 1), "mean": off(statistics.fmean),
        "median": off(statistics.median), "p90": off(lambda values: statistics.quantiles(values, n=10)[-1]),
    }  # fmt: skip


def main() -> None:
    """All four runs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    default = Path(__file__).resolve().parents[2] / "shared" / "data" / "llmservingsim"
    parser.add_argument("--data", type=Path, default=default, help="folder with bench/, profiler/ and workloads/")
    parser.add_argument("--no-host", action="store_true", help="price host time at zero, to see what it is worth")
    options = parser.parse_args()
    if not options.data.is_dir():
        print(f"no data at {options.data}; see the README there should be", file=sys.stderr)
        print(json.dumps({"skipped": "no data"}))
        return
    hosts = (HostTime(), HostTime()) if options.no_host else (HOST, HOST_IN_STEP)
    result = {}
    columns = f"{'mean':>7s}{'median':>8s}{'p90':>7s}"
    print(f"{'':44s}{'TTFT: request':>14s}{columns}{'TPOT: request':>16s}{columns}")
    for gpu, short, model, workload in RUNS:
        folder = options.data / "bench" / "examples" / gpu / short
        real = measured(folder)
        ids = prompts(options.data / "workloads" / f"{workload}.jsonl.gz")
        ours = replay(gpu, model, options.data, folder, ids, real, *hosts)
        ttft, tpot = errors(real, ours, lambda one: one.ttft), errors(real, ours, lambda one: one.tpot)
        result[f"{gpu} {short}"] = {"ttft": ttft, "tpot": tpot}
        print(
            f"{gpu + ' ' + short:44s}{ttft['per_request_median']:14.1f}{ttft['mean']:7.1f}{ttft['median']:8.1f}"
            f"{ttft['p90']:7.1f}{tpot['per_request_median']:16.1f}{tpot['mean']:7.1f}{tpot['median']:8.1f}{tpot['p90']:7.1f}"
        )
    print(json.dumps(result))


if __name__ == "__main__":
    main()
