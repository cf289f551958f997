"""The lines of a profile as whole operators with their seconds: what the learned price is trained on.

Files are of the open format (`profiles.py`), or tables that `penstock calibrate` wrote. A learned price is asked for
shapes that were not measured, so a line counts only if it says all sizes of its operator:

    products      rows, columns, inner; dtype of the weights, activation_dtype (default: float32 for float32, else
                  bfloat16)
    attention     rows, heads, kv_heads, head_dim; past or context; dtype, kv_dtype (default: bfloat16, and dtype)
    experts       rows, hidden, intermediate, experts, experts_per_token; tensor_parallel, expert_parallel (1); dtype
    collectives   bytes, ranks; nodes (1)
    all else      rows, read_bytes, written_bytes: norms, activations, embedding, ...

Lines that lack some are counted by kind, and so are decodes beside a chunk, which are no operator by themselves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any, Final, get_args

from penstock.catalog.shape import DTYPE_BYTES
from penstock.twin.calibrated import OperatorTime, is_table, read_table
from penstock.twin.measured.profiles import InvalidProfile, profile_lines
from penstock.twin.operators import (
    Collective,
    CollectiveKind,
    DecodeAttention,
    Elementwise,
    Experts,
    Gemm,
    Kind,
    Operator,
    PrefillAttention,
)

_UNITS: Final = (("seconds", 1.0), ("ms", 1e-3), ("us", 1e-6))
_ATTENTION: Final = ("rows", "heads", "kv_heads", "head_dim")


@dataclass(slots=True)
class Learnable:
    """Operators and seconds, and what was left out."""

    points: list[tuple[Operator, float]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)
    """Kind -> lines that do not say all sizes."""


def read_points(paths: Iterable[Path]) -> Learnable:
    """Of all files together. Raises InvalidProfile or BadInput: unreadable, or a bad line; says file, line, column."""
    found = Learnable()
    for path in paths:
        if is_table(path):
            for measured in read_table(path):
                _take(found, measured.kind, _operator_of(measured), measured.seconds)
            continue
        for number, row in enumerate(profile_lines(path), start=2):
            line = _Line({key: value for key, value in row.items() if value not in (None, "")}, path, number)
            _take(found, *line.operator(), line.seconds())
    return found


def _take(found: Learnable, kind: str, operator: Operator | None, seconds: float) -> None:
    if operator is None or seconds <= 0.0:
        found.left_out[kind] += 1
    else:
        found.points.append((operator, seconds))


def _operator_of(line: OperatorTime) -> Operator | None:
    """What time_of (twin/calibrated.py) made a line of; None: the line does not keep all of it."""
    if line.columns:
        return Gemm(_kind(line.kind), line.rows, line.columns, line.inner, line.dtype, _activations(line.dtype))
    heads = line.heads, line.kv_heads, line.head_dim
    if line.kind == "attention_decode":
        return DecodeAttention(line.rows, line.context, *heads, dtype=line.dtype, kv_dtype=line.dtype)
    if line.kind == "attention_prefill":
        return PrefillAttention(line.rows, line.past, *heads, dtype=line.dtype, kv_dtype=line.dtype)
    return None


@dataclass(slots=True)
class _Line:
    """One line of a profile; its place is in every complaint."""

    row: Mapping[str, Any]
    path: Path
    place: int

    def operator(self) -> tuple[str, Operator | None]:
        kind = str(self.row.get("operator"))
        if kind not in get_args(Kind):
            raise self._bad("operator", kind, "no such operator", "one of " + ", ".join(get_args(Kind)))
        make = _MAKERS.get(kind)
        if make is None:
            make = _collective if kind in get_args(CollectiveKind) else _product if self.has("columns") else _plain
        return kind, make(self, _kind(kind))

    def seconds(self) -> float:
        for name, scale in _UNITS:
            if name in self.row:
                return scale * self.number(name)
        raise self._bad("seconds", None, "no time stands in this line", "seconds, ms or us")

    def has(self, *names: str) -> bool:
        return all(name in self.row for name in names)

    def number(self, name: str, default: float | None = None) -> float:
        found = self.row.get(name, default)
        try:
            value = float(found)
        except (TypeError, ValueError):
            value = float("nan")
        if not isfinite(value) or value < 0:
            raise self._bad(name, found, "not a number of 0 or more", "a number")
        return value

    def whole(self, name: str, default: int | None = None) -> int:
        return round(self.number(name, default))

    def dtype(self, name: str, default: str) -> str:
        found = str(self.row.get(name, default))
        if found not in DTYPE_BYTES:
            raise self._bad(name, found, "no such type", "one of " + ", ".join(DTYPE_BYTES))
        return found

    def _bad(self, column: str, value: object, why: str, remedy: str) -> InvalidProfile:
        return InvalidProfile(
            field=f"{self.path.name}, line {self.place}, column {column}", value=value, why=why, remedy=remedy
        )


def _product(line: _Line, kind: Kind) -> Operator | None:
    if not line.has("rows", "columns", "inner"):
        return None
    dtype = line.dtype("dtype", "bfloat16")
    activations = line.dtype("activation_dtype", _activations(dtype))
    return Gemm(kind, line.whole("rows"), line.whole("columns"), line.whole("inner"), dtype, activations)


def _prefill(line: _Line, kind: Kind) -> Operator | None:
    if not line.has(*_ATTENTION):
        return None
    return PrefillAttention(line.whole("rows"), line.whole("past", 0), *_heads(line), None, *_attention_types(line))


def _decode(line: _Line, kind: Kind) -> Operator | None:
    if not line.has("context", *_ATTENTION) or line.number("chunk", 0.0):
        return None
    rows = line.whole("rows")
    return DecodeAttention(rows, rows * line.whole("context"), *_heads(line), None, *_attention_types(line))


def _experts(line: _Line, kind: Kind) -> Operator | None:
    if not line.has("rows", "hidden", "intermediate", "experts", "experts_per_token"):
        return None
    dtype = line.dtype("dtype", "bfloat16")
    return Experts(
        line.whole("rows"), line.whole("hidden"), line.whole("intermediate"), line.whole("experts"),
        line.whole("experts_per_token"), line.whole("tensor_parallel", 1), line.whole("expert_parallel", 1),
        dtype=dtype, activation_dtype=line.dtype("activation_dtype", _activations(dtype)),
    )  # fmt: skip


def _collective(line: _Line, kind: Kind) -> Operator | None:
    if not line.has("bytes", "ranks"):
        return None
    return Collective(kind, line.number("bytes"), line.whole("ranks"), line.whole("nodes", 1))  # type: ignore[arg-type]


def _plain(line: _Line, kind: Kind) -> Operator | None:
    if not line.has("rows", "read_bytes", "written_bytes"):
        return None
    return Elementwise(kind, line.number("read_bytes"), line.number("written_bytes"), rows=line.whole("rows"))


_MAKERS: Final[Mapping[str, Callable[[_Line, Kind], Operator | None]]] = {
    "attention_prefill": _prefill, "attention_decode": _decode, "experts": _experts,
}  # fmt: skip


def _heads(line: _Line) -> tuple[int, int, int]:
    return line.whole("heads"), line.whole("kv_heads"), line.whole("head_dim")


def _attention_types(line: _Line) -> tuple[str, str]:
    dtype = line.dtype("dtype", "bfloat16")
    return dtype, line.dtype("kv_dtype", dtype)


def _activations(weights: str) -> str:
    return "float32" if weights == "float32" else "bfloat16"


def _kind(text: str) -> Kind:
    return text  # type: ignore[return-value]
