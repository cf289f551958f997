"""Stall-free batching: decodes never wait; prefill chunks take what the budget leaves (Sarathi-Serve, OSDI 2024)."""

from __future__ import annotations

from dataclasses import dataclass

from penstock.control.compose.fill import Fill, View


@dataclass(frozen=True, slots=True)
class StallFree:
    """Every decode is in every step; its time is bounded by the token budget, so TPOT is too."""

    token_budget: int
    """Tokens per step, decodes included (the paper's tau: 512 for strict, 2,048 for relaxed SLOs)."""
    decodes_wait: bool = False

    def fills(self, view: View) -> tuple[Fill, ...]:
        return (Fill(decode=True, budget=self.token_budget),)
