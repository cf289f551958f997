"""Request traces: who asked when, how much went in and came out.

Reads the Azure LLM traces (CSV: TIMESTAMP, ContextTokens, GeneratedTokens) and the Mooncake traces (JSONL: timestamp
in ms, input_length, output_length, hash_ids of 512-token blocks), plain or gzipped; the format is found from the
content. A trace is immutable; `fit`, `at_speed`, `at_rate`, `first` and `within` give a changed one.
"""

from __future__ import annotations

import gzip
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from penstock.errors import BadInput

MOONCAKE_BLOCK_TOKENS: Final = 512
MOONCAKE_TICK_S: Final = 3.0
"""Clock of the Mooncake conversation trace: 10 requests share one tick, an artefact of its publication."""
_AZURE_HEADER: Final = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
_AZURE_TIME: Final = re.compile(r"(\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(?:Z|\+00:?00)?")
FIT_QUANTILE: Final = 0.999


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
class Trace:
    """Requests in order of arrival; the first arrives at 0."""

    name: str
    requests: tuple[TraceRequest, ...]
    block_tokens: int = MOONCAKE_BLOCK_TOKENS
    """Tokens one prefix block stands for."""
    notes: tuple[str, ...] = ()
    """What was done to the original, in words: printed with every result."""

    def __len__(self) -> int:
        return len(self.requests)

    @property
    def span_s(self) -> float:
        return self.requests[-1].arrival_s if self.requests else 0.0

    @property
    def rate(self) -> float:
        """Mean requests per second; 0 of fewer than two requests or no time."""
        return (len(self.requests) - 1) / self.span_s if self.span_s > 0 else 0.0

    def _with(self, requests: Iterable[TraceRequest], note: str, *, block_tokens: int | None = None) -> Trace:
        return replace(
            self,
            requests=tuple(requests),
            notes=(*self.notes, note),
            block_tokens=self.block_tokens if block_tokens is None else block_tokens,
        )

    def first(self, count: int) -> Trace:
        """The first `count` requests."""
        if count >= len(self):
            return self
        return self._with(self.requests[:count], f"first {count} of {len(self)} requests")

    def within(self, seconds: float) -> Trace:
        """The requests that arrive before `seconds`."""
        kept = tuple(request for request in self.requests if request.arrival_s < seconds)
        return self if len(kept) == len(self) else self._with(kept, f"first {seconds:g} s ({len(kept)} requests)")

    def at_speed(self, factor: float) -> Trace:
        """Time runs `factor` times as fast; lengths stay."""
        _positive("speed", factor)
        if factor == 1:
            return self
        moved = (replace(request, arrival_s=request.arrival_s / factor) for request in self.requests)
        return self._with(moved, f"arrivals {factor:.4g} x as fast")

    def at_rate(self, requests_per_s: float) -> Trace:
        """Arrivals stretched to this mean rate; their pattern stays. Raises BadInput when the trace has no rate."""
        _positive("rate", requests_per_s)
        if self.rate == 0:
            raise BadInput(
                field="rate", value=requests_per_s, why=f"{self.name} has no time between its requests to stretch",
                remedy="take more requests, or --dequantise for a trace with a coarse clock",
            )  # fmt: skip
        return self.at_speed(requests_per_s / self.rate)

    def fit(self, context_tokens: int) -> Trace:
        """Lengths scaled so that prompt + output of every request fits `context_tokens`.

        One factor for all lengths, in and out, so ratios and the shape of the distribution stay: context_tokens over
        the 99.9th percentile of prompt + output, never above 1. Lengths are rounded, at least 1. The one request in a
        thousand that is still too long loses the front of its prompt (and, past that, output). Prefix blocks shrink by
        the same factor.
        """
        if context_tokens < 2:
            raise BadInput(
                field="scale-lengths-to", value=context_tokens, why="a prompt and an output need a token each",
                remedy="2 or more",
            )  # fmt: skip
        if not self.requests:
            return self
        totals = [request.prompt_tokens + request.output_tokens for request in self.requests]
        factor = min(1.0, context_tokens / float(np.quantile(totals, FIT_QUANTILE)))
        clipped = 0
        block_tokens = max(1, round(self.block_tokens * factor))

        def scaled() -> Iterator[TraceRequest]:
            nonlocal clipped
            for request in self.requests:
                output = min(max(1, round(request.output_tokens * factor)), context_tokens - 1)
                prompt = max(1, round(request.prompt_tokens * factor))
                clipped += prompt + output > context_tokens
                prompt = min(prompt, context_tokens - output)
                yield replace(
                    request,
                    prompt_tokens=prompt,
                    output_tokens=output,
                    prefix_blocks=request.prefix_blocks[: -(-prompt // block_tokens)],
                )

        requests = tuple(scaled())
        note = f"lengths x {factor:.4g} to fit {context_tokens} tokens ({clipped} clipped)"
        return self._with(requests, note, block_tokens=block_tokens)

    def dequantised(self, tick_s: float, seed: int) -> Trace:
        """Requests that share a time stamp spread evenly at random over the next `tick_s`; singletons stay put."""
        _positive("tick", tick_s)
        generator = np.random.default_rng([seed, 0x71C4])
        shared = Counter(request.arrival_s for request in self.requests)
        moved = [
            replace(request, arrival_s=request.arrival_s + float(generator.uniform(0, tick_s)))
            if shared[request.arrival_s] > 1
            else request
            for request in self.requests
        ]
        return self._with(_from_zero(moved), f"time stamps spread over ticks of {tick_s:g} s")


def read_trace(path: Path, *, dequantise: bool = False, seed: int = 0) -> Trace:
    """Read an Azure CSV or a Mooncake JSONL, plain or gzipped.

    Raises:
        BadInput: unreadable file, unknown format, or a bad row; names file, line, column and what would be right.
    """
    lines = _lines(path)
    head = lines[0].lstrip("\ufeff") if lines else ""
    if head.startswith("{"):
        requests = _mooncake(path, lines)
    elif tuple(column.strip() for column in head.split(",")[:3]) == _AZURE_HEADER:
        requests = _azure(path, lines)
    else:
        raise BadInput(
            field=f"{path}:1", value=head, why="neither an Azure CSV nor a Mooncake JSONL",
            remedy=f"a first line of {','.join(_AZURE_HEADER)}, or one JSON object per line with timestamp (ms), "
            "input_length, output_length",
        )  # fmt: skip
    if not requests:
        raise BadInput(field=str(path), value="", why="it holds no request", remedy="a file with at least one row")
    trace = Trace(path.name, _from_zero(requests), notes=("as recorded",))
    return trace.dequantised(MOONCAKE_TICK_S, seed) if dequantise else trace


def _lines(path: Path) -> list[str]:
    try:
        raw = path.read_bytes()
        data = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
        return data.decode("utf-8").splitlines()
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise BadInput(
            field="trace", value=str(path), why=f"it cannot be read: {error}",
            remedy="a readable Azure CSV or Mooncake JSONL, plain or .gz",
        ) from None  # fmt: skip


def _azure(path: Path, lines: list[str]) -> list[TraceRequest]:
    requests: list[TraceRequest] = []
    origin_ns: int | None = None
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        cells = line.split(",")
        if len(cells) < 3:
            raise _row_error(path, number, "row", line, f"{len(cells)} columns", "three: " + ",".join(_AZURE_HEADER))
        stamp, prompt, output = cells[:3]
        # Whole nanoseconds until the origin is taken off: seconds since 1970 in a double lose the seventh digit.
        time_ns = _nanoseconds(path, number, stamp.strip())
        origin_ns = time_ns if origin_ns is None else origin_ns
        requests.append(
            TraceRequest(
                (time_ns - origin_ns) / 1e9,
                _tokens(path, number, "ContextTokens", prompt.strip()),
                _tokens(path, number, "GeneratedTokens", output.strip()),
            )
        )
    return requests


def _nanoseconds(path: Path, number: int, text: str) -> int:
    match = _AZURE_TIME.fullmatch(text)
    if match is None:
        raise _row_error(path, number, "TIMESTAMP", text, "not a UTC time", "such as 2023-11-16 18:15:46.6805900")
    try:
        whole = datetime.fromisoformat(match[1]).replace(tzinfo=UTC).timestamp()
    except ValueError as error:
        raise _row_error(path, number, "TIMESTAMP", text, str(error), "a time that exists") from None
    return int(whole) * 10**9 + int((match[2] or "0").ljust(9, "0"))


def _tokens(path: Path, number: int, column: str, text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise _row_error(path, number, column, text, "not a positive whole number", "tokens, 1 or more")
    return int(text)


class _MooncakeRow(msgspec.Struct):
    timestamp: float
    input_length: int
    output_length: int
    hash_ids: list[int] = []


def _mooncake(path: Path, lines: list[str]) -> list[TraceRequest]:
    decoder = msgspec.json.Decoder(_MooncakeRow)
    requests = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = decoder.decode(line)
        except msgspec.MsgspecError as error:
            raise _row_error(
                path, number, "row", line, str(error), "timestamp (ms), input_length, output_length, hash_ids"
            ) from None
        for column in ("input_length", "output_length"):
            if getattr(row, column) < 1:
                raise _row_error(path, number, column, getattr(row, column), "below 1", "tokens, 1 or more")
        needed = -(-row.input_length // MOONCAKE_BLOCK_TOKENS)
        if row.hash_ids and len(row.hash_ids) != needed:
            raise _row_error(
                path, number, "hash_ids", len(row.hash_ids), f"{row.input_length} tokens are {needed} blocks of 512",
                f"{needed} ids, or none",
            )  # fmt: skip
        requests.append(TraceRequest(row.timestamp / 1000, row.input_length, row.output_length, tuple(row.hash_ids)))
    return requests


def _row_error(path: Path, line: int, column: str, value: object, why: str, remedy: str) -> BadInput:
    return BadInput(field=f"{path}:{line} {column}", value=value, why=why, remedy=remedy)


def _from_zero(requests: list[TraceRequest]) -> tuple[TraceRequest, ...]:
    ordered = sorted(requests, key=lambda request: request.arrival_s)
    origin = ordered[0].arrival_s
    return tuple(replace(request, arrival_s=round(request.arrival_s - origin, 7)) for request in ordered)


def _positive(field: str, value: float) -> None:
    if not value > 0 or value == float("inf"):
        raise BadInput(field=field, value=value, why="it must be a positive number", remedy="such as 1")
