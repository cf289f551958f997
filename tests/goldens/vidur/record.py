"""Runs the real Vidur and writes down what it did: every pass, its batch, its end, and the tables that priced it.

Vidur (microsoft/vidur, MIT; Agrawal et al., MLSys 2024) is not a dependency. This script runs under any Python that has
what Vidur asks for (numpy, pandas, scikit-learn, ddsketch, fasteners, and pyarrow to read the profiles); its plotting
and logging packages are not needed and are replaced by empty ones. Nothing of Vidur is changed: its trace replay, its
Sarathi scheduler, its predictor, its event loop; but for one condition in `pressed`. It is watched from outside: each
batch when it ends, each restart, and for the goldens which table entries the predictor asks for.

    python tests/goldens/vidur/record.py --vidur CHECKOUT --setup ample       writes ample.npz anew; then the others
    python tests/goldens/vidur/record.py --vidur CHECKOUT --setup ample --azure 10000 --out passes.npz --full

The model is CodeLlama-34B on two A100s: its attention (64 query and 8 KV heads, width 8,192, two ways) is what the only
complete attention profile at hand was measured for; linear layers and all-reduce are Vidur's own files for that model
and pair. Requests: drawn by penstock's own laws (`draw`; that needs pydantic and msgspec too), so that a golden holds
nobody's trace. With --azure, for a comparison that is not kept: the first ones of the Azure conversation trace of 2023
(CC-BY 4.0, read from shared/data), arrival gaps stretched.
"""

from __future__ import annotations

import argparse
import atexit
import csv
import gzip
import itertools
import json
import sys
import tempfile
import time
import types
from datetime import datetime
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
DATA = HERE.parents[3] / "shared" / "data"
MODEL, DEVICE, NETWORK, TENSOR_PARALLEL = "codellama/CodeLlama-34b-Instruct-hf", "a100", "a100_pairwise_nvlink", 2
MAX_TOKENS = 16_384
SEED = 2023
SETUPS = {
    # Blocks from Vidur's own memory planner: what binds is the token budget and the batch cap.
    "ample": {"num_blocks": None, "watermark": 0.01, "cap": 40, "chunk": 512},
    # Few blocks, and a watermark wide enough that nobody is ever preempted: what binds is memory at admission.
    "tight": {"num_blocks": 1801, "watermark": 0.25, "cap": 128, "chunk": 512},
    # Memory runs out, requests are evicted; one condition of Vidur's is lifted (README.md).
    "pressed": {"num_blocks": 1201, "watermark": 0.01, "cap": 128, "chunk": 512, "full_memory": True},
}
DRAWN = {"ample": (1500, 2.4), "tight": (800, 1.5), "pressed": (500, 1.5)}
"""Requests of each golden, and how many arrive a second."""
AZURE_STRETCH = {"ample": 2.4, "tight": 4.0, "pressed": 4.0}
Requests = list[tuple[float, int, int]]
"""Arrival in seconds, tokens of the prompt, tokens of the output."""


def import_vidur(checkout: Path) -> None:
    """Vidur on the path, empty modules in place of its plotting and logging packages."""
    sys.path.insert(0, str(checkout))
    for name in ("plotly_express", "wandb", "matplotlib", "kaleido", "seaborn"):
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.modules["wandb"].run = None  # type: ignore[attr-defined]


def write_profiles(folder: Path) -> dict[str, str]:
    """The profiles in Vidur's CSV format. Returns the predictor's options that name them."""
    import pandas as pd

    profiles = DATA / "vidur-profiles"
    linear = pd.read_parquet(profiles / "compute_mlp.parquet")
    linear = linear[(linear.model == MODEL) & (linear.device == DEVICE)]
    attention = pd.read_parquet(profiles / "history_a100_attention.parquet")
    network = pd.read_parquet(profiles / "network.parquet")
    network = network[(network.topology == NETWORK) & (network.collective == "all_reduce")]
    files = {}
    for name, frame in (("compute", linear), ("attention", attention), ("all_reduce", network)):
        path = folder / f"{name}.csv"
        frame.dropna(axis=1, how="all").to_csv(path, index=False)
        files[f"{name}_input_file"] = str(path)
    return files


