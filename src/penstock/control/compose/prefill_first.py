"""Prefill first: if any waiting prompt fits, a step of prompts alone; else a step of decodes (vLLM of 2023).

Good for throughput and time to first token, and the cause of generation stalls: decodes rest while prompts come in.
"""

from __future__ import annotations

from penstock.control.compose.fill import Compose, Fill, View


class PrefillFirst(Compose):
    """`token_budget` is that vLLM's max_num_batched_tokens."""

    def __init__(self, token_budget: int) -> None:
        self._fills = (Fill(decode=False, budget=token_budget, split=False), Fill(decode=True, admit=False))

    def fills(self, view: View) -> tuple[Fill, ...]:
        return self._fills
