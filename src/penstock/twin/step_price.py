"""The seconds of a step from its graph and a price of operators, in O(chunks) and mostly from memory (Contract 5).

Each part of the graph is priced once per value it depends on: rows by token count, the head by sampled rows, attention
as attention_price.py says. So a million steps cost a few thousand prices.
`explain` prices the same step operator by operator, uncached, with what each rests on.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from typing import Final, Protocol

from penstock.twin.attention_price import SPREAD_GRAIN, AttentionPrice
from penstock.twin.host import HostTime
from penstock.twin.known import NO_LINE, UNKNOWN, ByCount
from penstock.twin.load import StepLoad
from penstock.twin.operators import Elementwise, Work
from penstock.twin.price import Estimate, OperatorPrice
from penstock.twin.step_estimate import StepEstimate
from penstock.twin.step_graph import Placed, StepGraph

CUDA_GRAPH_SIZES: Final = (1, 2, 4, *range(8, 513, 8))
"""Batch sizes for which engines capture CUDA graphs (vLLM's default list); a decode batch is padded up to the next."""


class Power(Protocol):
    """Energy of one device (twin/energy.py)."""

    def joules(self, seconds: float, work: Work) -> float:
        """While it does `work` in `seconds`, idle power included."""


class StepPrice(AttentionPrice):
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
        super().__init__(graph, price)
        self.host, self.power = host, power
        self._step_s, self._request_s, self._token_s = host.step_s, host.request_s, host.token_s
        self._few_s, self._few = host.first_request_s, host.first_requests
        self._overlapped = host.overlapped
        self._swap_block_bytes = swap_block_bytes
        sizes = sorted(graph_sizes)
        self._pad = [sizes[bisect.bisect_left(sizes, count)] for count in range(sizes[-1] + 1)] if sizes else []
        """Decoding sequences to rows of the graph that is run."""
        self._groups = graph.layout.attention_dp
        self._rows = ByCount()
        """By tokens of the step; with attention groups, by those of the group that has most."""
        self._joint = ByCount()
        """With attention groups: what they do together, by tokens of the step."""
        self._head = ByCount()

    # -- fast -------------------------------------------------------------------------------------------------------

    def seconds(self, load: StepLoad) -> float:
        """Seconds of a step."""
        chunks, decoding = load.chunks, load.decoding
        prompt = most = 0
        attention = 0.0
        if chunks:
            for _, tokens in chunks:
                prompt += tokens
            for past, tokens in chunks if self._groups == 1 else self.graph.busiest(chunks):
                most += tokens
                attention += self._chunk(past, tokens)
        if decoding:
            context = load.decode_context
            bucket = self._bucket(decoding, context, load.decode_context_squares) if self._uses_spread else 0
            context += decoding
            line = self._lines_now.get(decoding)
            if line is None or bucket or not line.start <= context < line.stop:
                line = self.line(decoding, context, bucket)
            attention += line.at(context)
            if most and self._beside is not None:
                attention += self._more_beside(decoding, context, most)
        device = self.base(decoding, prompt, load.sampled, most) + attention
        if load.swap_in_blocks or load.swap_out_blocks:
            device += self._swap(load)
        return self.with_host(device, decoding + len(chunks), prompt)

    def lockstep(self, loads: Sequence[StepLoad]) -> float:
        """Seconds of a step that attention groups take together, each with its own load (data-parallel ranks with a
        scheduler each). Every layer's experts wait for the group that has most to do. Host time is the largest."""
        attention = host = swap = 0.0
        for load in loads:
            attention = max(attention, self._own_attention(load))
            host = max(host, self._host(load))
            if load.swap_in_blocks or load.swap_out_blocks:
                swap = max(swap, self._swap(load))
        total, local, sampled = self._together(loads)
        device = self._grouped_rows(total, local) + attention + swap
        device += self._head_of(sampled)
        return max(device, host) if self._overlapped else device + host

    def lockstep_ends(self, loads: list[StepLoad], now: float, most: int, until: float) -> list[float]:
        """As `decode_ends`, of groups in lockstep that only decode, or rest. The loads are used up."""
        ends: list[float] = []
        for _ in range(most):
            now += self.lockstep(loads)
            ends.append(now)
            if now >= until:
                break
            for load in loads:
                decoding, context = load.decoding, load.decode_context
                load.decode_context_squares += 2 * context + decoding
                load.decode_context = context + decoding
        return ends

    def _own_attention(self, load: StepLoad) -> float:
        """Seconds of attention of one group with this load of its own. The graph shares what it is given out to all
        groups, hence so many times the decodes."""
        groups, prompt, own = self._groups, 0, 0.0
        for past, tokens in load.chunks:
            prompt += tokens
            own += self._chunk(past, tokens)
        if load.decoding:
            decoding = groups * load.decoding
            context = groups * (load.decode_context + load.decoding)
            bucket = self._bucket(load.decoding, load.decode_context, load.decode_context_squares)
            line = self.line(decoding, context, bucket)
            own += line.at(context)
            if prompt and self._beside is not None:
                own += self._more_beside(decoding, context, prompt)
        return own

    def _together(self, loads: Sequence[StepLoad]) -> tuple[int, int, int]:
        """Rows of all groups, of the one that has most, and sampled ones; padding included."""
        local = total = sampled = 0
        mixed = False
        for load in loads:
            rows = load.tokens
            local, total = max(local, rows), total + rows
            sampled, mixed = max(sampled, load.sampled), mixed or rows > load.decoding
        if self._pad and 0 < local < len(self._pad):
            local = self._pad[local]
            total, sampled = self._groups * local, sampled if mixed else local
        return total, local, self._groups * sampled

    def _host(self, load: StepLoad) -> float:
        prompt = load.tokens - load.decoding
        return self.with_host(0.0, load.decoding + len(load.chunks), prompt)

    def decode_ends(
        self, decoding: int, context: int, squares: int, now: float, most: int, until: float
    ) -> list[float]:
        """Ends of consecutive decode-only steps, the first of them beginning at `now`; no step begins at or after
        `until`. The same seconds as `seconds`, addition for addition."""
        fixed = self.base(decoding, 0, decoding)
        ends: list[float] = []
        line = self._lines_now.get(decoding, NO_LINE)
        start, stop, base, slope = line.start, line.stop, line.base, line.slope
        bucket = 0
        for _ in range(most):
            if self._uses_spread:
                bucket = self._bucket(decoding, context, squares)
                squares += 2 * context + decoding
                stop = 0.0
            context += decoding
            if not start <= context < stop:
                line = self.line(decoding, context, bucket)
                start, stop, base, slope = line.start, line.stop, line.base, line.slope
            now += self.with_host(fixed + (base + slope * (context - start)), decoding, 0)
            ends.append(now)
            if now >= until:
                break
        return ends

    def with_host(self, device_s: float, sequences: int, prompt_tokens: int) -> float:
        """Device and host together: one after the other, or the longer of the two."""
        few = sequences if sequences <= self._few else self._few
        host = self._step_s + self._request_s * sequences + self._few_s * few + self._token_s * prompt_tokens
        if not self._overlapped:
            return device_s + host
        return device_s if device_s >= host else host

    def base(self, decoding: int, prompt: int, sampled: int, most: int = 0) -> float:
        """The parts that know no context: rows and head. `most`: prompt tokens of the attention group that has most."""
        tokens = decoding + prompt
        if self._groups > 1:
            tokens, local = self._grouped(decoding, prompt, most)
            rows = self._grouped_rows(tokens, local)
            if decoding and not prompt:
                sampled = tokens
        else:
            if decoding and not prompt and self._pad:
                tokens = sampled = self._padded(decoding)
            rows = self._rows.get(tokens)
            if rows == UNKNOWN:
                rows = self._rows.put(tokens, self._sum(self.graph.rows(self._micro(tokens))))
        return rows + self._head_of(sampled)

    def _head_of(self, sampled: int) -> float:
        seconds = self._head.get(sampled)
        if seconds == UNKNOWN:
            seconds = self._head.put(sampled, self._sum(self.graph.head(self._micro(sampled))))
        return seconds

    # -- slow, and explained ----------------------------------------------------------------------------------------

    def explain(self, load: StepLoad) -> StepEstimate:
        """The same step operator by operator. Agrees with `seconds` up to the grids above."""
        prompt = sum(tokens for _, tokens in load.chunks)
        most = sum(tokens for _, tokens in self.graph.busiest(load.chunks))
        tokens, local = self._grouped(load.decoding, prompt, most)
        sampled = tokens if load.decoding and not prompt else load.sampled
        micro = self._micro
        spread = self._bucket(load.decoding, load.decode_context, load.decode_context_squares)
        placed = [
            *self.graph.rows(micro(tokens), micro(local)),
            *self.graph.head(micro(sampled)),
            *self.graph.decode(micro(load.decoding), micro(load.decode_context + load.decoding), spread * SPREAD_GRAIN),
            *self.graph.prefill([self._piece(past, tokens) for past, tokens in load.chunks]),
        ]
        return self._explained(placed, load, micro(most), self._host(load))

    def explain_lockstep(self, loads: Sequence[StepLoad]) -> StepEstimate:
        """A step of groups in lockstep, operator by operator: attention is that of the group that takes longest.
        Agrees with `lockstep` up to the grids above."""
        micro, groups = self._micro, self._groups
        longest = max(loads, key=self._own_attention)
        total, local, sampled = self._together(loads)
        spread = self._bucket(longest.decoding, longest.decode_context, longest.decode_context_squares)
        decoding, context = groups * longest.decoding, groups * (longest.decode_context + longest.decoding)
        placed = [
            *self.graph.rows(micro(total), micro(local)),
            *self.graph.head(micro(sampled)),
            *self.graph.decode(micro(decoding), micro(context), spread * SPREAD_GRAIN),
        ]
        for past, tokens in longest.chunks:
            placed += self.graph.prefill((self._piece(past, tokens),))
        swapped = max(loads, key=_swapped)
        host = max(self._host(load) for load in loads)
        return self._explained(placed, swapped, micro(longest.tokens - longest.decoding), host)

    def _explained(self, placed: list[Placed], swapped: StepLoad, beside: int, host: float) -> StepEstimate:
        """With `host` seconds of host time. `beside`: prompt tokens that decode attention shares its call with."""
        estimate = StepEstimate()
        if blocks := _swapped(swapped):
            placed.append(Placed(self._copy(blocks), 1))
        flop = read = written = link = 0.0
        for operator, times in placed:
            one = self._estimate(operator, beside)
            estimate.add(operator.kind, one, times)
            work = operator.work()
            flop, link = flop + times * work.flop, link + times * work.link_bytes
            read, written = read + times * work.read_bytes, written + times * work.written_bytes
        estimate.work = Work(flop, read, written, link)
        device = estimate.seconds
        total = max(device, host) if self._overlapped else device + host
        estimate.add("host", Estimate(total - device, "host", self.host.basis), 1)
        if self.power is not None:
            estimate.joules = self.graph.layout.devices * self.power.joules(total, estimate.work)
        return estimate

    # -- inside -----------------------------------------------------------------------------------------------------

    def _grouped(self, decoding: int, prompt: int, most: int) -> tuple[int, int]:
        """Rows of a step, and of the attention group that has most of them, padding included.

        Groups go through a captured graph together: all run the size that the largest of them needs. Beyond the
        largest graph each has the rows it has (vLLM's coordinate_batch_across_dp)."""
        groups = self._groups
        if groups == 1:
            tokens = decoding + prompt if prompt or not self._pad else self._padded(decoding)
            return tokens, tokens
        local = -(-decoding // groups) + most
        if not self._pad or local >= len(self._pad):
            return decoding + prompt, local
        return groups * self._pad[local], self._pad[local]

    def _grouped_rows(self, tokens: int, local: int) -> float:
        rows, joint = self._rows.get(local), self._joint.get(tokens)
        if rows == UNKNOWN:
            rows = self._rows.put(local, self._sum(self.graph.local_rows(self._micro(local))))
        if joint == UNKNOWN:
            joint = self._joint.put(tokens, self._sum(self.graph.joint_rows(self._micro(tokens))))
        return rows + joint

    def _padded(self, decoding: int) -> int:
        return self._pad[decoding] if decoding < len(self._pad) else decoding

    def _swap(self, load: StepLoad) -> float:
        return self.price.price(self._copy(load.swap_in_blocks + load.swap_out_blocks)).seconds

    def _copy(self, blocks: int) -> Elementwise:
        return Elementwise("swap", blocks * self._swap_block_bytes, blocks * self._swap_block_bytes)


def _swapped(load: StepLoad) -> int:
    return load.swap_in_blocks + load.swap_out_blocks