def draw(count: int, rate: float) -> Requests:
    """Requests of penstock's own laws: Drifting arrivals, the quantiles named azure-conv for both lengths, drawn apart.

    Whole microseconds: at most 15 digits, which every reader of numbers turns into the same float."""
    sys.path.insert(0, str(HERE.parents[2] / "src"))
    from penstock.workload.arrivals import Drifting
    from penstock.workload.lengths import MEASURED
    from penstock.workload.open_loop import open_loop_source

    source = open_loop_source(Drifting(rate), *MEASURED["azure-conv"], count=count, seed=SEED)
    return [(round(one.arrival_s, 6), one.prompt_tokens, one.output_tokens) for one in source.initial()]


def azure(count: int, stretch: float) -> Requests:
    """The first requests of the Azure conversation trace, since the first of them, stretched. Not for the goldens."""
    source = DATA / "azure-llm-2023" / "AzureLLMInferenceTrace_conv.csv.gz"
    requests, first = [], None
    with gzip.open(source, "rt", encoding="utf-8") as lines:
        for row in itertools.islice(csv.DictReader(lines), count):
            stamp, fraction = row["TIMESTAMP"].split(".")
            ticks = int(datetime.fromisoformat(stamp + "+00:00").timestamp()) * 10**7 + int(fraction.ljust(7, "0"))
            first = ticks if first is None else first
            arrival_s = (ticks - first) / 1e7 * stretch
            requests.append((arrival_s, int(row["ContextTokens"]), int(row["GeneratedTokens"])))
    return requests


def write_trace(folder: Path, requests: Requests) -> str:
    """The requests in Vidur's format. Raises ValueError on one that Vidur would shorten."""
    path = folder / "trace.csv"
    with path.open("w", encoding="utf-8") as out:
        out.write("arrived_at,num_prefill_tokens,num_decode_tokens\n")
        for number, (arrival_s, prompt, output) in enumerate(requests):
            if not (prompt >= 1 and output >= 1 and prompt + output <= MAX_TOKENS):
                raise ValueError(f"request {number}: {prompt} + {output} tokens, not within {MAX_TOKENS}")
            out.write(f"{arrival_s!r},{prompt},{output}\n")
    return str(path)


class Used(dict):  # type: ignore[type-arg]
    """A table that remembers what it was asked for."""

    def __init__(self, table: dict[tuple[int, ...], float]) -> None:
        super().__init__(table)
        self.used: set[tuple[int, ...]] = set()

    def __getitem__(self, key: tuple[int, ...]) -> float:
        value: float = super().__getitem__(key)
        self.used.add(tuple(int(part) for part in key))
        return value


