"""Iteration-level batching: whole prompts run beside decodes (Orca, OSDI 2022). One long prompt stalls every decode."""

from __future__ import annotations

from penstock.control.compose.fill import Compose, Fill, View


class MixedPrompts(Compose):
    """Prompts are never cut."""

    def __init__(self, token_budget: int) -> None:
        self._fills = (Fill(decode=True, budget=token_budget, split=False),)

    def fills(self, view: View) -> tuple[Fill, ...]:
        return self._fills
