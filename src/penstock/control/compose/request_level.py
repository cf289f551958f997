"""Request-level batching: a batch is formed, runs to the end of its longest member, and only then comes the next.

The baseline of the papers (FasterTransformer): short requests wait for long ones, and their places stay empty.
"""

from __future__ import annotations

from penstock.control.compose.fill import Compose, Fill, View


class RequestLevel(Compose):
    """All prompts of the batch first, then decodes until none is left. Nobody joins in between."""

    def __init__(self, token_budget: int) -> None:
        """`token_budget` bounds a step's prompt tokens, not the batch: that is bounded by max_seqs and memory."""
        self._form = (Fill(decode=False, budget=token_budget, gather=True),)
        self._compute = (Fill(decode=False, budget=token_budget, admit=False, gather=True),)
        self._decode = (Fill(decode=True, admit=False),)

    def fills(self, view: View) -> tuple[Fill, ...]:
        if not view.running:
            return self._form
        return self._compute if view.prefilling else self._decode
