"""Shortest prompt first, with ageing: short prompts first lower mean TTFT; ageing counters starvation."""

from __future__ import annotations

from typing import Final

from penstock.control.order.queue import Key, KeyedOrder
from penstock.control.sequence import Sequence

TOKENS_PER_AGEING: Final = 1000
"""Waiting `ageing_s` seconds makes up for this many prompt tokens."""


class Shortest(KeyedOrder):
    """By prompt length; the key is fixed for the same reason as in `priority.py`."""

    def __init__(self, ageing_s: float) -> None:
        super().__init__()
        self.ageing_s = ageing_s

    def key(self, sequence: Sequence) -> Key:
        return (sequence.arrival + sequence.prompt_tokens * self.ageing_s / TOKENS_PER_AGEING, sequence.number)
