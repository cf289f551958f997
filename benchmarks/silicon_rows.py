"""The rows of silicon_sample.csv as deployments: model, layout, precision, and the engine's settings for the run.

Source of the rows: aiconfigurator-core (Apache-2.0), systems/silicon_sample.csv. Two kinds stand in it. Rows of public
InferenceX runs (github.com/SemiAnalysisAI/InferenceX): prompts and outputs of 0.8 to 1.0 times the nominal length,
uniform; ten requests per unit of concurrency, sent all at once and held to the concurrency; twice the concurrency to
warm up; the engine's flags are in benchmarks/single_node of that repository. Rows of NVIDIA's own runs: lengths as
given. What the public runs report turns out to be the mean, the first burst included, and not the median.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from silicon_loop import Rules

from penstock.catalog import model_shape
from penstock.catalog.shape import ModelShape
from penstock.twin.layout import Layout, Precision

EXPERTS_ONLY = ("deepseek", "kimi", "minimax", "gpt-oss", "glm", "qwen3.5")
"""Their 4-bit checkpoints quantise the routed experts and leave attention in 16 bits."""


@dataclass(frozen=True, slots=True)
class Pool:
    """Workers that are alike."""

    layout: Layout
    workers: int = 1
    batch: int = 0
    """Most sequences of one worker; 0: not stated."""


@dataclass(frozen=True, slots=True)
class Point:
    """One measured deployment under one load."""

    id: str
    public: bool
    """An InferenceX run."""
    backend: str
    version: str
    model: str
    system: str
    precision: Precision
    mode: str
    prompt: int
    output: int
    concurrency: int
    quant: tuple[str, str]
    """Types of products and experts as the row names them."""
    pool: Pool
    """Of an aggregated deployment; of a disaggregated one, the prefill workers."""
    decode: Pool | None
    ttft: float
    """Seconds."""
    tpot: float

    @property
    def group(self) -> str:
        """Configuration without its load and lengths: training and test never share one."""
        pools = [(pool.layout, pool.workers) for pool in (self.pool, self.decode) if pool is not None]
        return f"{self.backend}|{self.model}|{self.system}|{self.precision}|{self.mode}|{pools}"

    @property
    def stated(self) -> tuple[object, ...]:
        """All that the row says of the run but when it was made. R1 and V3 are one architecture."""
        model = self.model.split("/")[-1].replace("DeepSeek-V3", "DeepSeek-R1")
        return self.group.replace(self.model, model), self.prompt, self.output, self.concurrency

    @property
    def band(self) -> str:
        """Load: requests under way per device."""
        devices = self.pool.layout.devices * self.pool.workers
        if self.decode is not None:
            devices += self.decode.layout.devices * self.decode.workers
        each = self.concurrency / devices
        return "low (< 4 per GPU)" if each < 4 else "middle (4 to 16)" if each < 16 else "high (16 and more)"


def test_half(points: Iterable[Point], seed: int) -> set[str]:
    """Ids of the rows to score; the others are for fitting. No configuration is in both halves, and every second one of
    each model (of one engine, system and mode, in the order of a hash) is in this one: with a hash alone, twelve
    of the 62 such kinds had no row in the training half; now seven have none, of which there is one configuration."""
    rows: dict[tuple[str, ...], dict[str, list[str]]] = {}
    for point in points:
        kind = (point.backend, point.system, point.model, point.mode)
        rows.setdefault(kind, {}).setdefault(point.group, []).append(point.id)
    chosen: set[str] = set()
    for groups in rows.values():
        drawn = sorted(groups, key=lambda group: hashlib.sha256(f"{seed}|{group}".encode()).digest())
        first = hashlib.sha256(f"{seed}|{drawn[0]}".encode()).digest()[0] & 1
        chosen.update(id for group in drawn[first::2] for id in groups[group])
    return chosen


def read_points(file: Path) -> tuple[list[Point], dict[str, int]]:
    """Every distinct row that says enough to be simulated; and how many were left out, by reason."""
    raw = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    points: dict[tuple[object, ...], Point] = {}
    left: dict[str, int] = {}
    for row in csv.DictReader(io.StringIO(raw.decode())):
        point = _point(row)
        if isinstance(point, str):
            left[point] = left.get(point, 0) + 1
            continue
        key = (point.group, point.version, point.prompt, point.output, point.concurrency, point.ttft, point.tpot)
        if key in points:
            left["the same measurement again"] = left.get("the same measurement again", 0) + 1
            continue
        points[key] = point
    return list(points.values()), left


def _point(row: dict[str, str]) -> Point | str:
    found = re.search(r"silicon_concurrency=(\d+)", row["silicon_data_source"])
    batch = row["batch_size"]
    if found is None and not batch:
        return "no concurrency stated"
    agg = row["mode"] == "agg"
    model = row["model_path"]
    shape = model_shape(model)
    if agg:
        pool = _pool(row, "", shape)
        decode = None
    else:
        if not row["prefill_num_workers"] or not row["decode_num_workers"]:
            return "disaggregated without the number of workers"
        pool, decode = _pool(row, "prefill_", shape), _pool(row, "decode_", shape)
        if isinstance(decode, str):
            return decode
    if isinstance(pool, str):
        return pool
    public = "harrli" not in row["silicon_data_source"]
    concurrency = int(found.group(1)) if found else int(float(batch)) * pool.layout.attention_dp
    return Point(
        row["id"], public, row["backend"], row["backend_version"], model, row["system"],
        _precision(row, model.lower(), public), row["mode"], int(row["isl"]), int(row["osl"]), concurrency,
        (row["gemm_quant_mode"], row["moe_quant_mode"]), pool, decode,
        float(row["silicon_ttft_ms"]) / 1e3, float(row["silicon_tpot_ms"]) / 1e3,
    )  # fmt: skip


def _pool(row: dict[str, str], prefix: str, shape: ModelShape) -> Pool | str:
    """The layout that the row means.

    Public rows were converted from (tp, ep, attention data parallel or not); where the product of the table's two MoE
    numbers exceeds the devices, it is that pair again: moe_tp is tp, moe_ep is ep, and both cut the same devices.
    """
    tensor, stages, groups, moe_tensor, spread = (
        max(1, int(float(row[prefix + name] or 0)))
        for name in ("tp_size", "pp_size", "attention_dp_size", "moe_tp_size", "moe_ep_size")
    )
    if moe_tensor > 1 and spread > 1 and moe_tensor == spread and tensor * groups == moe_tensor * spread:
        tensor, groups = (spread, 1) if groups == 1 else (1, spread)
        moe_tensor = 1
    elif tensor > 1 and tensor == groups and spread == tensor * groups:
        tensor, spread, moe_tensor = 1, groups, 1
    devices = tensor * groups
    heads = min(group.attention.heads for group in shape.groups)
    if heads % tensor or (devices > 16 and groups == 1):
        return "a layout that the model cannot be cut into"
    if all(not group.feed_forward.experts for group in shape.groups) or moe_tensor * spread != devices:
        moe_tensor, spread = devices, 1
    node = 72 if row["system"].startswith("gb") else 8
    layout = Layout(
        tensor_parallel=tensor, pipeline_parallel=stages, attention_dp=groups, moe_tensor_parallel=moe_tensor,
        expert_parallel=spread, devices_per_node=node,
    )  # fmt: skip
    workers, batch = row.get(prefix + "num_workers") or "1", row[prefix + "batch_size"] or "0"
    return Pool(layout, int(float(workers)), int(float(batch)))


def _precision(row: dict[str, str], model: str, public: bool) -> Precision:
    names = {"": "bfloat16", "fp8": "fp8", "fp8_block": "fp8_block", "nvfp4": "nvfp4", "int4_wo": "int4"}
    weights, experts = names[row["gemm_quant_mode"]], names[row["moe_quant_mode"]]
    if weights == "fp8" and any(name in model for name in ("deepseek", "minimax", "qwen3.5", "glm")):
        weights = experts = "fp8_block"  # as these models publish their 8-bit weights
    if any(name in model for name in EXPERTS_ONLY) and weights in ("nvfp4", "int4"):
        weights = "bfloat16"
    if "gpt-oss" in model:
        weights, experts = "bfloat16", "mxfp4"
    return Precision(weights=weights, experts=experts, kv=_kv(row, model, public))


def _kv(row: dict[str, str], model: str, public: bool) -> str:
    """As the public runs set it; the engines' default (as the weights' activations) elsewhere."""
    if not public:
        return "bfloat16"
    if row["backend"] == "vllm":
        if "kimi" in model:
            return "fp8" if row["gemm_quant_mode"] == "nvfp4" else "bfloat16"
        if "gpt-oss" in model:
            return "fp8" if row["system"].startswith("b") else "bfloat16"
    if "qwen3.5" in model and not row["gemm_quant_mode"]:
        return "bfloat16"
    return "fp8"


def rules(point: Point) -> Rules:
    """The engine's scheduler with the flags of the run, those of public runs from the scripts of that time."""
    groups, public = point.pool.layout.attention_dp, point.public
    model = point.model.lower()
    if point.backend == "sglang":
        return _sglang(point, model, groups)
    if point.backend == "trtllm":
        budget = 8192
        if public:
            budget = 20000 if "gpt-oss" in model else max(8192, point.concurrency + point.prompt + 64)
        # Public gpt-oss runs set num_postprocess_workers: 4; runs with attention DP set timeout_iters: 60.
        return Rules(
            "mixed", budget, chunked=False, reserve=1.0, memory=0.95, groups=groups, gather=60 if groups > 1 else 0,
            workers=4 if public and "gpt-oss" in model else 1,
        )  # fmt: skip
    budget = 8192
    if public and "minimax" in model and (_minor(point.version) >= 19 or "nightly" in point.version):
        budget = 2 * point.prompt
    asynchronous = _minor(point.version) >= 14 or "llama" in model
    return Rules("mixed", budget, lag=asynchronous, reserve=0.5, groups=groups)


