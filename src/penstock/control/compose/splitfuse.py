"""Dynamic SplitFuse: every step has the same number of tokens (DeepSpeed-FastGen, arXiv 2401.08671).

Throughput is concave in the tokens of a pass, so even passes beat uneven ones: decodes first, then prompts, the last
one cut so that the budget is filled exactly. Differs from stall-free batching where memory is short: a decode without a
block waits instead of evicting another, and only when nothing at all can run is the newest sequence flushed.
"""

from __future__ import annotations

from penstock.control.compose.fill import Compose, Fill, View


class SplitFuse(Compose):
    """A constant budget at the knee of the throughput curve."""

    decodes_wait = True

    def __init__(self, token_budget: int) -> None:
        self._fills = (Fill(decode=True, budget=token_budget),)

    def fills(self, view: View) -> tuple[Fill, ...]:
        return self._fills
