"""What one step asks of the hardware: sums over the decode set and the chunks, nothing per decoding sequence."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class StepLoad:
    """Everything a price may look at. O(chunks) to make, whatever the batch."""

    decoding: int = 0
    """Sequences that decode one token each."""
    decode_context: int = 0
    """Sum of their KV lengths before this step."""
    decode_context_squares: int = 0
    """Sum of the squares of their KV lengths: with the sum it gives mean and spread (skewed batches)."""
    chunks: tuple[tuple[int, int], ...] = ()
    """Prefill: (tokens whose KV is there already, tokens of this chunk), one a chunk."""
    sampled: int = 0
    """Rows that go through the LM head and the sampler: decodes and last chunks."""
    swap_in_blocks: int = 0
    swap_out_blocks: int = 0

    @property
    def tokens(self) -> int:
        """Rows that go through the layers."""
        return self.decoding + sum(tokens for _, tokens in self.chunks)
