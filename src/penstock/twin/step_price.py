"""The seconds of a step from its graph and a price of operators, in O(chunks) and mostly from memory (Contract 5).

Each part of the graph is priced once per value it depends on: rows by token count, the head by sampled rows, decode
attention by sequences and a grid of contexts (straight lines between), prefill attention by chunk. So a million steps
cost a few thousand prices. `explain` prices the same step operator by operator, uncached, with what each rests on.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from typing import Final, Protocol

from penstock.twin.host import HostTime
from penstock.twin.load import StepLoad
from penstock.twin.operators import Elementwise, Work
from penstock.twin.price import Estimate, OperatorPrice
from penstock.twin.step_estimate import StepEstimate
from penstock.twin.step_graph import Placed, StepGraph

CUDA_GRAPH_SIZES: Final = (1, 2, 4, *range(8, 513, 8))
"""Batch sizes for which engines capture CUDA graphs (vLLM's default list); a decode batch is padded up to the next."""
CONTEXT_RATIO: Final = 1.125
"""Decode attention is priced at contexts this far apart and interpolated: costs are straight or gently bent, and the
error of the chord of a parabola over such a step is below 0.4 %."""
PREFILL_GRAIN: Final = 16
"""Longer chunks are priced in tiles of so many tokens, as attention kernels compute them; below FINE_TOKENS exactly."""
FINE_TOKENS: Final = 64
SPREAD_GRAIN: Final = 0.1
_MEMORY: Final = 200_000
"""Priced chunks kept before the oldest half is forgotten."""


class Power(Protocol):
    """Energy of one device (twin/energy.py)."""

    def joules(self, seconds: float, work: Work) -> float:
        """While it does `work` in `seconds`, idle power included."""


class StepPrice:
    """Prices steps of one replica.

    Args:
        graph: the model under its layout.
        price: of single operators.
        host: time between steps.
        swap_block_bytes: bytes of one KV block on one device, for swaps over the host link.
        graph_sizes: decode-only batches are padded to the next of these; empty: never.
        power: for energy; None: not priced.
    """

    def __init__(
        self, graph: StepGraph, price: OperatorPrice, host: HostTime, *, swap_block_bytes: float = 0.0,
        graph_sizes: Iterable[int] = (), power: Power | None = None,
    ) -> None:  # fmt: skip
        self.graph, self.price, self.host, self.power = graph, price, host, power
        self._step_s, self._request_s, self._token_s = host.step_s, host.request_s, host.token_s
        self._overlapped = host.overlapped
        self._swap_block_bytes = swap_block_bytes
        sizes = sorted(graph_sizes)
        self._pad = [sizes[bisect.bisect_left(sizes, count)] for count in range(sizes[-1] + 1)] if sizes else []
        """Decoding sequences to rows of the graph that is run."""
        self._micro_batches = graph.layout.pipeline_parallel
        self._groups = graph.layout.attention_dp
        self._uses_spread = bool(getattr(price, "uses_spread", False))
        self._rows: dict[int, float] = {}
        self._head: dict[int, float] = {}
        self._lines: dict[tuple[int, int], list[tuple[float, float, float, float]]] = {}
        self._lines_now: dict[int, tuple[float, float, float, float]] = {}
        """By decoding sequences: the line used last, contexts all alike."""
        self._chunks: dict[tuple[int, int], float] = {}

    # -- fast -------------------------------------------------------------------------------------------------------

    def seconds(self, load: StepLoad) -> float:
        """Seconds of a step."""
        chunks, decoding = load.chunks, load.decoding
        prompt = 0
        attention = 0.0
        if chunks:
            for _, tokens in chunks:
                prompt += tokens
            for past, tokens in chunks if self._groups == 1 else self.graph.busiest(chunks):
                attention += self._chunk(past, tokens)
        if decoding:
            context = load.decode_context
            bucket = self._bucket(decoding, context, load.decode_context_squares) if self._uses_spread else 0
            context += decoding
            line = self._lines_now.get(decoding)
            if line is None or bucket or not line[0] <= context < line[1]:
                line = self.line(decoding, context, bucket)
            attention += line[2] + line[3] * (context - line[0])
        device = self.base(decoding, prompt, load.sampled) + attention
        if load.swap_in_blocks or load.swap_out_blocks:
            device += self._swap(load)
        return self.with_host(device, decoding + len(chunks), prompt)

    def decode_ends(
        self, decoding: int, context: int, squares: int, now: float, most: int, until: float
    ) -> list[float]:
        """Ends of consecutive decode-only steps, the first of them beginning at `now`; no step begins at or after
        `until`. The same seconds as `seconds`, addition for addition."""
        fixed = self.base(decoding, 0, decoding)
        ends: list[float] = []
        start, stop, base, slope = self._lines_now.get(decoding, (0.0, 0.0, 0.0, 0.0))
        bucket = 0
        for _ in range(most):
            if self._uses_spread:
                bucket = self._bucket(decoding, context, squares)
                squares += 2 * context + decoding
                stop = 0.0
            context += decoding
            if not start <= context < stop:
                start, stop, base, slope = self.line(decoding, context, bucket)
            now += self.with_host(fixed + (base + slope * (context - start)), decoding, 0)
            ends.append(now)
            if now >= until:
                break
        return ends

    def with_host(self, device_s: float, sequences: int, prompt_tokens: int) -> float:
        """Device and host together: one after the other, or the longer of the two."""
        host = self._step_s + self._request_s * sequences + self._token_s * prompt_tokens
        if not self._overlapped:
            return device_s + host
        return device_s if device_s >= host else host

    def base(self, decoding: int, prompt: int, sampled: int) -> float:
        """The parts that know no context: rows and head."""
        tokens = decoding + prompt
        if decoding and not prompt and self._pad:
            tokens = sampled = self._padded(decoding)
        rows = self._rows.get(tokens)
        if rows is None:
            rows = self._rows[tokens] = self._sum(self.graph.rows(self._micro(tokens)))
        head = self._head.get(sampled)
        if head is None:
            head = self._head[sampled] = self._sum(self.graph.head(self._micro(sampled)))
        return rows + head

    def line(self, decoding: int, context: int, bucket: int = 0) -> tuple[float, float, float, float]:
        """Decode attention near `context` (this step's tokens included) as (from, to, seconds at from, slope)."""
        lines = self._lines.get((decoding, bucket))
        if lines is None:
            lines = self._lines[decoding, bucket] = []
        at = bisect.bisect_right(lines, (context, float("inf")))
        if at and lines[at - 1][0] <= context < lines[at - 1][1]:
            if not bucket:
                self._lines_now[decoding] = lines[at - 1]
            return lines[at - 1]
        # Grid of mean contexts 1, 2, 3, ... and from 8 on, geometric.
        mean = max(1.0, context / decoding)
        low = float(int(mean)) if mean < 8 else 8.0
        high = low + 1
        while low >= 8 and low * CONTEXT_RATIO <= mean:
            low *= CONTEXT_RATIO
        if low >= 8:
            high = low * CONTEXT_RATIO
        first, last = decoding * low, decoding * high
        spread = bucket * SPREAD_GRAIN
        below, above = (self._decode(decoding, round(end), spread) for end in (first, last))
        line = (first, last, below, (above - below) / (last - first))
        if context < first:  # a context below one token per sequence: priced as one token
            return (0.0, first, below, 0.0)
        bisect.insort(lines, line)
        if not bucket:
            self._lines_now[decoding] = line
        return line

    # -- slow, and explained ----------------------------------------------------------------------------------------

    def explain(self, load: StepLoad) -> StepEstimate:
        """The same step operator by operator. Agrees with `seconds` up to the grids above."""
        estimate = StepEstimate()
        prompt = sum(tokens for _, tokens in load.chunks)
        padded = self._padded(load.decoding) if load.decoding and not prompt and self._pad else 0
        micro = self._micro
        spread = self._bucket(load.decoding, load.decode_context, load.decode_context_squares)
        placed = [
            *self.graph.rows(micro(padded or load.tokens)),
            *self.graph.head(micro(padded or load.sampled)),
            *self.graph.decode(micro(load.decoding), micro(load.decode_context + load.decoding), spread * SPREAD_GRAIN),
            *self.graph.prefill([self._piece(past, tokens) for past, tokens in load.chunks]),
        ]
        if blocks := load.swap_in_blocks + load.swap_out_blocks:
            placed.append(Placed(self._copy(blocks), 1))
        flop = read = written = link = 0.0
        for operator, times in placed:
            one = self.price.price(operator)
            estimate.add(operator.kind, one, times)
            work = operator.work()
            flop, link = flop + times * work.flop, link + times * work.link_bytes
            read, written = read + times * work.read_bytes, written + times * work.written_bytes
        estimate.work = Work(flop, read, written, link)
        device = estimate.seconds
        total = self.with_host(device, load.decoding + len(load.chunks), prompt)
        estimate.add("host", Estimate(total - device, "host", self.host.basis), 1)
        if self.power is not None:
            estimate.joules = self.graph.layout.devices * self.power.joules(total, estimate.work)
        return estimate

    @property
    def uses_spread(self) -> bool:
        """Whether it wants to know how uneven contexts are."""
        return self._uses_spread

    # -- inside -----------------------------------------------------------------------------------------------------

    def _sum(self, placed: list[Placed]) -> float:
        return sum(self.price.price(operator).seconds * times for operator, times in placed)

    def _micro(self, count: int) -> int:
        """A pipeline keeps as many micro-batches under way as it has stages: a step takes as long as one of them takes
        through all stages, since in the steady state the others fill them meanwhile."""
        return -(-count // self._micro_batches)

    def _piece(self, past: int, tokens: int) -> tuple[int, int]:
        """The mean piece of a chunk that a pipeline's micro-batches share: later ones see what earlier ones made, so
        that all together have the query-key pairs of the whole."""
        piece = self._micro(tokens)
        return past + (tokens - piece) // 2, piece

    def _padded(self, decoding: int) -> int:
        return self._pad[decoding] if decoding < len(self._pad) else decoding

    def _bucket(self, decoding: int, context: int, squares: int) -> int:
        """How uneven the contexts are, in tenths of their mean; only where the price looks at it."""
        if not self._uses_spread or decoding < 2:
            return 0
        mean = context / decoding
        variance = squares / decoding - mean * mean
        return round(max(0.0, variance) ** 0.5 / mean / SPREAD_GRAIN) if mean else 0

    def _decode(self, decoding: int, context: int, spread: float) -> float:
        return self._sum(self.graph.decode(self._micro(decoding), self._micro(context), spread))

    def _chunk(self, past: int, tokens: int) -> float:
        if tokens > FINE_TOKENS:
            tokens = -(-tokens // PREFILL_GRAIN) * PREFILL_GRAIN
        if past > FINE_TOKENS:
            past = -(-past // PREFILL_GRAIN) * PREFILL_GRAIN
        seconds = self._chunks.get((past, tokens))
        if seconds is None:
            if len(self._chunks) >= _MEMORY:
                for key in list(self._chunks)[: _MEMORY // 2]:
                    del self._chunks[key]
            seconds = self._chunks[past, tokens] = self._sum(self.graph.prefill((self._piece(past, tokens),)))
        return seconds

    def _swap(self, load: StepLoad) -> float:
        return self.price.price(self._copy(load.swap_in_blocks + load.swap_out_blocks)).seconds

    def _copy(self, blocks: int) -> Elementwise:
        return Elementwise("swap", blocks * self._swap_block_bytes, blocks * self._swap_block_bytes)
