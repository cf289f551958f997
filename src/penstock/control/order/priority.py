"""Priority with ageing: the lower number first, and whoever waits long enough overtakes.

With effective priority = priority - waited / ageing_s, all waiting requests age at the same rate, so their order never
changes while they wait: the key arrival + priority * ageing_s is fixed and a heap is enough.
"""

from __future__ import annotations

from penstock.control.order.queue import Key, KeyedOrder
from penstock.control.sequence import Sequence


class Priority(KeyedOrder):
    """One level of priority is worth `ageing_s` seconds of waiting: where priorities are bounded, nobody starves."""

    def __init__(self, ageing_s: float) -> None:
        super().__init__()
        self.ageing_s = ageing_s

    def key(self, sequence: Sequence) -> Key:
        return (sequence.arrival + sequence.request.priority * self.ageing_s, sequence.number)
