"""Request-level batching: a batch is formed, runs to the end of its longest member, and only then comes the next.

The baseline of the papers (FasterTransformer): short requests wait for long ones, and their places stay empty.
"""

from __future__ import annotations

from dataclasses import dataclass

from penstock.control.compose.fill import Fill, View


@dataclass(frozen=True, slots=True)
class RequestLevel:
    """All prompts of the batch first, then decodes until none is left. Nobody joins in between."""

    token_budget: int
    """Bounds a step's prompt tokens, not the batch: that is bounded by max_seqs and memory."""
    decodes_wait: bool = False

    def fills(self, view: View) -> tuple[Fill, ...]:
        forming = view.running == 0
        if forming or view.prefilling:
            return (Fill(decode=False, budget=self.token_budget, admit=forming, gather=True),)
        return (Fill(decode=True, admit=False),)
