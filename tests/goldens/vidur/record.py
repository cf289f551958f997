"""Runs the real Vidur and writes down what it did: every pass, its batch, its end, and the tables that priced it.

Vidur (microsoft/vidur, MIT; Agrawal et al., MLSys 2024) is not a dependency. This script runs under any Python that has
what Vidur asks for (numpy, pandas, scikit-learn, ddsketch, fasteners, and pyarrow to read the profiles); its plotting
and logging packages are not needed and are replaced by empty ones. Nothing of Vidur is changed: its trace replay, its
Sarathi scheduler, its predictor, its event loop. Only two things are watched from outside: MetricsStore.on_batch_end
(each batch when it ends) and, for the goldens, which table entries the predictor asks for.

    python tests/goldens/vidur/record.py --vidur CHECKOUT --setup ample       writes ample.npz anew; then tight
    python tests/goldens/vidur/record.py --vidur CHECKOUT --setup ample --requests 10000 --out passes.npz --all-tables

The model is CodeLlama-34B on two A100s: its attention (64 query and 8 KV heads, width 8,192, two ways) is what the only
complete attention profile at hand was measured for; linear layers and all-reduce are Vidur's own files for that model
and pair. Requests: the Azure conversation trace of 2023 (CC-BY 4.0), arrival gaps stretched by `SETUPS`.
"""

from __future__ import annotations

import argparse
import atexit
import csv
import gzip
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
SETUPS = {
    # Blocks from Vidur's own memory planner: what binds is the token budget and the batch cap.
    "ample": {"num_blocks": None, "watermark": 0.01, "cap": 40, "stretch": 2.4, "chunk": 512},
    # Few blocks, and a watermark wide enough that nobody is ever preempted: what binds is memory at admission.
    "tight": {"num_blocks": 1801, "watermark": 0.25, "cap": 128, "stretch": 4.0, "chunk": 512},
}
GOLDEN_REQUESTS = {"ample": 2000, "tight": 1000}


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


def write_trace(folder: Path, requests: int) -> str:
    """The first requests of the Azure conversation trace in Vidur's format; seconds since the first of them."""
    path = folder / f"trace_{requests}.csv"
    source = DATA / "azure-llm-2023" / "AzureLLMInferenceTrace_conv.csv.gz"
    with gzip.open(source, "rt", encoding="utf-8") as lines, path.open("w", encoding="utf-8") as out:
        out.write("arrived_at,num_prefill_tokens,num_decode_tokens\n")
        first = None
        for row in list(csv.DictReader(lines))[:requests]:
            stamp, fraction = row["TIMESTAMP"].split(".")
            ticks = int(datetime.fromisoformat(stamp + "+00:00").timestamp()) * 10**7 + int(fraction.ljust(7, "0"))
            first = ticks if first is None else first
            out.write(f"{(ticks - first) / 1e7!r},{row['ContextTokens']},{row['GeneratedTokens']}\n")
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
    """One run of Vidur. Returns (simulator, its requests, its batches in the order they ended, CPU seconds)."""
    from vidur.config import (
        ClusterConfig,
        MetricsConfig,
        RandomForrestExecutionTimePredictorConfig,
        ReplicaConfig,
        SarathiSchedulerConfig,
        SimulationConfig,
        TraceRequestGeneratorConfig,
    )
    from vidur.metrics import MetricsStore
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
            trace_file=trace, max_tokens=MAX_TOKENS, time_scale_factor=setup["stretch"]
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
    simulator = Simulator(config)
    atexit.unregister(simulator._write_output)
    requests = [event._request for _, event in sorted(simulator._event_queue)]
    scheduler = next(iter(simulator._scheduler._replica_schedulers.values()))
    predictor = scheduler._replica_stage_schedulers[0]._execution_time_predictor
    if watch:
        predictor._predictions = {name: Used(table) for name, table in predictor._predictions.items()}
    started = time.process_time()
    simulator.run()
    seconds = time.process_time() - started
    return predictor, scheduler, requests, batches, seconds


