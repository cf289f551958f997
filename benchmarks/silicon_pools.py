"""Prefill and decode on workers of their own, under the same closed loop.

Prompts wait for the first free prefill worker, which takes as many as its budget holds; their KV goes over, and they
join the decode workers as soon as one has a place, which is when their first token is sent. Decode workers are alike
and take turns: each holds its share of the sequences and of the contexts.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from silicon_loop import ClosedLoop, Costs, Rules, Steps, Timing


class Pools(ClosedLoop):
    """One run of a disaggregated deployment.

    Args:
        prefill, prefill_rules: price and rules of one prefill worker, of which there are `prefill_workers`.
        decode, decode_workers: the same for decode.
        transfer_s: of one prompt token's KV from worker to worker.
        places: most sequences of all decode workers together.
    """

    def __init__(
        self, prefill: Steps, prefill_rules: Rules, prefill_workers: int, decode: Steps, decode_workers: int,
        costs: Costs, concurrency: int, lengths: Sequence[tuple[int, int]], transfer_s: float,
        places: int,
    ) -> None:  # fmt: skip
        super().__init__(decode, prefill_rules, costs, float("inf"), concurrency, lengths)
        self.prefill, self.shares, self.transfer_s, self.places = prefill, decode_workers, transfer_s, places
        self.free = [0.0] * prefill_workers
        """When each prefill worker is free, as a heap."""
        self.joining: list[tuple[float, int]] = []

    def run(self) -> list[Timing]:
        """Until every request has ended."""
        while len(self.timings) < len(self.lengths):
            self._prefill_up_to(self.now)
            while self.joining and self.joining[0][0] <= self.now and self.active < self.places:
                self._join(heapq.heappop(self.joining)[1])
            if self.active:
                self._decode()
            else:
                ahead = [self.joining[0][0]] if self.joining else []
                if self.coming:
                    ahead.append(max(self.coming[0][0], self.free[0]))
                self.now = max(self.now, min(ahead))
        return self.timings

    # -- inside -------------------------------------------------------------------------------------------------

    def _prefill_up_to(self, now: float) -> None:
        """Start every batch of prompts that starts by now."""
        while self.coming:
            start = max(self.coming[0][0], self.free[0])
            if start > now:
                return
            budget, chunks, taken = self.rules.budget * self.rules.groups, [], []
            while self.coming and self.coming[0][0] <= start:
                prompt = self.lengths[self.coming[0][1]][0]
                if chunks and prompt > budget:
                    break
                budget -= prompt
                taken.append(heapq.heappop(self.coming)[1])
                chunks.append((0, prompt))
            price, self.price = self.price, self.prefill
            seconds = self._seconds(chunks, 0, len(taken)) * self.costs.prompt
            self.price = price
            end = start + max(seconds, self.costs.launch_s * self.launches) + self.costs.step_s
            heapq.heapreplace(self.free, end)
            for index in taken:
                heapq.heappush(self.joining, (end + self.transfer_s * self.lengths[index][0], index))

    def _join(self, index: int) -> None:
        prompt, output = self.lengths[index]
        self.first_time[index] = self.now
        if output <= 1:
            self._finish(index)
            return
        self.active += 1
        self.context += prompt
        heapq.heappush(self.due, (self.clock + output - 1, index))

    def _decode(self) -> None:
        """Decode steps until somebody ends or joins."""
        price, costs, active = self.price, self.costs, self.active
        each, context = -(-active // self.shares), self.context // self.shares
        line = price.line(each, context + each)
        start, stop, base, slope = line.start, line.stop, line.base, line.slope
        steps = min(self.due[0][0] - self.clock, max(1, int((stop - context) // each)))
        fixed = (price.base(each, 0, each) + base) * costs.device + costs.step_s + costs.request_s * each
        slope *= costs.device
        one = fixed + slope * (context + each - start)
        soonest = [self.joining[0][0]] if self.joining and active < self.places else []
        if self.coming:
            soonest.append(max(self.coming[0][0], self.free[0]))
        if soonest:
            steps = min(steps, max(1, -int(-(min(soonest) - self.now) // one)))
        self.now += steps * fixed + slope * (steps * (context - start) + each * steps * (steps + 1) // 2)
        self.steps += steps
        self._tick(steps)
