"""A replica's counts at one moment; cheap enough to take several times a second."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Statistics:
    """Gauges first, then totals since the start."""

    waiting: int = 0
    waiting_prompt_tokens: int = 0
    running: int = 0
    """Hold blocks: prefilling, decoding, stalled or ending."""
    prefilling: int = 0
    decoding: int = 0
    stalled: int = 0
    """Decodes that wait for a block."""
    swapped: int = 0
    free_blocks: int = 0
    cached_blocks: int = 0
    """Hold a prefix nobody uses now."""
    held_blocks: int = 0
    total_blocks: int = 0
    free_host_blocks: int = 0

    steps: int = 0
    prefill_tokens: int = 0
    """Prompt tokens computed, recomputation included."""
    decode_tokens: int = 0
    submitted: int = 0
    finished: int = 0
    """Ended with `stop` or `length`."""
    cancelled: int = 0
    failed: int = 0
    preemptions: int = 0
    """Evicted to be computed again."""
    swaps: int = 0
    """Swapped out."""
    stalls: int = 0
    """Times a decode waited for a block."""
    prefix_query_tokens: int = 0
    """Prompt tokens looked up in the prefix cache, at first admission."""
    prefix_hit_tokens: int = 0
