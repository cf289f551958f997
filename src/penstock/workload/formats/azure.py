"""Azure LLM inference traces 2023 and 2024 (Azure/AzurePublicDataset): TIMESTAMP, ContextTokens, GeneratedTokens.

Times are UTC with up to nine digits of a second, those of 2024 with +00:00 behind; further columns are left alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

from penstock.workload.formats.row import Place, TraceRequest

HEADER: Final = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_TIME: Final = re.compile(r"(\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(?:Z|\+00:?00)?")


def fits(head: str) -> bool:
    """Whether a file with this first line is one."""
    return tuple(column.strip() for column in head.split(",")[:3]) == HEADER


def rows(head: str, lines: Iterator[tuple[Place, str]]) -> Iterator[TraceRequest]:
    """The requests, in file order, seconds since the first. Raises BadInput."""
    del head  # the columns are always these
    origin_ns: int | None = None
    for place, line in lines:
        cells = line.split(",")
        if len(cells) < 3:
            raise place.error("row", line, f"{len(cells)} columns", "three: " + ",".join(HEADER))
        stamp, prompt, output = cells[:3]
        # Whole nanoseconds until the origin is taken off: seconds since 1970 in a double lose the seventh digit.
        time_ns = _nanoseconds(place, stamp.strip())
        origin_ns = time_ns if origin_ns is None else origin_ns
        yield TraceRequest(
            (time_ns - origin_ns) / 1e9,
            place.tokens("ContextTokens", prompt.strip()),
            place.tokens("GeneratedTokens", output.strip()),
        )


def _nanoseconds(place: Place, text: str) -> int:
    match = _TIME.fullmatch(text)
    if match is None:
        raise place.error("TIMESTAMP", text, "not a UTC time", "such as 2023-11-16 18:15:46.6805900")
    try:
        whole = datetime.fromisoformat(match[1]).replace(tzinfo=UTC).timestamp()
    except ValueError as error:
        raise place.error("TIMESTAMP", text, str(error), "a time that exists") from None
    return int(whole) * 10**9 + int((match[2] or "0").ljust(9, "0"))