def _sglang(point: Point, model: str, groups: int) -> Rules:
    """chunked-prefill-size, scheduler-recv-interval, max-running-requests and mem-fraction-static."""
    if not point.public:
        return Rules("prefill_first", 8192 // groups, most=512 * groups, reserve=0.7, memory=0.85, groups=groups)
    busy, eight_bit = point.concurrency >= 16, point.precision.weights == "fp8_block"
    budget, poll, most, memory = 16384, 1, 512, 0.85
    if "deepseek" in model:
        budget = 32768 if eight_bit or groups > 1 else 16384
        memory = 0.82 if eight_bit else 0.85
        if point.pool.layout.devices == 4 and eight_bit:
            budget, most, memory, busy = 8192, 32, 0.95, False
    elif "glm" in model:
        budget, memory = 32768, 0.85 if eight_bit else 0.9
    elif "qwen3.5" in model:
        budget, memory = (16384, 0.8) if eight_bit else (32768, 0.82)
        if eight_bit:
            busy = point.concurrency > 4 and point.system != "b300_sxm"
    if point.system[0] in "bg" and groups == 1:
        poll = 30 if busy else 10
        if "glm" in model:
            poll = 1 if eight_bit else 10
    return Rules(
        "prefill_first", budget // groups, poll=poll, most=most * groups, reserve=0.7, memory=memory, groups=groups
    )


def _minor(version: str) -> int:
    found = re.match(r"0\.(\d+)", version)
    return int(found.group(1)) if found else 15


@cache
def shape_of(model: str) -> ModelShape:
    """Remembered, since many rows share it."""
    return model_shape(model)


CONTRADICTION = 1.2
"""Ratio of two TPOT of one stated deployment and load beyond which something that the rows do not state was changed."""


def contradicted(points: list[Point]) -> set[str]:
    """Ids of rows with a twin that states the same and measured a TPOT 20 % off.

    The public runs include speculative decoding, which the table does not name; which of such a pair had it cannot be
    told without looking at the answer.
    """
    seen: dict[tuple[object, ...], list[Point]] = {}
    for point in points:
        seen.setdefault(point.stated, []).append(point)
    found = set()
    for twins in seen.values():
        if max(twin.tpot for twin in twins) > CONTRADICTION * min(twin.tpot for twin in twins):
            found.update(twin.id for twin in twins)
    return found


REACHABLE = 0.75
"""Share of the peak beyond which no serving engine gets, products alone (the largest ones measured reach 0.8)."""


def needs_more_than_peak(point: Point, peak_flop_per_s: float, matrix_flop_per_token: float) -> bool:
    """By Little's law the row's own times and concurrency give its rate. True where the products of that rate exceed
    what the devices can reach: prompts were not computed (cached), or not all the stated requests were under way."""
    devices = point.pool.layout.devices * point.pool.workers
    seconds = point.ttft + point.tpot * (point.output - 1)
    rate = point.concurrency / seconds * (point.prompt + point.output) * (0.9 if point.public else 1.0)
    return rate * matrix_flop_per_token > REACHABLE * peak_flop_per_s * devices
