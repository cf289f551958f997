"""What one step asks of the hardware: sums over the decode set and the chunks, nothing per decoding sequence."""

from __future__ import annotations

from penstock.control.record import Record


class StepLoad(Record):
    """Everything a price may look at. O(chunks) to make, whatever the batch."""

    __slots__ = (
        "chunks", "decode_context", "decode_context_squares", "decoding", "sampled", "swap_in_blocks", "swap_out_blocks"
    )  # fmt: skip

    def __init__(
        self, decoding: int = 0, decode_context: int = 0, decode_context_squares: int = 0,
        chunks: tuple[tuple[int, int], ...] = (), sampled: int = 0, swap_in_blocks: int = 0, swap_out_blocks: int = 0,
    ) -> None:  # fmt: skip
        self.decoding = decoding
        """Sequences that decode one token each."""
        self.decode_context = decode_context
        """Sum of their KV lengths before this step."""
        self.decode_context_squares = decode_context_squares
        """Sum of the squares of their KV lengths: with the sum it gives mean and spread (skewed batches)."""
        self.chunks = chunks
        """Prefill: (tokens whose KV is there already, tokens of this chunk), one a chunk."""
        self.sampled = sampled
        """Rows that go through the LM head and the sampler: decodes and last chunks."""
        self.swap_in_blocks = swap_in_blocks
        self.swap_out_blocks = swap_out_blocks

    def fields(self) -> tuple[object, ...]:
        return (
            self.decoding, self.decode_context, self.decode_context_squares, self.chunks, self.sampled,
            self.swap_in_blocks, self.swap_out_blocks,
        )  # fmt: skip

    @property
    def tokens(self) -> int:
        """Rows that go through the layers."""
        return self.decoding + sum([tokens for _, tokens in self.chunks])
