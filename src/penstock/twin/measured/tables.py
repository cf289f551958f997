"""The tables of one GPU system under one engine: which measured curve answers for an operator of a given shape.

Each `find` gives a curve, surface or block with the factor its seconds are to be multiplied by, and whether it is of
just this shape, type and engine (else the price is an extrapolation). Where the wanted shape was not measured the
nearest one stands in, in proportion to its work. Nothing is read before it is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from penstock.twin.measured.curves import Curve, Products, Surface
from penstock.twin.measured.database import Database, Rows, distinct, read_table, read_tuples
from penstock.twin.operators import DecodeAttention, Experts, LatentDecode, LatentPrefill, PrefillAttention

T = TypeVar("T")

WEIGHT_NAMES: Final[dict[str, tuple[str, ...]]] = {
    "float32": ("bfloat16",), "float16": ("bfloat16",), "bfloat16": ("bfloat16",),
    "fp8": ("fp8", "fp8_block"), "fp8_block": ("fp8_block", "fp8"),
    "int8": ("int8_wo", "fp8"), "int4": ("int4_wo", "fp8"),
    "nvfp4": ("nvfp4", "fp8", "fp8_block"), "mxfp4": ("mxfp4", "nvfp4", "fp8"),
}  # fmt: skip
"""Our types to the databases', best match first; all but the first are stand-ins."""
EITHER: Final[dict[str, tuple[str, ...]]] = {"mxfp4": ("w4a16_mxfp4", "w4a8_mxfp4_mxfp8")}
"""Types under several names, by what activations become on the way: an engine takes the faster."""
KV_NAMES: Final = {"fp8": "fp8", "fp8_block": "fp8", "int8": "fp8"}
ROUTING: Final = "power_law_1.2"
"""How tokens fall on experts: measured with the skew that real models show (`balanced` is there too)."""


@dataclass(frozen=True, slots=True)
class Found(Generic[T]):
    """What answers, times `factor`; `exact` when it is of just this shape, type and engine."""

    table: T
    factor: float = 1.0
    exact: bool = True


