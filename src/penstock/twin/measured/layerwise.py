"""Readers of two simulators' kernel profiles: LLMServingSim's (vLLM layer by layer) and Vidur's.

Both are of one layer of one model on one GPU, tensor parallelism emulated by divided shapes. Where a tool times what is
several operators here, the sum is kept and the others are priced at their own points or by the fallback.
"""

from __future__ import annotations

import math
from collections import defaultdict
from pathlib import Path
from typing import Final

from penstock.twin.measured.profiles import InvalidProfile, Points, Profile, profile_lines, profile_of
from penstock.twin.price import OperatorPrice

SERVING_SIM_KINDS: Final = {
    "embedding": "embedding", "layernorm": "norm", "qkv_proj": "qkv", "o_proj": "out_proj",
    "gate_up_proj": "gate_up", "act_fn": "activation", "down_proj": "down", "lm_head": "lm_head", "sampler": "sampler",
}  # fmt: skip
VIDUR_KINDS: Final = {
    "emb": "embedding", "input_layernorm": "norm", "attn_pre_proj": "qkv", "attn_post_proj": "out_proj",
    "mlp_up_proj": "gate_up", "mlp_act": "activation", "mlp_down_proj": "down", "attn_rope": "rope",
}  # fmt: skip
_TEXTS: Final = ("layer", "regime")


def read_serving_sim(folder: Path, fallback: OperatorPrice) -> Profile:
    """LLMServingSim's profiler/perf/<GPU>/<model>/<dtype>/tp<N>: dense, attention, per_sequence, moe and skew.csv[.gz].

    Microseconds. Raises InvalidProfile: a file or a column is missing, or a cell is no
    number.

    Rotary embedding takes the norms of queries and keys with it where the model has them. attention.csv times prefill
    and decodes in one call: its lines without the one give the price of the other alone. Writing KV is inside it.
    """
    points = Points()
    extra: dict[float, float] = defaultdict(float)
    for row in _table(folder, "dense", ("layer", "tokens", "time_us")):
        tokens, seconds = float(row["tokens"]), float(row["time_us"]) * 1e-6
        if row["layer"] in ("rotary_emb", "qk_norm"):
            extra[tokens] += seconds
        elif row["layer"] in SERVING_SIM_KINDS:
            points.rows[SERVING_SIM_KINDS[row["layer"]]].append((tokens, seconds))
    points.rows["rope"] = list(extra.items())
    for row in _table(folder, "per_sequence", ("layer", "sequences", "time_us")):
        if row["layer"] in SERVING_SIM_KINDS:
            points.rows[SERVING_SIM_KINDS[row["layer"]]].append((float(row["sequences"]), float(row["time_us"]) * 1e-6))
    _attention(points, folder)
    if any(folder.glob("moe.csv*")):
        for row in _table(folder, "moe", ("tokens", "activated_experts", "time_us")):
            points.experts.append((float(row["activated_experts"]), float(row["tokens"]), float(row["time_us"]) * 1e-6))
        points.rows["router"] = [(1.0, 1e-12)]  # the whole block was timed, its router included
    if any(folder.glob("skew.csv*")):
        # Least squares of t_skew = t_mean + alpha (t_max - t_mean): short contexts, all noise, count for little.
        sums: dict[float, list[float]] = defaultdict(lambda: [0.0, 0.0])
        for row in _table(folder, "skew", ("regime", "n", "t_mean_us", "t_max_us", "t_skew_us")):
            if row["regime"] == "pure":
                reach = float(row["t_max_us"]) - float(row["t_mean_us"])
                sums[float(row["n"])][0] += reach * (float(row["t_skew_us"]) - float(row["t_mean_us"]))
                sums[float(row["n"])][1] += reach * reach
        points.skew.extend((size, shared / square) for size, (shared, square) in sorted(sums.items()) if square)
    points.rows["kv_write"] = [(1.0, 1e-12)]
    return profile_of(points, fallback, folder)


