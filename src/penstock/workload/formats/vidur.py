"""Vidur's processed traces (microsoft/vidur): arrived_at in s, num_prefill_tokens, num_decode_tokens, and maybe more.

Columns are found by name. Those of its files that hold lengths and no times are none: a trace says when.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from penstock.workload.formats.row import Place, TraceRequest

REQUIRED: Final = ("arrived_at", "num_prefill_tokens", "num_decode_tokens")


def fits(head: str) -> bool:
    """Whether a file with this first line is one."""
    return set(REQUIRED) <= set(_cells(head))


def rows(head: str, lines: Iterator[tuple[Place, str]]) -> Iterator[TraceRequest]:
    """The requests, in file order. Raises BadInput."""
    columns = _cells(head)
    at_time, at_prompt, at_output = (columns.index(name) for name in REQUIRED)
    for place, line in lines:
        cells = _cells(line)
        if len(cells) != len(columns):
            raise place.error("row", line, f"{len(cells)} columns", f"{len(columns)}: " + ",".join(columns))
        yield TraceRequest(
            place.seconds("arrived_at", cells[at_time]),
            place.tokens("num_prefill_tokens", cells[at_prompt]),
            place.tokens("num_decode_tokens", cells[at_output]),
        )


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split(",")]
