"""The seconds of attention in a step, remembered: base of StepPrice.

Decode attention is priced by sequences over a grid of contexts, straight lines between; prefill attention by chunk.
Where the price knows what decode attention takes in one call with a prompt chunk (`beside_chunk`), that counts in mixed
steps, kept over a grid of chunks and contexts too.
"""

from __future__ import annotations

from collections.abc import Callable
from math import log2
from typing import Final

from penstock.twin.known import UNKNOWN, ByCount, Line, Lines, around
from penstock.twin.operators import DecodeAttention, Operator
from penstock.twin.price import Estimate, OperatorPrice
from penstock.twin.step_graph import Placed, StepGraph
from penstock.twin.twin import Pricing

PREFILL_GRAIN: Final = 16
"""Longer chunks are priced in tiles of so many tokens, as attention kernels compute them; below FINE_TOKENS exactly."""
FINE_TOKENS: Final = 64
SPREAD_GRAIN: Final = 0.1
_MEMORY: Final = 200_000
"""Priced chunks kept before the oldest half is forgotten."""


class AttentionPrice(Pricing):
    """Of one replica, a graph under its layout, by a price of operators."""

    def __init__(self, graph: StepGraph, price: OperatorPrice) -> None:
        self.graph, self.price = graph, price
        self._micro_batches = graph.layout.pipeline_parallel
        self._uses_spread = bool(getattr(price, "uses_spread", False))
        self._beside: Callable[[DecodeAttention, int], float | None] | None = getattr(price, "beside_chunk", None)
        self._lines: dict[tuple[int, int], Lines] = {}
        self._lines_now: dict[int, Line] = {}
        """By decoding sequences: the line used last, contexts all alike."""
        self._first = ByCount()
        """Chunks that begin a prompt, by tokens."""
        self._chunks: dict[tuple[int, int], float] = {}
        """Those that go on: by tokens before, and tokens."""
        self._mixed: dict[tuple[int, int, float], Line] = {}
        """By decoding sequences, size of the chunk and start of the context's line: what decode attention takes more
        in one call with such a chunk."""

    @property
    def uses_spread(self) -> bool:
        """Whether it wants to know how uneven contexts are."""
        return self._uses_spread

    def line(self, decoding: int, context: int, bucket: int = 0) -> Line:
        """Seconds of decode attention near `context` (this step's tokens included)."""
        lines = self._lines.get((decoding, bucket))
        if lines is None:
            lines = self._lines[decoding, bucket] = Lines()
        found = lines.find(context)
        if found is not None:
            if not bucket:
                self._lines_now[decoding] = found
            return found
        low, high = around(context / decoding)
        first, last = decoding * low, decoding * high
        spread = bucket * SPREAD_GRAIN
        below, above = (self._decode(decoding, round(end), spread) for end in (first, last))
        if context < first:  # a context below one token per sequence: priced as one token
            return Line(0.0, first, below, 0.0)
        line = Line(first, last, below, (above - below) / (last - first))
        lines.add(line)
        if not bucket:
            self._lines_now[decoding] = line
        return line

    def _decode(self, decoding: int, context: int, spread: float) -> float:
        return self._sum(self.graph.decode(self._micro(decoding), self._micro(context), spread))

    def _chunk(self, past: int, tokens: int) -> float:
        if tokens > FINE_TOKENS:
            tokens = -(-tokens // PREFILL_GRAIN) * PREFILL_GRAIN
        if not past:
            seconds = self._first.get(tokens)
            if seconds == UNKNOWN:
                seconds = self._first.put(tokens, self._sum(self.graph.prefill((self._piece(0, tokens),))))
            return seconds
        if past > FINE_TOKENS:
            past = -(-past // PREFILL_GRAIN) * PREFILL_GRAIN
        found = self._chunks.get((past, tokens))
        if found is None:
            if len(self._chunks) >= _MEMORY:
                for key in list(self._chunks)[: _MEMORY // 2]:
                    del self._chunks[key]
            found = self._chunks[past, tokens] = self._sum(self.graph.prefill((self._piece(past, tokens),)))
        return found

    def _more_beside(self, decoding: int, context: int, chunk: int) -> float:
        """What decode attention takes more because it shares its call with a chunk."""
        size = round(2.0 * log2(chunk))
        low, high = around(context / decoding)
        line = self._mixed.get((decoding, size, low))
        if line is None:
            first, last = decoding * low, decoding * high
            below, above = (self._more(decoding, round(end), round(2.0 ** (size / 2))) for end in (first, last))
            line = self._mixed[decoding, size, low] = Line(first, last, below, (above - below) / (last - first))
        return line.at(context)

    def _more(self, decoding: int, context: int, chunk: int) -> float:
        chunk = self._micro(chunk)
        placed = self.graph.decode(self._micro(decoding), self._micro(context))
        return sum(
            times * (self._estimate(operator, chunk).seconds - self.price.price(operator).seconds)
            for operator, times in placed
        )

    def _estimate(self, operator: Operator, chunk: int) -> Estimate:
        """Of an operator in a step with so many prompt tokens."""
        alone = self.price.price(operator)
        if not chunk or self._beside is None or not isinstance(operator, DecodeAttention):
            return alone
        beside = self._beside(operator, chunk)
        return alone if beside is None else Estimate(beside, alone.model, alone.basis)

    def _bucket(self, decoding: int, context: int, squares: int) -> int:
        """How uneven the contexts are, in tenths of their mean; only where the price looks at it."""
        if not self._uses_spread or decoding < 2:
            return 0
        mean = context / decoding
        variance = squares / decoding - mean * mean
        return round(max(0.0, variance) ** 0.5 / mean / SPREAD_GRAIN) if mean else 0

    def _micro(self, count: int) -> int:
        """A pipeline keeps as many micro-batches under way as it has stages: a step takes as long as one of them takes
        through all stages, since in the steady state the others fill them meanwhile."""
        return -(-count // self._micro_batches)

    def _piece(self, past: int, tokens: int) -> tuple[int, int]:
        """The mean piece of a chunk that a pipeline's micro-batches share: later ones see what earlier ones made, so
        that all together have the query-key pairs of the whole."""
        piece = self._micro(tokens)
        return past + (tokens - piece) // 2, piece

    def _sum(self, placed: list[Placed]) -> float:
        return sum(self.price.price(operator).seconds * times for operator, times in placed)