def _attention(points: Points, folder: Path) -> None:
    alone: dict[float, float] = {}
    mixed = []
    for row in _table(folder, "attention", ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us")):
        chunk, past, sequences, context = (
            float(row[name]) for name in ("prefill_chunk", "kv_prefill", "n_decode", "kv_decode")
        )
        seconds = float(row["time_us"]) * 1e-6
        if chunk and not sequences:
            points.prefill[None].append((past, chunk, seconds))
            if not past:
                alone[chunk] = seconds
        elif sequences and not chunk:
            points.decode[None].append((sequences, context, seconds))
        elif not past:
            mixed.append((chunk, sequences, context, seconds))
    for chunk, sequences, context, seconds in mixed:
        if chunk in alone:
            points.mixed[int(chunk)].append((sequences, context, max(1e-7, seconds - alone[chunk])))


def read_vidur(
    mlp: Path, model: str, fallback: OperatorPrice, *, tensor_parallel: int = 1, device: str | None = None,
    attention: Path | None = None,
) -> Profile:  # fmt: skip
    """Vidur's compute_mlp and attention profiles (CSV or Parquet, milliseconds, medians of `time_stats.<operator>`).

    `model`, `device` and `tensor_parallel` choose the rows. Raises InvalidProfile: none of them fits.
    """
    points = Points()
    for row in profile_lines(mlp):
        if row["model"] != model or int(row["num_tensor_parallel_workers"]) != tensor_parallel:
            continue
        if device is not None and row["device"] != device:
            continue
        for name, kind in VIDUR_KINDS.items():
            found = row.get(f"time_stats.{name}.median")
            if found not in (None, ""):
                points.rows[kind].append((float(row["num_tokens"]), float(found) * 1e-3))
    if not points.rows:
        raise InvalidProfile(
            field="twin.data", value=str(mlp), why=f"no rows of {model} on {device or 'any device'} with "
            f"{tensor_parallel} tensor-parallel workers", remedy="a model and device that the file holds",
        )  # fmt: skip
    for row in profile_lines(attention) if attention is not None else ():
        if int(row["num_tensor_parallel_workers"]) != tensor_parallel:
            continue
        prefill = str(row["is_prefill"]) == "True"
        found = row.get("time_stats.attn_prefill.median" if prefill else "time_stats.attn_decode.median")
        if found in (None, ""):
            continue
        if prefill and int(row["batch_size"]) == 1:
            points.prefill[None].append(
                (float(row["kv_cache_size"]), float(row["prefill_chunk_size"]), float(found) * 1e-3)
            )
        elif not prefill:
            points.decode[None].append((float(row["batch_size"]), float(row["kv_cache_size"]), float(found) * 1e-3))
    return profile_of(points, fallback, mlp)


def _table(folder: Path, name: str, columns: tuple[str, ...]) -> list[dict[str, str]]:
    found = sorted(folder.glob(f"{name}.csv*"))
    if not found:
        raise InvalidProfile(
            field="twin.data", value=str(folder), why=f"holds no {name}.csv", remedy="a folder of the profiler"
        )
    rows = list(profile_lines(found[0]))
    missing = [column for column in columns if rows and column not in rows[0]]
    if missing or not rows:
        raise InvalidProfile(
            field=f"{found[0].name}, line 1", value=missing, why="no such column, or no rows",
            remedy="columns " + ", ".join(columns),
        )  # fmt: skip
    for line, row in enumerate(rows, start=2):
        for column in columns:
            if column not in _TEXTS and not _is_number(row[column]):
                raise InvalidProfile(
                    field=f"{found[0].name}, line {line}, column {column}", value=row[column], why="not a number",
                    remedy="a number",
                )  # fmt: skip
    return [dict(row) for row in rows]


def _is_number(cell: object) -> bool:
    try:
        return math.isfinite(float(str(cell)))
    except ValueError:
        return False
