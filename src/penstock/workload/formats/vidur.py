"""Vidur's processed traces (microsoft/vidur): arrived_at in s, num_prefill_tokens, num_decode_tokens, and maybe more.

Columns are found by name. Those of its files that hold lengths and no times are none: a trace says when.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from penstock.workload.formats.row import Place, TraceRequest, columns, has_columns

REQUIRED: Final = ("arrived_at", "num_prefill_tokens", "num_decode_tokens")


def fits(head: str) -> bool:
    """Whether a file with this first line is one."""
    return has_columns(head, REQUIRED)


def rows(head: str, lines: Iterator[tuple[Place, str]]) -> Iterator[TraceRequest]:
    """The requests, in file order. Raises BadInput."""
    for place, (time, prompt, output) in columns(head, lines, REQUIRED):
        yield TraceRequest(
            place.seconds("arrived_at", time),
            place.tokens("num_prefill_tokens", prompt),
            place.tokens("num_decode_tokens", output),
        )
