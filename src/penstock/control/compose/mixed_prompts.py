"""Iteration-level batching: whole prompts run beside decodes (Orca, OSDI 2022). One long prompt stalls every decode."""

from __future__ import annotations

from dataclasses import dataclass

from penstock.control.compose.fill import Fill, View


@dataclass(frozen=True, slots=True)
class MixedPrompts:
    """Prompts are never cut."""

    token_budget: int
    decodes_wait: bool = False

    def fills(self, view: View) -> tuple[Fill, ...]:
        return (Fill(decode=True, budget=self.token_budget, split=False),)