class Tables:
    """Lazily read tables of one `Database`."""

    def __init__(self, database: Database, routing: str = ROUTING, *, own_only: bool = False) -> None:
        self._database, self._routing, self._own_only = database, routing, own_only
        self._products: dict[str, Found[Products] | None] = {}
        self._attention: dict[Any, Found[Surface] | None] = {}
        self._groups: dict[
            tuple[Path, str], dict[tuple[int, int, int, int], dict[str, list[tuple[float, float, float]]]]
        ] = {}
        self._experts: dict[Any, Found[Curve] | None] = {}
        self._collectives: dict[tuple[str, int], Found[Curve] | None] = {}
        self._shapes: dict[Path, Rows] = {}

    def _sources(self, name: str) -> Iterator[tuple[Path, bool]]:
        """Files to ask in turn, and whether each is this engine's own."""
        return self._database.sources(name, own_only=self._own_only)

    # -- matrix products ------------------------------------------------------------------------------------------

    def products(self, dtype: str) -> Found[Products] | None:
        """Products with weights of `dtype`."""
        if dtype not in self._products:
            self._products[dtype] = self._read_products(dtype)
        return self._products[dtype]

    def _read_products(self, dtype: str) -> Found[Products] | None:
        for wanted in WEIGHT_NAMES.get(dtype, (dtype,)):
            for path, own in self._sources("gemm_perf"):
                points: dict[tuple[int, int], list[tuple[float, float]]] = {}
                columns = ["m", "n", "k", "latency", "gemm_dtype"]
                for m, n, k, ms, _ in read_tuples(path, columns, {"gemm_dtype": wanted}):
                    points.setdefault((n, k), []).append((m, ms * 1e-3))
                if not points:
                    continue
                exact = own and wanted == WEIGHT_NAMES.get(dtype, (dtype,))[0]
                return Found(Products({key: Curve(value) for key, value in points.items()}), exact=exact)
        return None

    # -- attention ------------------------------------------------------------------------------------------------

    def decode(self, operator: DecodeAttention) -> Found[Surface] | None:
        """Surface over (sequences, context of each)."""
        return self._attend("generation_attention_perf", operator)

    def prefill(self, operator: PrefillAttention) -> Found[Surface] | None:
        """Surface over (prompts side by side, tokens of each)."""
        return self._attend("context_attention_perf", operator)

    def _attend(self, name: str, operator: DecodeAttention | PrefillAttention) -> Found[Surface] | None:
        kv = KV_NAMES.get(operator.kv_dtype, "bfloat16")
        key = (name, operator.heads, operator.kv_heads, operator.head_dim, operator.window, kv)
        if key not in self._attention:
            wanted = (operator.heads, operator.kv_heads, operator.head_dim, operator.window or 0)
            self._attention[key] = self._surface(name, kv, wanted)
        return self._attention[key]

    def _surface(self, name: str, kv: str, wanted: tuple[int, int, int, int]) -> Found[Surface] | None:
        nearest: tuple[float, Found[Surface]] | None = None
        prefill = name.startswith("context")
        for path, own in self._sources(name):
            groups = self._attention_groups(path, kv, prefill)
            if wanted in groups:
                return Found(self._best_surface(groups[wanted], prefill), exact=own)
            if nearest is None and groups:
                near = min(groups, key=lambda group: _apart(group, wanted))
                work, near_work = (_attention_work(shape, prefill) for shape in (wanted, near))
                found = Found(self._best_surface(groups[near], prefill), work / near_work, exact=False)
                nearest = (_apart(near, wanted), found)
                if nearest[0] < math.inf and own:
                    break
        return None if nearest is None else nearest[1]

    @staticmethod
    def _best_surface(by_type: dict[str, list[tuple[float, float, float]]], prefill: bool) -> Surface:
        """Attention in bf16 where it was measured so: engines quantise the cache more often than the queries."""
        points = by_type.get("bfloat16") or next(iter(by_type.values()))
        return Surface(points, log=prefill)

    def _attention_groups(
        self, path: Path, kv: str, prefill: bool
    ) -> dict[tuple[int, int, int, int], dict[str, list[tuple[float, float, float]]]]:
        """(heads, KV heads, head width, window) to points by attention type."""
        if (path, kv) not in self._groups:
            columns = ["batch_size", "isl", "step", "num_heads", "num_key_value_heads", "head_dim", "window_size",
                       "attn_dtype", "kv_cache_dtype", "latency"]  # fmt: skip
            groups: dict[tuple[int, int, int, int], dict[str, list[tuple[float, float, float]]]] = {}
            rows = read_tuples(path, columns, {"kv_cache_dtype": kv})
            for batch, isl, step, heads, kv_heads, width, window, dtype, _, ms in rows:
                shape = (heads, kv_heads, width, window or 0)
                length = isl if prefill else step + isl
                groups.setdefault(shape, {}).setdefault(dtype, []).append((batch, length, ms * 1e-3))
            self._groups[path, kv] = groups
        return self._groups[path, kv]

    # -- latent attention -----------------------------------------------------------------------------------------

    def latent(self, operator: LatentDecode | LatentPrefill) -> Found[Surface] | None:
        """Surface over (sequences, context of each) or (prompts, tokens of each) for DeepSeek's latent widths."""
        prefill = isinstance(operator, LatentPrefill)
        name = "context_mla_perf" if prefill else "generation_mla_perf"
        kv = KV_NAMES.get(operator.kv_dtype, "bfloat16")
        key = (name, operator.heads, kv)
        if key not in self._attention:
            self._attention[key] = self._read_latent(name, operator.heads, kv, prefill)
        return self._attention[key]

    def _read_latent(self, name: str, heads: int, kv: str, prefill: bool) -> Found[Surface] | None:
        columns = ["batch_size", "isl", "step", "num_heads", "kv_cache_dtype", "latency"]
        for path, own in self._sources(name):
            rows = read_table(path, columns, {"kv_cache_dtype": kv})
            if not rows:
                continue
            near = min({row["num_heads"] for row in rows}, key=lambda measured: abs(math.log(measured / heads)))
            points = [
                (row["batch_size"], row["isl"] if prefill else row["step"] + row["isl"], row["latency"] * 1e-3)
                for row in rows if row["num_heads"] == near
            ]  # fmt: skip
            return Found(Surface(points, log=prefill), heads / near, exact=own and near == heads)
        return None

    # -- experts --------------------------------------------------------------------------------------------------

    def experts(self, operator: Experts) -> Found[Curve] | None:
        """Curve over tokens of the whole expert-parallel group."""
        key = (operator.hidden, operator.intermediate, operator.experts, operator.experts_per_token,
               operator.tensor_parallel, operator.expert_parallel, operator.dtype)  # fmt: skip
        if key not in self._experts:
            self._experts[key] = self._read_experts(operator)
        return self._experts[key]

    def _read_experts(self, operator: Experts) -> Found[Curve] | None:
        shape = (operator.hidden, operator.intermediate, operator.experts_per_token, operator.experts)
        stand_in: Found[Curve] | None = None
        for place, dtype in enumerate(WEIGHT_NAMES.get(operator.dtype, (operator.dtype,))):
            for path, own in self._sources("moe_perf"):
                found = self._expert_curve(path, dtype, shape, operator)
                if found is None:
                    continue
                if found.exact:
                    return Found(found.table, found.factor, own and not place)
                if stand_in is None and own:
                    stand_in = found
        return stand_in

    def _expert_curve(
        self, path: Path, dtype: str, shape: tuple[int, int, int, int], operator: Experts
    ) -> Found[Curve] | None:
        keys, cuts = ("hidden_size", "inter_size", "topk", "num_experts"), ("moe_tp_size", "moe_ep_size")
        if path not in self._shapes:
            self._shapes[path] = distinct(path, [*keys, *cuts, "moe_dtype"])
        cut = (operator.tensor_parallel, operator.expert_parallel)
        names = EITHER.get(dtype, (dtype,))
        there = [row for row in self._shapes[path] if row["moe_dtype"] in names]
        if not there:
            return None

        def apart(row: dict[str, Any]) -> float:
            far = sum(abs(math.log(row[name] / want)) for name, want in zip(keys, shape, strict=True))
            return far + abs(math.log(row["moe_tp_size"] / cut[0])) + 2 * abs(math.log(row["moe_ep_size"] / cut[1]))

        near = min(there, key=apart)
        exact = apart(near) == 0
        where = {name: near[name] for name in (*keys, *cuts)}
        found = read_table(path, ["num_tokens", "latency", "distribution", "moe_dtype", *where], where)
        rows = [row for row in found if row["moe_dtype"] in names]
        points = [(row["num_tokens"], row["latency"] * 1e-3) for row in rows if row["distribution"] == self._routing]
        points = points or [(row["num_tokens"], row["latency"] * 1e-3) for row in rows]
        factor = _expert_work(*shape, *cut) / _expert_work(*(near[name] for name in (*keys, *cuts)))
        return Found(Curve(points), factor, exact)

    # -- collectives ----------------------------------------------------------------------------------------------

    def collective(self, kind: str, ranks: int) -> Found[Curve] | None:
        """Curve over bytes of the message, within one node."""
        if (kind, ranks) not in self._collectives:
            self._collectives[kind, ranks] = self._read_collective(kind, ranks)
        return self._collectives[kind, ranks]

    def _read_collective(self, kind: str, ranks: int) -> Found[Curve] | None:
        if kind == "all_reduce":
            for path, own in self._sources("custom_allreduce_perf"):
                rows = read_table(path, ["num_gpus", "message_size", "latency", "backend"], {"num_gpus": ranks})
                # `message_size` counts bf16 elements. Captured launches are what engines run.
                points = [(2.0 * row["message_size"], row["latency"] * 1e-3) for row in rows
                          if not str(row.get("backend", "")).endswith("eager")]  # fmt: skip
                if points:
                    return Found(Curve(points), exact=own)
        name = {"all_to_all": "alltoall"}.get(kind, kind)
        for path in self._nccl():
            rows = read_table(
                path, ["op_name", "nccl_dtype", "num_gpus", "message_size", "latency"],
                {"op_name": name, "nccl_dtype": "half", "num_gpus": ranks},
            )  # fmt: skip
            if rows:
                return Found(Curve((2.0 * row["message_size"], row["latency"] * 1e-3) for row in rows))
        return None

    def _nccl(self) -> list[Path]:
        return self._database.files("nccl_perf", "nccl")


def _apart(group: tuple[int, int, int, int], wanted: tuple[int, int, int, int]) -> float:
    """How unlike two attention shapes are: KV heads and width weigh most, a window that differs is out."""
    heads, kv_heads, width, window = (abs(math.log((a or 1) / (b or 1))) for a, b in zip(group, wanted, strict=True))
    return heads + 2 * kv_heads + 4 * width + 8 * window


def _attention_work(shape: tuple[int, int, int, int], prefill: bool) -> float:
    heads, kv_heads, width, _ = shape
    return (heads if prefill else kv_heads) * width


def _expert_work(hidden: int, inter: int, topk: int, experts: int, tensor: int, spread: int) -> float:
    """Products per token and device, to scale from one shape of experts to another."""
    return hidden * inter * topk / (tensor * spread)
