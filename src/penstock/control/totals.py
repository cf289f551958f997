"""What a replica has done since its start, as plain counters; statistics.py shows them."""

from __future__ import annotations


class Totals:
    """Names and meanings are those of `Statistics`."""

    __slots__ = (
        "cancelled", "decode_tokens", "failed", "finished", "preemptions", "prefill_tokens", "prefix_hit_tokens",
        "prefix_query_tokens", "stalls", "submitted", "swaps",
    )  # fmt: skip

    def __init__(self) -> None:
        self.prefill_tokens = 0
        self.decode_tokens = 0
        self.submitted = 0
        self.finished = 0
        self.cancelled = 0
        self.failed = 0
        self.preemptions = 0
        self.swaps = 0
        self.stalls = 0
        self.prefix_query_tokens = 0
        self.prefix_hit_tokens = 0
