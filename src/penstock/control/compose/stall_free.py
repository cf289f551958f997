"""Stall-free batching: decodes never wait; prefill chunks take what the budget leaves (Sarathi-Serve, OSDI 2024)."""

from __future__ import annotations

from penstock.control.compose.fill import Compose, Fill, View


class StallFree(Compose):
    """Every decode is in every step; its time is bounded by the token budget, so TPOT is too."""

    def __init__(self, token_budget: int) -> None:
        """`token_budget`: tokens per step, decodes included (the paper's tau: 512 for strict, 2,048 for relaxed
        SLOs)."""
        self._fills = self.fixed = (Fill(decode=True, budget=token_budget),)

    def fills(self, view: View) -> tuple[Fill, ...]:
        return self._fills
