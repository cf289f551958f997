"""Trace formats, told apart by their first line: `read(path, name, limit)` finds the one and reads it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from penstock.errors import BadInput
from penstock.workload.formats import azure, burstgpt, jsonl, vidur
from penstock.workload.formats.row import Place, TraceRequest, lines_of

Lines = Iterator[tuple[Place, str]]


@dataclass(frozen=True, slots=True)
class Format:
    """A way to write a trace down."""

    name: str
    first_line: str
    """What a file of this format begins with, for messages."""
    fits: Callable[[str], bool]
    rows: Callable[[str, Lines], Iterator[TraceRequest]]
    """(first line, the lines behind a header, or all of them where there is none) -> requests in file order."""
    header: bool = True
    block_tokens: int = jsonl.MOONCAKE_BLOCK_TOKENS


FORMATS: Final = (
    Format("azure", ",".join(azure.HEADER), azure.fits, azure.rows),
    Format("burstgpt", "Timestamp,Model,Request tokens,Response tokens,...", burstgpt.fits, burstgpt.rows),
    Format("vidur", ",".join(vidur.REQUIRED), vidur.fits, vidur.rows),
    Format(
        "mooncake", '{"timestamp": ms, "input_length": ..., "output_length": ..., "hash_ids": [...]}',
        jsonl.fits_mooncake, lambda head, lines: jsonl.mooncake(lines), header=False,
    ),
    Format(
        "llmservingsim", '{"input_toks": ..., "output_toks": ..., "arrival_time_ns": ..., "prefix_blocks_16": [...]}',
        jsonl.fits_serving_sim, lambda head, lines: jsonl.serving_sim(lines), header=False,
        block_tokens=jsonl.SERVINGSIM_BLOCK_TOKENS,
    ),
)  # fmt: skip
NAMES: Final = tuple(form.name for form in FORMATS)


def read(path: Path, name: str = "auto", limit: int | None = None) -> tuple[list[TraceRequest], Format]:
    """The first `limit` requests of a file, in file order, and its format.

    Raises:
        BadInput: unreadable file, unknown format, no request, or a bad row: names file, line, column, value, remedy.
    """
    lines = lines_of(path)
    place, head = next(lines, (Place(path, 1), ""))
    form = _format(place, head, name)
    rest = lines if form.header else itertools.chain([(place, head)], lines)
    requests = list(itertools.islice(form.rows(head, rest), limit))
    if not requests:
        raise BadInput(field=str(path), value="", why="it holds no request", remedy="a file with at least one row")
    return requests, form


def _format(place: Place, head: str, name: str) -> Format:
    if name != "auto" and name not in NAMES:
        raise BadInput(
            field="trace_format", value=name, why="no such format", remedy="auto, or one of " + ", ".join(NAMES)
        )
    candidates = [form for form in FORMATS if name in ("auto", form.name)]
    for form in candidates:
        if form.fits(head):
            return form
    raise BadInput(
        field=f"{place.path}:{place.line}", value=head,
        why="no known trace begins so" if name == "auto" else f"no {name} trace begins so",
        remedy="a first line as in " + "; or ".join(form.first_line for form in candidates),
    )  # fmt: skip
