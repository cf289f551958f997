"""Prices from operator databases: what an engine's own kernels took on the GPU in question."""

from __future__ import annotations

import math

from penstock.twin.measured.database import Database
from penstock.twin.measured.tables import ROUTING, Tables
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
from penstock.twin.price import Estimate, OperatorPrice


class Measured:
    """Interpolates measured operators; what was not measured goes to `fallback`, whose estimate says what it rests on.

    Norms, activations, copies and the sampler are in no database: they are always the fallback's. A chunk over cached
    tokens costs what a prompt with as many query-key pairs does, since prompts were measured from their start only.

    Args:
        database: the GPU system and the engine.
        fallback: price of all other operators, usually the roofline of the same device.
        routing: how tokens fall on experts: balanced, power_law_1.01 or power_law_1.2.
    """

    name = "measured"

    def __init__(self, database: Database, fallback: OperatorPrice, *, routing: str = ROUTING) -> None:
        self._tables = Tables(database, routing)
        self._fallback = fallback

    def price(self, operator: Operator) -> Estimate:
        """Seconds of one run of `operator`."""
        found: tuple[float, bool] | None = None
        if isinstance(operator, Gemm):
            found = self._gemm(operator)
        elif isinstance(operator, DecodeAttention | LatentDecode):
            found = self._decode(operator)
        elif isinstance(operator, PrefillAttention | LatentPrefill):
            found = self._prefill(operator)
        elif isinstance(operator, Experts):
            curve = self._tables.experts(operator)
            if curve is not None:
                seconds, inside = curve.table.at(operator.tokens)
                found = seconds * curve.factor, inside and curve.exact
        elif isinstance(operator, Collective) and operator.nodes == 1:
            curve = self._tables.collective(operator.kind, operator.ranks)
            if curve is not None:
                seconds, inside = curve.table.at(operator.bytes)
                found = seconds * curve.factor, inside and curve.exact
        if found is None:
            return self._fallback.price(operator)
        return Estimate(found[0], self.name, "measured" if found[1] else "extrapolated")

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
