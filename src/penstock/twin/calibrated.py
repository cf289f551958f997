"""Prices from this machine's own measurements: the table that `penstock calibrate` writes beside a device file.

Each operator is looked up among measured ones of its kind and shape and interpolated along what varies:

    product            rows: straight lines (a step where the engine changes its kernel is a short, steep line)
    decode attention   sequences and mean context: straight lines in both, which is how its work grows
    prefill attention  tokens: a power law between two points, since work grows with their square; past: straight lines
    everything else    rows: straight lines

Outside the measured range, or for another shape, the nearest measurement is scaled by the work, and the basis says
`extrapolated`. What was never measured falls to the roofline of the device's measured limits.
"""

from __future__ import annotations

import csv
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from math import log
from pathlib import Path
from typing import Final

from penstock.catalog.device import Device
from penstock.catalog.hardware_load import user_directory
from penstock.errors import BadInput
from penstock.twin.operators import DecodeAttention, Elementwise, Gemm, Operator, PrefillAttention
from penstock.twin.price import Basis, Estimate, OperatorPrice

Points = Sequence[tuple[float, float]]
"""(what varies, seconds), ascending."""
_HEADER: Final = "# Penstock operator times, format 1: seconds of one run of an operator; see twin/calibrated.py"


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorTime:
    """One line of the table. What an operator has not is 0."""

    kind: str
    dtype: str
    rows: int = 0
    """Of a product or of what goes by rows; sequences of decode attention; tokens of prefill attention."""
    columns: int = 0
    inner: int = 0
    past: int = 0
    """Prefill attention: tokens before the chunk."""
    context: int = 0
    """Decode attention: sum over the sequences, this step's tokens included."""
    heads: int = 0
    kv_heads: int = 0
    head_dim: int = 0
    row_bytes: float = 0.0
    """Of what goes by rows: bytes read and written per row."""
    seconds: float
    samples: int = 1
    """Runs whose median this is."""


def time_of(operator: Operator, seconds: float, samples: int) -> OperatorTime | None:
    """The line of a measured operator; None: the table has no place for its kind."""
    match operator:
        case Gemm():
            return OperatorTime(
                kind=operator.kind, dtype=operator.dtype, rows=operator.rows, columns=operator.columns,
                inner=operator.inner, seconds=seconds, samples=samples,
            )  # fmt: skip
        case PrefillAttention():
            return OperatorTime(
                kind=operator.kind, dtype=operator.kv_dtype, rows=operator.tokens, past=operator.past,
                heads=operator.heads, kv_heads=operator.kv_heads, head_dim=operator.head_dim, seconds=seconds,
                samples=samples,
            )  # fmt: skip
        case DecodeAttention():
            return OperatorTime(
                kind=operator.kind, dtype=operator.kv_dtype, rows=operator.sequences, context=operator.context,
                heads=operator.heads, kv_heads=operator.kv_heads, head_dim=operator.head_dim, seconds=seconds,
                samples=samples,
            )  # fmt: skip
        case Elementwise() if operator.rows:
            row_bytes = (operator.read_bytes + operator.written_bytes) / operator.rows
            return OperatorTime(
                kind=operator.kind, dtype="", rows=operator.rows, row_bytes=row_bytes, seconds=seconds, samples=samples
            )
        case _:
            return None


def write_table(path: Path, lines: Iterable[OperatorTime]) -> None:
    """CSV with a header line, one operator a line."""
    names = [field.name for field in fields(OperatorTime)]
    with path.open("w", encoding="utf-8", newline="") as file:
        file.write(_HEADER + "\n")
        table = csv.DictWriter(file, names, lineterminator="\n")
        table.writeheader()
        for line in lines:
            row = asdict(line)
            table.writerow({name: row[name] for name in names})


def is_table(path: Path) -> bool:
    """Whether a file begins as `write_table` begins it, of whatever version."""
    try:
        with path.open("rb") as file:
            return file.read(64).startswith(_HEADER.partition(",")[0].encode())
    except OSError:
        return False


