"""One row of a trace, the text it is read from, and how a bad one is named: file, line, column, value, remedy."""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from penstock.errors import BadInput

_GZIP: Final = b"\x1f\x8b"


@dataclass(frozen=True, slots=True)
class TraceRequest:
    """One row: seconds since the trace began, tokens in and out, and what its prompt shares with others."""

    arrival_s: float
    prompt_tokens: int
    output_tokens: int
    prefix_blocks: tuple[int, ...] = ()
    """Ids of the prompt's blocks, `Trace.block_tokens` each; an equal id means an equal prefix up to its end."""
    session: int | None = None
    """Requests of one session are turns: a later prompt begins with the earlier one."""


@dataclass(frozen=True, slots=True)
class Place:
    """A line of a file, for messages."""

    path: Path
    line: int

    def error(self, column: str, value: object, why: str, remedy: str) -> BadInput:
        return BadInput(field=f"{self.path}:{self.line} {column}", value=value, why=why, remedy=remedy)

    def tokens(self, column: str, text: str, *, least: int = 1) -> int:
        """A whole number of tokens. Raises BadInput."""
        if not text.isascii() or not text.isdigit() or int(text) < least:
            kind = "positive" if least else "non-negative"
            raise self.error(column, text, f"not a {kind} whole number", f"tokens, {least} or more")
        return int(text)

    def seconds(self, column: str, text: str) -> float:
        """A time since the trace began. Raises BadInput."""
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not 0 <= value < float("inf"):
            raise self.error(column, text, "not a time", "seconds since the trace began, such as 45")
        return value

    def checked(self, column: str, tokens: int) -> int:
        """A number of tokens that is already a number. Raises BadInput."""
        if tokens < 1:
            raise self.error(column, tokens, "below 1", "tokens, 1 or more")
        return tokens


def lines_of(path: Path) -> Iterator[tuple[Place, str]]:
    """The lines of a plain or gzipped file as they are read, blank ones left out. Raises BadInput: unreadable."""
    number = 0
    try:
        with path.open("rb") as raw:
            zipped = raw.read(2) == _GZIP
            raw.seek(0)
            data = gzip.GzipFile(fileobj=raw) if zipped else raw
            for number, line in enumerate(io.TextIOWrapper(data, encoding="utf-8-sig", newline=None), start=1):
                if line.strip():
                    yield Place(path, number), line.rstrip("\n")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise BadInput(
            field="trace", value=str(path), why=f"it cannot be read beyond line {number}: {error}",
            remedy="a readable trace file, plain or .gz",
        ) from None  # fmt: skip


def has_columns(head: str, names: Sequence[str]) -> bool:
    """Whether a file of comma-separated values with this first line has all of them."""
    return set(names) <= set(_cells(head))


def columns(head: str, lines: Iterator[tuple[Place, str]], names: Sequence[str]) -> Iterator[tuple[Place, list[str]]]:
    """The cells under `names`, row by row. Raises BadInput: a row with more or fewer cells than `head`."""
    all_names = _cells(head)
    at = [all_names.index(name) for name in names]
    for place, line in lines:
        cells = _cells(line)
        if len(cells) != len(all_names):
            raise place.error("row", line, f"{len(cells)} columns", f"{len(all_names)}: " + ",".join(all_names))
        yield place, [cells[index] for index in at]


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in next(csv.reader([line]))]
