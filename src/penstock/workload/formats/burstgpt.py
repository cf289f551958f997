"""BurstGPT traces (HPMLL/BurstGPT, CC-BY-4.0): Timestamp in s, Model, Request / Response / Total tokens, Log Type.

The third file has Session ID and Elapsed time besides; columns are found by name. A failed request has 0 response
tokens and is left out. Sessions are left out too: the file does not say whether a turn repeats the earlier ones.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import Final

from penstock.workload.formats.row import Place, TraceRequest

REQUIRED: Final = ("Timestamp", "Request tokens", "Response tokens")


def fits(head: str) -> bool:
    """Whether a file with this first line is one."""
    return set(REQUIRED) <= set(_cells(head))


def rows(head: str, lines: Iterator[tuple[Place, str]]) -> Iterator[TraceRequest]:
    """The requests that were answered, in file order. Raises BadInput."""
    columns = _cells(head)
    at_time, at_prompt, at_output = (columns.index(name) for name in REQUIRED)
    for place, line in lines:
        cells = _cells(line)
        if len(cells) != len(columns):
            raise place.error("row", line, f"{len(cells)} columns", f"{len(columns)}: " + ",".join(columns))
        output = place.tokens("Response tokens", cells[at_output], least=0)
        prompt = place.tokens("Request tokens", cells[at_prompt], least=1 if output else 0)
        arrival_s = place.seconds("Timestamp", cells[at_time])
        if output:
            yield TraceRequest(arrival_s, prompt, output)


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in next(csv.reader([line]))]
