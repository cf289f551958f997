"""Prefill first: if any waiting prompt fits, a step of prompts alone; else a step of decodes (vLLM of 2023).

Good for throughput and time to first token, and the cause of generation stalls: decodes rest while prompts come in.
"""

from __future__ import annotations

from dataclasses import dataclass

from penstock.control.compose.fill import Fill, View


@dataclass(frozen=True, slots=True)
class PrefillFirst:
    """`token_budget` is that vLLM's max_num_batched_tokens."""

    token_budget: int
    decodes_wait: bool = False

    def fills(self, view: View) -> tuple[Fill, ...]:
        return (
            Fill(decode=False, budget=self.token_budget, split=False),
            Fill(decode=True, admit=False),
        )
