"""BurstGPT traces (HPMLL/BurstGPT, CC-BY-4.0): Timestamp in s, Model, Request / Response / Total tokens, Log Type.

The third file has Session ID and Elapsed time besides; columns are found by name. A failed request has 0 response
tokens and is left out. Sessions are left out too: the file does not say whether a turn repeats the earlier ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from penstock.workload.formats.row import Place, TraceRequest, columns, has_columns

REQUIRED: Final = ("Timestamp", "Request tokens", "Response tokens")


def fits(head: str) -> bool:
    """Whether a file with this first line is one."""
    return has_columns(head, REQUIRED)


def rows(head: str, lines: Iterator[tuple[Place, str]]) -> Iterator[TraceRequest]:
    """The requests that were answered, in file order. Raises BadInput."""
    for place, (time, asked, answered) in columns(head, lines, REQUIRED):
        output = place.tokens("Response tokens", answered, least=0)
        prompt = place.tokens("Request tokens", asked, least=1 if output else 0)
        arrival_s = place.seconds("Timestamp", time)
        if output:
            yield TraceRequest(arrival_s, prompt, output)
