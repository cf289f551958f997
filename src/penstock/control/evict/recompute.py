"""Recompute: drop the KV, keep the tokens, run them through the model again later (vLLM, Sarathi-Serve).

Costs one prefill of prompt + output; moves no bytes. Blocks that a prefix tree still holds are found again.
"""

from __future__ import annotations

from penstock.control.evict.evict import Evict
from penstock.control.sequence import Sequence


class Recompute(Evict):
    """Never moves anything, so there is never a place to move it to."""

    def take_host(self, sequence: Sequence) -> tuple[int, ...] | None:
        """None: recompute."""
        return None

    def give_back(self, sequence: Sequence) -> None:
        """Nothing was taken."""

    @property
    def free_host_blocks(self) -> int:
        return 0
