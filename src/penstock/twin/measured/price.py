"""Prices from operator databases: what an engine's own kernels took on the GPU in question."""

from __future__ import annotations

import math
from typing import Final, Literal

from penstock.twin.measured.database import BACKENDS, Database
from penstock.twin.measured.tables import ROUTING, Tables
from penstock.twin.operators import (
    Collective,
    DecodeAttention,
    Elementwise,
    Experts,
    Gemm,
    LatentDecode,
    LatentPrefill,
    Operator,
    PrefillAttention,
)
from penstock.twin.price import Estimate, OperatorPrice

CAPTURED_ROWS: Final = 512
"""Largest batch that engines capture as a CUDA graph by default. Beyond it they launch kernel by kernel, as collections
were made: prompts of 8k tokens on B200 take 1.2 to 1.4 times what the engine's own collection says, whatever the
model, and 1.3 to 2.2 times the fastest of all collections."""


class Measured:
    """Interpolates measured operators; what was not measured goes to `fallback`, whose estimate says what it rests on.

    Norms, activations, copies and the sampler are in no database: they are always the fallback's. A chunk over cached
    tokens costs what a prompt with as many query-key pairs does, since prompts were measured from their start only.

    Args:
        database: the GPU system and the engine.
        fallback: price of all other operators, usually the roofline of the same device.
        routing: how tokens fall on experts: balanced, power_law_1.01 or power_law_1.2.
        kernels: own: the engine's own collection only, where it has the operator. fastest: also what another engine
            was measured with on this GPU for just this shape and type, if that is faster, up to CAPTURED_ROWS rows.
            Engines share kernel libraries, and some collections hold what no engine runs: DeepGEMM under vLLM was
            timed launch by launch (170 us whatever the shape), latent attention on Hopper under SGLang with a kernel
            several times slower than its rivals'.
    """

    name = "measured"

    def __init__(
        self, database: Database, fallback: OperatorPrice, *, routing: str = ROUTING,
        kernels: Literal["own", "fastest"] = "fastest",
    ) -> None:  # fmt: skip
        self._own = _Prices(Tables(database, routing))
        self._others = [
            _Prices(Tables(Database(database.system, backend, folder=database.folder), routing, own_only=True))
            for backend in BACKENDS
            if kernels == "fastest" and backend != database.backend
        ]
        self._fallback = fallback

    def price(self, operator: Operator) -> Estimate:
        """Seconds of one run of `operator`."""
        if isinstance(operator, Elementwise):
            return self._fallback.price(operator)
        found = self._own.find(operator)
        if found is None:
            return self._fallback.price(operator)
        seconds, measured = found
        if _rows(operator) > CAPTURED_ROWS:
            return Estimate(seconds, self.name, "measured" if measured else "extrapolated")
        for other in self._others:
            rival = other.find(operator)
            if rival is not None and rival[1] and rival[0] < seconds:
                seconds, measured = rival[0], False
        return Estimate(seconds, self.name, "measured" if measured else "extrapolated")


def _rows(operator: Operator) -> int:
    """Tokens that go through it side by side; 0 for what is not counted in tokens."""
    if isinstance(operator, Gemm):
        return operator.rows
    return operator.tokens if isinstance(operator, Experts | PrefillAttention | LatentPrefill) else 0


class _Prices:
    """Seconds from one engine's tables, and whether they are interpolated between its own points of just that shape."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables

    def find(self, operator: Operator) -> tuple[float, bool] | None:
        """None: nothing measured comes near."""
        if isinstance(operator, Gemm):
            return self._gemm(operator)
        if isinstance(operator, DecodeAttention | LatentDecode):
            return self._decode(operator)
        if isinstance(operator, PrefillAttention | LatentPrefill):
            return self._prefill(operator)
        curve = None
        at = 0.0
        if isinstance(operator, Experts):
            curve, at = self._tables.experts(operator), operator.tokens
        elif isinstance(operator, Collective) and operator.nodes == 1:
            curve, at = self._tables.collective(operator.kind, operator.ranks), operator.bytes
        if curve is None:
            return None
        seconds, inside = curve.table.at(at)
        return seconds * curve.factor, inside and curve.exact

    def _gemm(self, operator: Gemm) -> tuple[float, bool] | None:
        products = self._tables.products(operator.dtype)
        if products is None:
            return None
        seconds, inside = products.table.at(operator.rows, operator.columns, operator.inner)
        return seconds * products.factor, inside and products.exact

    def _decode(self, operator: DecodeAttention | LatentDecode) -> tuple[float, bool] | None:
        latent = isinstance(operator, LatentDecode)
        surface = self._tables.latent(operator) if latent else self._tables.decode(operator)  # type: ignore[arg-type]
        if surface is None or not operator.sequences:
            return None
        seconds, inside = surface.table.at(operator.sequences, operator.context / operator.sequences)
        return seconds * surface.factor, inside and surface.exact

    def _prefill(self, operator: PrefillAttention | LatentPrefill) -> tuple[float, bool] | None:
        latent = isinstance(operator, LatentPrefill)
        surface = self._tables.latent(operator) if latent else self._tables.prefill(operator)  # type: ignore[arg-type]
        if surface is None:
            return None
        length: float = operator.tokens
        if operator.past:
            length = max(length, math.sqrt(2.0 * (operator.tokens * operator.past + operator.tokens**2 / 2)))
        seconds, inside = surface.table.at(1, length)
        return seconds * surface.factor, inside and surface.exact and not operator.past
