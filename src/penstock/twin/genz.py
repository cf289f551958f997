"""GenZ's price of an operator: a roofline over three tensors and one ring, with two efficiencies and nothing else.

Bambhaniya et al., "Demystifying AI Platform Design for Distributed Inference" (GenZ, arXiv 2406.01698), by its public
code. It differs from `roofline.py` on purpose, so that its published numbers can be met to the last digit: work is
counted in multiply-adds at half the FLOP/s; the times of the tensors an operator reads and writes are added; attention
is two products over the full square, mask ignored; norms, sampling, launches and the host cost nothing. `genz_pass.py`
lists the operators of a pass as GenZ does. Bytes, seconds, joules; GenZ's tables are in binary GB (`Platform.table`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from penstock.catalog.device import Device
from penstock.twin.operators import (
    Collective,
    DecodeAttention,
    Experts,
    Gemm,
    LatentDecode,
    LatentPrefill,
    Operator,
    PrefillAttention,
)
from penstock.twin.price import Estimate

GIB: Final = 2.0**30
COMPUTE: Final[dict[str, float]] = {
    "float32": 2.0, "bfloat16": 1.0, "float16": 1.0, "fp8": 0.5, "fp8_block": 0.5, "int8": 0.5,
    "int4": 0.25, "nvfp4": 0.25, "mxfp4": 0.25,
}  # fmt: skip
"""Time of a multiply-add against bf16's."""
MEMORY: Final[dict[str, float]] = {
    "float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "fp8": 1.0, "fp8_block": 1.0, "int8": 1.0,
    "int4": 0.5, "nvfp4": 0.5, "mxfp4": 0.5,
}  # fmt: skip
"""Bytes of an element; scales are left out."""
Resident = Literal["", "in", "out", "in_out"]
"""Which activations stay on the chip (fused attention, a decode step's few rows)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """One accelerator and its ring. FLOP/s are those of bf16, dense."""

    flop_per_s: float
    memory_bytes: float
    memory_bytes_per_s: float
    link_bytes_per_s: float
    link_latency_s: float = 1e-6
    collective_start_s: float = 5e-6
    on_chip_bytes_per_s: float = 18_000 * GIB
    offload_bytes_per_s: float = 128 * GIB
    compute_efficiency: float = 1.0
    memory_efficiency: float = 1.0
    link_efficiency: float = 1.0
    watts: float = 1000.0
    power_shares: tuple[float, float, float, float] = (0.30, 0.40, 0.20, 0.10)
    """Static, compute, memory, network. GenZ's code multiplies by 30, 40, 20 and 10: 100 times too much."""

    @classmethod
    def table(cls, tflop_per_s: float, gb: float, gb_per_s: float, link_gb_per_s: float, **more: float) -> Platform:
        """A row of GenZ's own table: FLOP/s decimal, everything else in binary GB."""
        return cls(
            flop_per_s=tflop_per_s * 1e12, memory_bytes=gb * GIB, memory_bytes_per_s=gb_per_s * GIB,
            link_bytes_per_s=link_gb_per_s * GIB, **more,  # type: ignore[arg-type]
        )  # fmt: skip

    @classmethod
    def of(cls, device: Device, efficiency: float = 1.0) -> Platform:
        """A device of the catalogue, in its own SI units. Without a link, collectives take for ever."""
        link = device.scale_up
        return cls(
            flop_per_s=device.matrix_flop_per_s["bfloat16"].value, memory_bytes=device.memory_bytes.value,
            memory_bytes_per_s=device.memory_bytes_per_s.value,
            link_bytes_per_s=0.0 if link is None else link.bytes_per_s.value,
            link_latency_s=0.0 if link is None else link.latency_s.value,
            compute_efficiency=efficiency, memory_efficiency=efficiency,
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Product:
    """Any matrix product as GenZ sees it: multiply-adds, and the elements of what is read (A, W) and written."""

    macs: float
    a: float
    w: float
    out: float
    dtype: str
    """Of W."""
    activation_dtype: str


@dataclass(frozen=True, slots=True)
class HeadProduct:
    """Half of an attention: q.k (logit) or p.v (attend), over `keys` keys for each of `rows` queries of a sequence."""

    part: Literal["logit", "attend"]
    batch: float
    heads: int
    kv_heads: int
    rows: float
    keys: float
    width: float
    dtype: str = "bfloat16"

    def product(self) -> Product:
        narrow, wide = (self.batch * self.heads * self.rows * size for size in (self.width, self.keys))
        cache = self.batch * self.kv_heads * self.keys * self.width
        a, out = (narrow, wide) if self.part == "logit" else (wide, narrow)
        return Product(narrow * self.keys, a, cache, out, self.dtype, self.dtype)


@dataclass(frozen=True, slots=True)
class Cost:
    """Where the time of an operator is from; it takes the longest of the three."""

    compute_s: float = 0.0
    memory_s: float = 0.0
    link_s: float = 0.0

    @property
    def seconds(self) -> float:
        return max(self.compute_s, self.memory_s, self.link_s)


class Genz:
    """GenZ as one more price of the house's operators (OperatorPrice).

    What GenZ leaves out (norms, RoPE, KV writes, sampling, swaps) costs nothing here. Mixtures are priced by the
    experts that are expected to be active (operators.Experts), not by GenZ's ceil(K / EP): see genz_pass.
    """

    name = "genz"

    def __init__(self, platform: Platform) -> None:
        self.platform = platform

    def price(self, operator: Operator) -> Estimate:
        """Seconds and joules of one run."""
        if isinstance(operator, Collective):
            cost = self.collective(operator)
            return Estimate(cost.seconds, self.name, "assumed", self.joules(cost))
        costs = [self.product(product, resident) for product, resident in _products(operator)]
        seconds = sum(cost.seconds for cost in costs)
        return Estimate(seconds, self.name, "assumed", sum(map(self.joules, costs)))

    def product(self, product: Product, resident: Resident = "") -> Cost:
        """Compute against memory. An operator without multiply-adds takes no time: it only holds weights."""
        at = self.platform
        if product.macs == 0:
            return Cost()
        slower = max(COMPUTE[product.dtype], COMPUTE[product.activation_dtype])
        compute = product.macs * slower / (at.flop_per_s / 2) / at.compute_efficiency
        element, far, near = MEMORY[product.activation_dtype], at.memory_bytes_per_s, at.on_chip_bytes_per_s
        memory = (
            product.a * element / (near if "in" in resident.split("_") else far)
            + product.w * MEMORY[product.dtype] / far
            + product.out * element / (near if "out" in resident.split("_") else far)
        )
        return Cost(compute_s=compute, memory_s=memory / at.memory_efficiency)

    def collective(self, operator: Collective) -> Cost:
        """Rings: start + hops x latency + bytes over the link; a single rank or no bytes take no time."""
        at, ranks = self.platform, operator.ranks
        if operator.bytes == 0 or ranks == 1:
            return Cost()
        if at.link_bytes_per_s == 0:
            return Cost(link_s=float("inf"))
        if operator.kind == "send":
            return Cost(link_s=(at.link_latency_s + operator.bytes / at.link_bytes_per_s) / at.link_efficiency)
        rounds = 2 if operator.kind == "all_reduce" else 1
        hops = rounds * (ranks - 1)
        seconds = at.collective_start_s + hops * at.link_latency_s + hops / ranks * operator.bytes / at.link_bytes_per_s
        return Cost(link_s=seconds / at.link_efficiency)

    def joules(self, cost: Cost) -> float:
        """Static power while it lasts, and each part's share while that part is busy."""
        static, compute, memory, network = self.platform.power_shares
        return self.platform.watts * (
            static * cost.seconds + compute * cost.compute_s + memory * cost.memory_s + network * cost.link_s
        )


def gemm_product(operator: Gemm) -> Product:
    """[rows, inner] x [inner, columns]; a row count of 0 holds weights and takes no time."""
    rows, columns, inner = operator.rows, operator.columns, operator.inner
    return Product(
        rows * columns * inner, rows * inner, columns * inner, rows * columns, operator.dtype, operator.activation_dtype
    )


def _products(operator: Operator) -> list[tuple[Product, Resident]]:
    """An operator of the house as GenZ's products. Empty: GenZ does not see it."""
    match operator:
        case Gemm():
            return [(gemm_product(operator), "")]
        case PrefillAttention():
            seen = operator.past + operator.tokens
            if operator.window is not None:
                seen = min(seen, operator.window + operator.tokens)
            value = operator.head_dim if operator.value_dim is None else operator.value_dim
            return _attention(1, operator.heads, operator.kv_heads, operator.tokens, seen, operator.head_dim, value,
                              operator.kv_dtype)  # fmt: skip
        case LatentPrefill():
            seen = operator.past + operator.tokens
            query = operator.rope_dim + operator.nope_dim
            return _attention(1, operator.heads, operator.heads, operator.tokens, seen, query, operator.value_dim,
                              operator.dtype)  # fmt: skip
        case DecodeAttention():
            mean = operator.context / operator.sequences
            halves = _attention(operator.sequences, operator.heads, operator.kv_heads, 1, mean, operator.head_dim,
                                operator.head_dim, operator.kv_dtype)  # fmt: skip
            return [(product, "in_out") for product, _ in halves]
        case LatentDecode():
            # One cached latent for all heads; p.v reads the same latents again, which are on the chip by then.
            sequences, heads, rank = operator.sequences, operator.heads, operator.kv_rank
            keys, dtype = operator.context / sequences, operator.kv_dtype
            logit = HeadProduct("logit", sequences, heads, 1, 1, keys, rank + operator.rope_dim, dtype).product()
            attend = Product(
                sequences * heads * keys * rank, sequences * heads * keys, 0.0, sequences * heads * rank, dtype, dtype
            )
            return [(logit, "in_out"), (attend, "in_out")]
        case Experts():
            rows = operator.tokens * operator.experts_per_token / operator.expert_parallel
            width = operator.intermediate / operator.tensor_parallel
            up, held = (2 if operator.gated else 1), operator.active_experts()
            kinds = operator.dtype, operator.activation_dtype
            macs, weights = rows * operator.hidden * width, held * operator.hidden * width
            return [
                (Product(up * macs, rows * operator.hidden, up * weights, up * rows * width, *kinds), ""),
                (Product(macs, rows * width, weights, rows * operator.hidden, *kinds), ""),
            ]
        case _:
            return []


def _attention(
    batch: int, heads: int, kv_heads: int, rows: int, keys: float, width: int, value: int, dtype: str
) -> list[tuple[Product, Resident]]:
    """q.k leaves its scores on the chip, and p.v takes them from there."""
    return [
        (HeadProduct("logit", batch, heads, kv_heads, rows, keys, width, dtype).product(), "out"),
        (HeadProduct("attend", batch, heads, kv_heads, rows, keys, value, dtype).product(), "in"),
    ]