def read_table(path: Path) -> list[OperatorTime]:
    """Raises BadInput: unreadable, another format, or a bad line; says which."""
    try:
        text = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(
            field="calibration", value=str(path), why=f"it cannot be read: {error}", remedy="penstock calibrate"
        ) from None
    if not text or text[0] != _HEADER:
        raise BadInput(
            field=f"{path}:1", value=text[0] if text else "", why="not a table of this version",
            remedy="run penstock calibrate again",
        )  # fmt: skip
    casts = {field.name: {"str": str, "int": int, "float": float}[str(field.type)] for field in fields(OperatorTime)}
    found = []
    for number, row in enumerate(csv.DictReader(text[1:]), start=3):
        try:
            line = OperatorTime(**{name: cast(row[name]) for name, cast in casts.items()})
            if not line.seconds >= 0 or line.rows < 1:
                raise ValueError("seconds below 0, or no rows")
        except (KeyError, TypeError, ValueError) as error:
            raise BadInput(
                field=f"{path}:{number}", value=dict(row), why=str(error), remedy="run penstock calibrate again"
            ) from None
        found.append(line)
    return found


class Calibrated:
    """Prices operators by a table of measurements; `fallback` prices what it lacks."""

    name = "calibrated"

    def __init__(self, lines: Iterable[OperatorTime], fallback: OperatorPrice) -> None:
        self._fallback = fallback
        gemms: dict[tuple[int, int, str], list[tuple[float, float]]] = defaultdict(list)
        by_rows: dict[str, dict[float, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
        decode: dict[tuple[int, int, int, str], list[OperatorTime]] = defaultdict(list)
        prefill: dict[tuple[int, int, int, str], list[OperatorTime]] = defaultdict(list)
        for line in lines:
            heads = (line.heads, line.kv_heads, line.head_dim, line.dtype)
            if line.columns:
                gemms[line.columns, line.inner, line.dtype].append((line.rows, line.seconds))
            elif line.kind == "attention_decode":
                decode[heads].append(line)
            elif line.kind == "attention_prefill":
                prefill[heads].append(line)
            else:
                by_rows[line.kind][line.row_bytes].append((line.rows, line.seconds))
        self._gemms = {key: _merged(points) for key, points in gemms.items()}
        self._by_rows = {
            kind: {width: _merged(points) for width, points in widths.items()} for kind, widths in by_rows.items()
        }
        self._decode = {
            key: _grid((line.rows, line.context / line.rows, line.seconds) for line in found)
            for key, found in decode.items()
        }
        self._prefill = {
            key: _grid((line.rows, line.past, line.seconds) for line in found) for key, found in prefill.items()
        }

    def price(self, operator: Operator) -> Estimate:
        found: tuple[float, Basis] | None = None
        match operator:
            case Gemm():
                found = self._gemm(operator)
            case DecodeAttention():
                found = self._attention(
                    self._decode, operator, operator.sequences, operator.context / operator.sequences
                )
            case PrefillAttention():
                past, share = _seen(operator)
                found = self._attention(self._prefill, operator, operator.tokens, past)
                if found is not None:
                    found = found[0] * share, found[1]
            case Elementwise() if operator.rows and operator.kind in self._by_rows:
                found = self._going_by_rows(operator)
        if found is None:
            estimate = self._fallback.price(operator)
            return Estimate(estimate.seconds, estimate.model, "extrapolated", estimate.joules)
        return Estimate(found[0], self.name, found[1])

    def _gemm(self, operator: Gemm) -> tuple[float, Basis] | None:
        points = self._gemms.get((operator.columns, operator.inner, operator.dtype))
        if points is not None:
            return _along(points, operator.rows)
        like = [key for key in self._gemms if key[2] == operator.dtype]
        if not like:
            return None
        near = min(like, key=lambda key: abs(log(key[0] / operator.columns)) + abs(log(key[1] / operator.inner)))
        seconds, _ = _along(self._gemms[near], operator.rows)
        return seconds * operator.columns * operator.inner / (near[0] * near[1]), "extrapolated"

    def _attention(
        self, table: dict[tuple[int, int, int, str], dict[float, Points]], operator: DecodeAttention | PrefillAttention,
        across: float, along: float,
    ) -> tuple[float, Basis] | None:  # fmt: skip
        key = (operator.heads, operator.kv_heads, operator.head_dim, operator.kv_dtype)
        power = isinstance(operator, PrefillAttention)
        grid = table.get(key)
        if grid is not None:
            seconds, basis = _between(grid, across, along, power=power)
            return seconds, "extrapolated" if operator.window is not None else basis
        like = [other for other in table if other[3] == operator.kv_dtype]
        if not like:
            return None
        near = min(like, key=lambda other: abs(log(other[0] * other[2] / (operator.heads * operator.head_dim))))
        seconds, _ = _between(table[near], across, along, power=power)
        return seconds * operator.heads * operator.head_dim / (near[0] * near[2]), "extrapolated"

    def _going_by_rows(self, operator: Elementwise) -> tuple[float, Basis]:
        widths = self._by_rows[operator.kind]
        row_bytes = (operator.read_bytes + operator.written_bytes) / operator.rows
        near = min(widths, key=lambda width: abs(width - row_bytes))
        seconds, basis = _along(widths[near], operator.rows)
        if abs(near - row_bytes) <= 1e-6 * row_bytes:
            return seconds, basis
        return seconds * (row_bytes / near if near else 1.0), "extrapolated"


def calibration_of(device: Device) -> Calibrated | None:
    """The measurements of a device that `penstock calibrate` described; None: there are none.

    Raises BadInput: the table cannot be read.
    """
    from penstock.twin.roofline import Roofline

    path = table_path(device.name)
    if not path.is_file():
        return None
    return Calibrated(_lines(path, path.stat().st_mtime_ns), Roofline(device))


def table_path(name: str) -> Path:
    """Where the table of the device called `name` stands: beside its file in the user's directory."""
    return user_directory() / f"{name}.operators.csv"


@lru_cache(maxsize=8)
def _lines(path: Path, _changed_ns: int) -> tuple[OperatorTime, ...]:
    return tuple(read_table(path))


def _seen(operator: PrefillAttention) -> tuple[float, float]:
    """The past over which a chunk without a window has as many query-key pairs, and the share of the pairs that are
    left where even a chunk without any past has more."""
    if operator.window is None:
        return operator.past, 1.0
    own, pairs = operator.tokens * (operator.tokens + 1) / 2, operator.pairs()
    return (pairs - own) / operator.tokens if pairs > own else 0.0, min(1.0, pairs / own)


def _merged(points: Iterable[tuple[float, float]]) -> Points:
    """Ascending, one value a place: the mean where a shape was measured under two names."""
    found: dict[float, list[float]] = defaultdict(list)
    for place, seconds in points:
        found[place].append(seconds)
    return [(place, sum(values) / len(values)) for place, values in sorted(found.items())]


def _grid(points: Iterable[tuple[float, float, float]]) -> dict[float, Points]:
    lines: dict[float, list[tuple[float, float]]] = defaultdict(list)
    for across, along, seconds in points:
        lines[across].append((along, seconds))
    return {across: _merged(line) for across, line in sorted(lines.items())}


def _along(points: Points, place: float) -> tuple[float, Basis]:
    """On straight lines; beyond the ends on the last one, never below half the end's own value."""
    first, last = points[0], points[-1]
    if first[0] <= place <= last[0]:
        at = bisect_left(points, (place, float("-inf")))
        if points[at][0] == place:
            return points[at][1], "measured"
        return _line(points[at - 1], points[at], place), "measured"
    end = first if place < first[0] else last
    if len(points) == 1:
        return end[1] * max(1.0, place / end[0] if end[0] else 1.0), "extrapolated"
    pair = points[:2] if place < first[0] else points[-2:]
    return max(_line(pair[0], pair[1], place), end[1] / 2), "extrapolated"


def _between(grid: dict[float, Points], across: float, along: float, *, power: bool) -> tuple[float, Basis]:
    """Along the two nearest lines, then between them."""
    places = list(grid)
    at = min(max(bisect_left(places, across), 0), len(places) - 1)
    if places[at] == across or len(places) == 1:
        seconds, basis = _along(grid[places[at]], along)
        return (seconds, basis) if places[at] == across else (seconds * across / places[at], "extrapolated")
    at = max(at, 1)
    low, high = places[at - 1], places[at]
    below, above = (_along(grid[place], along) for place in (low, high))
    inside = low < across < high and below[1] == above[1] == "measured"
    if power and below[0] > 0 and above[0] > 0:
        exponent = log(above[0] / below[0]) / log(high / low)
        seconds = below[0] * (across / low) ** exponent
    else:
        seconds = max(_line((low, below[0]), (high, above[0]), across), min(below[0], above[0]) / 2)
    return seconds, "measured" if inside else "extrapolated"


def _line(first: tuple[float, float], second: tuple[float, float], place: float) -> float:
    return first[1] + (second[1] - first[1]) * (place - first[0]) / (second[0] - first[0])