def simulate(setup: dict[str, float], trace: str, files: dict[str, str], work: Path, *, watch: bool):
    """One run of Vidur. Returns its predictor, scheduler, requests, their lengths (prompt, output), batches in order,
    evictions (index of the next batch, request id) and CPU seconds."""
    from vidur.config import (
        ClusterConfig,
        MetricsConfig,
        RandomForrestExecutionTimePredictorConfig,
        ReplicaConfig,
        SarathiSchedulerConfig,
        SimulationConfig,
        TraceRequestGeneratorConfig,
    )
    from vidur.entities import Request
    from vidur.metrics import MetricsStore
    from vidur.scheduler.replica_scheduler.sarathi_replica_scheduler import SarathiReplicaScheduler
    from vidur.simulator import Simulator
    from vidur.utils.random import set_seeds

    set_seeds(42)
    config = SimulationConfig(
        cluster_config=ClusterConfig(
            replica_config=ReplicaConfig(
                model_name=MODEL, device=DEVICE, network_device=NETWORK, tensor_parallel_size=TENSOR_PARALLEL
            ),
            replica_scheduler_config=SarathiSchedulerConfig(
                batch_size_cap=setup["cap"], num_blocks=setup["num_blocks"], chunk_size=setup["chunk"],
                watermark_blocks_fraction=setup["watermark"],
            ),
        ),
        request_generator_config=TraceRequestGeneratorConfig(
            trace_file=trace, max_tokens=MAX_TOKENS, time_scale_factor=1.0
        ),
        execution_time_predictor_config=RandomForrestExecutionTimePredictorConfig(
            **files, num_estimators=[250], max_depth=[16], min_samples_split=[2], k_fold_cv_splits=2,
            num_training_job_threads=1, prediction_max_prefill_chunk_size=setup["chunk"],
            prediction_max_tokens_per_request=MAX_TOKENS,
        ),
        metrics_config=MetricsConfig(
            write_metrics=False, enable_chrome_trace=False, output_dir=str(work / "out"), cache_dir=str(work / "cache")
        ),
    )  # fmt: skip
    batches: list[object] = []
    MetricsStore.on_batch_end = lambda self, time, batch, replica_id, memory: batches.append(batch)
    evictions: list[tuple[int, int]] = []
    restart, may_run = Request.restart, SarathiReplicaScheduler._can_allocate_request

    def watched_restart(self) -> None:
        evictions.append((len(batches), self.id))
        restart(self)

    def runs_if_it_needs_no_block(self, request) -> bool:
        held = self._allocation_map.get(request.id)
        if held is not None and request.num_processed_tokens <= held * self._config.block_size:
            return True
        return may_run(self, request)

    Request.restart = watched_restart
    if setup.get("full_memory"):
        SarathiReplicaScheduler._can_allocate_request = runs_if_it_needs_no_block
    simulator = Simulator(config)
    atexit.unregister(simulator._write_output)
    requests = [event._request for _, event in sorted(simulator._event_queue)]
    lengths = [(int(request.num_prefill_tokens), int(request.num_decode_tokens)) for request in requests]
    scheduler = next(iter(simulator._scheduler._replica_schedulers.values()))
    predictor = scheduler._replica_stage_schedulers[0]._execution_time_predictor
    if watch:
        predictor._predictions = {name: Used(table) for name, table in predictor._predictions.items()}
    started = time.process_time()
    simulator.run()
    seconds = time.process_time() - started
    return predictor, scheduler, requests, lengths, batches, evictions, seconds


def stretches(prompts: list[int], batches, numbers: dict[int, int], evictions: list[tuple[int, int]]):
    """Batches as prompt chunks (pass, request, tokens) and decodes (request, first pass, last pass). Raises ValueError
    if they would not say all: a decode of more than a token, or one that rests for a pass."""
    chunks, decodes = [], []
    wanted = dict(enumerate(prompts))
    computed, made = dict.fromkeys(wanted, 0), dict.fromkeys(wanted, 0)
    open_at: dict[int, list[int]] = {}
    evicted: dict[int, list[int]] = {}
    for index, number in evictions:
        evicted.setdefault(index, []).append(number)
    for index, batch in enumerate(batches):
        for number in evicted.get(index, ()):
            wanted[number], computed[number] = prompts[number] + made[number], 0
            decodes += [open_at.pop(number)] if number in open_at else []
        for request_id, tokens in zip(batch.request_ids, map(int, batch.num_tokens), strict=True):
            number = numbers[request_id]
            if computed[number] == wanted[number]:
                stretch = open_at.setdefault(number, [number, index, index - 1])
                if tokens != 1 or stretch[2] != index - 1:
                    raise ValueError(f"pass {index}: {tokens} tokens of request {number}, last seen in {stretch[2]}")
                stretch[2] = index
                made[number] += 1
            else:
                chunks.append((index, number, tokens))
                computed[number] += tokens
                made[number] += computed[number] == wanted[number]
    return chunks, sorted([*decodes, *open_at.values()])