def record(predictor, scheduler, requests, batches, setup, seconds, *, all_tables: bool) -> dict[str, np.ndarray]:
    """Everything as arrays (README.md says which). Raises ValueError if they would not say all that Vidur did."""
    if any(request.num_restarts for request in requests):
        raise ValueError(f"{sum(request.num_restarts > 0 for request in requests)} requests were preempted")
    numbers = {request.id: number for number, request in enumerate(requests)}
    chunks, joined, left, prefilled = [], {}, {}, [0] * len(requests)
    for index, batch in enumerate(batches):
        for request_id, tokens in zip(batch.request_ids, batch.num_tokens, strict=True):
            number = numbers[request_id]
            if number in joined:
                left[number] = index
                if tokens != 1:
                    raise ValueError(f"pass {index}: {tokens} tokens of a decode")
                continue
            chunks.append((index, number, int(tokens)))
            prefilled[number] += int(tokens)
            if prefilled[number] == requests[number].num_prefill_tokens:
                joined[number] = left[number] = index
    made = [[] for _ in batches]
    for index, number, tokens in chunks:
        made[index].append((number, tokens))
    for number, index in joined.items():
        for later in range(index + 1, left[number] + 1):
            made[later].append((number, 1))
    for index, batch in enumerate(batches):
        ids = [numbers[one] for one in batch.request_ids]
        if sorted(made[index]) != sorted(zip(ids, map(int, batch.num_tokens), strict=True)):
            raise ValueError(f"pass {index} does not follow from chunks and ends")
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
        "stretch": setup["stretch"],
    } | ({"vidur_cpu_s": seconds} if all_tables else {})  # fmt: skip
    arrays = {
        "about": np.frombuffer(json.dumps(about).encode(), np.uint8),
        "arrival_s": np.array([float(request.arrived_at) for request in requests]),
        "prompt_tokens": np.array([int(request.num_prefill_tokens) for request in requests], np.int32),
        "output_tokens": np.array([int(request.num_decode_tokens) for request in requests], np.int32),
        "first_token_ps": picoseconds(request.prefill_completed_at for request in requests),
        "completed_ps": picoseconds(request.completed_at for request in requests),
        "end_ps_steps": np.diff(picoseconds(batch._completed_at for batch in batches), prepend=np.int64(0)),
        "begin_ps_waits": picoseconds(
            batch._scheduled_at - (batches[index - 1]._completed_at if index else 0.0)
            for index, batch in enumerate(batches)
        ),
        "pass_tokens": np.array([int(batch.total_num_tokens) for batch in batches], np.int32),
        "pass_requests": np.array([batch.size for batch in batches], np.int32),
        "chunks": np.array(chunks, np.int32),
        "last_pass": np.array([left[number] for number in range(len(requests))], np.int32),
    }
    if all_tables:  # a file for one comparison may be large: times to the last bit
        arrays |= {
            "first_token_s": np.array([float(request.prefill_completed_at) for request in requests]),
            "completed_s": np.array([float(request.completed_at) for request in requests]),
            "end_s": np.array([float(batch._completed_at) for batch in batches]),
            "begin_s": np.array([float(batch._scheduled_at) for batch in batches]),
        }
    for name, table in predictor._predictions.items():
        keys = sorted(tuple(int(part) for part in key) for key in table) if all_tables else sorted(table.used)
        arrays[f"keys {name}"] = np.array(keys, np.int32)
        arrays[f"ms {name}"] = np.array([dict.__getitem__(table, key) for key in keys])
    return arrays


def picoseconds(times) -> np.ndarray:
    return np.array([round(one * 1e12) for one in times], np.int64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vidur", type=Path, required=True, help="a checkout of microsoft/vidur")
    parser.add_argument("--requests", type=int, help=f"default: {GOLDEN_REQUESTS}")
    parser.add_argument("--setup", choices=SETUPS, required=True, help="one a process: Vidur counts replicas for ever")
    parser.add_argument("--out", type=Path, help="file to write; default: the golden beside this script")
    parser.add_argument("--work", type=Path, help="keep Vidur's caches here, so that it trains only once")
    parser.add_argument("--all-tables", action="store_true", help="whole tables, times to the last bit; unwatched")
    options = parser.parse_args()
    import_vidur(options.vidur)
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        files = write_profiles(work)
        name, setup = options.setup, SETUPS[options.setup]
        requests = options.requests or GOLDEN_REQUESTS[name]
        trace = write_trace(work, requests)
        *ran, seconds = simulate(setup, trace, files, work, watch=not options.all_tables)
        arrays = record(*ran, setup, seconds, all_tables=options.all_tables)
        out = options.out or HERE / f"{name}.npz"
        np.savez_compressed(out, **arrays)
        print(f"{name}: {requests} requests, {len(ran[3])} passes, {seconds:.1f} CPU s, {out.name} "
              f"{out.stat().st_size} bytes", file=sys.stderr)  # fmt: skip


if __name__ == "__main__":
    main()