def record(predictor, scheduler, requests, lengths, batches, evictions, seconds, *, full: bool):
    """Everything as arrays (README.md says which)."""
    numbers = {request.id: number for number, request in enumerate(requests)}
    evictions = [(index, numbers[request_id]) for index, request_id in evictions]
    chunks, decodes = stretches([prompt for prompt, _ in lengths], batches, numbers, evictions)
    config = scheduler._config
    about = {
        "model": MODEL, "device": DEVICE, "tensor_parallel": TENSOR_PARALLEL, "num_blocks": int(config.num_blocks),
        "block_size": config.block_size, "batch_size_cap": config.batch_size_cap, "chunk_size": config.chunk_size,
        "watermark_blocks": scheduler._watermark_blocks, "layers": predictor._num_layers_per_pipeline_stage,
        "granularity": predictor._config.kv_cache_prediction_granularity,
        "decode_overhead": predictor._attention_decode_batching_overhead_fraction,
        "prefill_overhead": predictor._attention_prefill_batching_overhead_fraction,
        "all_reduce_extra_ms": predictor._config.nccl_cpu_launch_overhead_ms
        + predictor._config.nccl_cpu_skew_overhead_per_device_ms * TENSOR_PARALLEL**1.25,
    } | ({"vidur_cpu_s": seconds} if full else {})  # fmt: skip
    arrays = {
        "about": np.frombuffer(json.dumps(about).encode(), np.uint8),
        "arrival_s": np.array([float(request.arrived_at) for request in requests]),
        "prompt_tokens": np.array([prompt for prompt, _ in lengths], np.int32),
        "output_tokens": np.array([output for _, output in lengths], np.int32),
        "first_token_ps": picoseconds(request.prefill_completed_at for request in requests),
        "completed_ps": picoseconds(request.completed_at for request in requests),
        "end_ps_steps": np.diff(picoseconds(batch._completed_at for batch in batches), prepend=np.int64(0)),
        "begin_ps_waits": picoseconds(
            batch._scheduled_at - (batches[index - 1]._completed_at if index else 0.0)
            for index, batch in enumerate(batches)
        ),
        "pass_tokens": np.array([int(batch.total_num_tokens) for batch in batches], np.int32),
        "pass_requests": np.array([batch.size for batch in batches], np.int32),
        "chunks": np.asfortranarray(chunks, np.int32),
        "decodes": np.asfortranarray(decodes, np.int32),
        "evictions": np.array(evictions, np.int32).reshape(-1, 2),
    }
    if full:  # for one comparison, not to be kept
        arrays |= {
            "first_token_s": np.array([float(request.prefill_completed_at) for request in requests]),
            "completed_s": np.array([float(request.completed_at) for request in requests]),
            "end_s": np.array([float(batch._completed_at) for batch in batches]),
            "begin_s": np.array([float(batch._scheduled_at) for batch in batches]),
        }
        return arrays
    for name, table in predictor._predictions.items():
        keys = sorted(table.used)
        arrays[f"keys {name}"] = np.asfortranarray(keys, np.int32)
        arrays[f"ms {name}"] = np.array([dict.__getitem__(table, key) for key in keys])
    return arrays


def picoseconds(times) -> np.ndarray:
    return np.array([round(one * 1e12) for one in times], np.int64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vidur", type=Path, required=True, help="a checkout of microsoft/vidur")
    parser.add_argument("--azure", type=int, metavar="COUNT", help="so many requests of the Azure trace; needs --out")
    parser.add_argument("--setup", choices=SETUPS, required=True, help="one a process: Vidur counts replicas for ever")
    parser.add_argument("--out", type=Path, help="file to write; default: the golden beside this script")
    parser.add_argument("--work", type=Path, help="keep Vidur's caches here, so that it trains only once")
    parser.add_argument("--full", action="store_true", help="times to the last bit, no tables: they stay in WORK/cache")
    options = parser.parse_args()
    if options.azure is not None and options.out is None:
        parser.error("--azure needs --out: a golden holds no trace")
    import_vidur(options.vidur)
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        files = write_profiles(work)
        name, setup = options.setup, SETUPS[options.setup]
        asked = draw(*DRAWN[name]) if options.azure is None else azure(options.azure, AZURE_STRETCH[name])
        *ran, seconds = simulate(setup, write_trace(work, asked), files, work, watch=not options.full)
        arrays = record(*ran, seconds, full=options.full)
        if options.azure is None and arrays["arrival_s"].tolist() != [arrival_s for arrival_s, _, _ in asked]:
            raise ValueError("Vidur read other arrivals than were drawn")
        out = options.out or HERE / f"{name}.npz"
        np.savez_compressed(out, **arrays)
        print(
            f"{name}: {len(asked)} requests, {len(ran[4])} passes, {len(ran[5])} evictions, {seconds:.1f} CPU s, "
            f"{out.name} {out.stat().st_size} bytes",
            file=sys.stderr,
        )


if __name__ == "__main__":
    main()
