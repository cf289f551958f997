"""Prices from one deployment's own kernel profile, read from an open format.

The format is CSV or Parquet, one measured operator a line, columns in any order:

    operator   a kind of twin/operators.py: qkv, out_proj, gate_up, down, lm_head, norm, rope, activation, sampler, ...,
               attention_prefill, attention_decode, experts, all_reduce, all_gather, reduce_scatter, all_to_all
    seconds    of one run on one device; `us` or `ms` may stand instead
    rows       tokens in it (products, norms, sampler); sequences of attention_decode; tokens of experts
    columns, inner, dtype   of a product. Left blank: whatever this kind of product is in the profiled model
    past       attention_prefill: tokens whose KV was there already (0)
    context    attention_decode: KV tokens of each sequence
    chunk      attention_decode in one call with a prompt chunk of so many tokens: `seconds` are what it adds to the
               chunk alone. Left blank: decodes alone
    heads, kv_heads, head_dim   of attention. Left blank: those of the profiled model
    active     experts: how many got a token
    bytes, ranks   of a collective: its message

What a profile does not hold goes to the fallback price. `penstock learn` reads the same files; it wants the sizes that
may be left blank here, and a few columns more (`learnable.py`). Other tools' profiles have readers of their own
(`layerwise.py`), which give the same object.
"""

from __future__ import annotations

import bisect
import csv
import gzip
import io
import math
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from penstock.errors import BadInput
from penstock.twin.measured.curves import Curve, Products, Surface
from penstock.twin.measured.database import read_table
from penstock.twin.operators import (
    Collective,
    DecodeAttention,
    Elementwise,
    Experts,
    Gemm,
    Kind,
    Operator,
    PrefillAttention,
)
from penstock.twin.price import Estimate, OperatorPrice

Shape = tuple[int, int, int] | None
"""(heads, KV heads, head width); None: of the profiled model, whatever it is asked for."""


class InvalidProfile(BadInput):
    """A profile file that cannot be read: says file, line and column."""


@dataclass(frozen=True, slots=True)
class Points:
    """What a profile file holds, in seconds, before it becomes curves."""

    rows: dict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))
    """Kind to (tokens, seconds): one layer of the profiled model."""
    products: dict[str, dict[tuple[int, int], list[tuple[float, float]]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(list))
    )
    """Weight type to (columns, inner) to (rows, seconds)."""
    prefill: dict[Shape, list[tuple[float, float, float]]] = field(default_factory=lambda: defaultdict(list))
    """(past, tokens, seconds)."""
    decode: dict[Shape, list[tuple[float, float, float]]] = field(default_factory=lambda: defaultdict(list))
    """(sequences, context of each, seconds)."""
    mixed: dict[int, list[tuple[float, float, float]]] = field(default_factory=lambda: defaultdict(list))
    """Decode attention in one call with a chunk of so many tokens: what it adds to the chunk alone."""
    experts: list[tuple[float, float, float]] = field(default_factory=list)
    """(experts that got a token, tokens, seconds)."""
    collectives: dict[tuple[str, int], list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))
    skew: list[tuple[float, float]] = field(default_factory=list)
    """(sequences, alpha): how far towards the longest context an uneven batch lies."""


class Profile:
    """Prices operators from the points of one profile.

    An uneven decode batch costs what an even one of its mean context does, and alpha of the way from there to one in
    which all are as long as the longest (taken as the expected largest of so many normal contexts with that spread).
    Source of the rule: LLMServingSim 2.0's profiler (MIT), skew.csv.
    """

    name = "measured"

    def __init__(self, points: Points, fallback: OperatorPrice) -> None:
        self._rows = {kind: Curve(found) for kind, found in points.rows.items()}
        self._products = {
            dtype: Products({key: Curve(found) for key, found in shapes.items()})
            for dtype, shapes in points.products.items()
        }
        self._prefill = {shape: Surface(found, log=True) for shape, found in points.prefill.items()}
        self._decode = {shape: Surface(found) for shape, found in points.decode.items()}
        self._mixed = {chunk: Surface(found) for chunk, found in sorted(points.mixed.items()) if found}
        self._mixed_sizes = list(self._mixed)
        self._experts = Surface(points.experts) if points.experts else None
        self._collectives = {key: Curve(found) for key, found in points.collectives.items()}
        self._alpha_sizes = [size for size, _ in sorted(points.skew)]
        self._alphas = [alpha for _, alpha in sorted(points.skew)]
        self.uses_spread = bool(self._alphas)
        self._fallback = fallback

    def price(self, operator: Operator) -> Estimate:
        """Seconds of one run of `operator`."""
        found: tuple[float, bool] | None = None
        if isinstance(operator, Gemm):
            found = self._gemm(operator)
        elif isinstance(operator, DecodeAttention):
            found = self._decoding(operator)
        elif isinstance(operator, PrefillAttention):
            surface = self._of(self._prefill, operator)
            found = surface.at(operator.past, operator.tokens) if surface is not None else None
        elif isinstance(operator, Experts):
            if self._experts is not None:
                # Profiled on one device: with experts spread, it computes its share of the tokens' choices.
                found = self._experts.at(operator.active_experts(), operator.tokens / operator.expert_parallel)
        elif isinstance(operator, Elementwise):
            curve = self._rows.get(operator.kind)
            found = curve.at(operator.rows) if curve is not None and operator.rows else None
        elif isinstance(operator, Collective) and operator.nodes == 1:
            curve = self._collectives.get((operator.kind, operator.ranks))
            found = curve.at(operator.bytes) if curve is not None else None
        if found is None:
            return self._fallback.price(operator)
        return Estimate(found[0], self.name, "measured" if found[1] else "extrapolated")

    def beside_chunk(self, operator: DecodeAttention, chunk_tokens: int) -> float | None:
        """Seconds of decode attention in one call with a prompt chunk: kernels for both at once have no variant for
        single queries, and take up to twice as long for them. None: not profiled."""
        if not self._mixed_sizes or not operator.sequences:
            return None
        mean, sizes = operator.context / operator.sequences, self._mixed_sizes
        at = min(max(1, bisect.bisect_left(sizes, chunk_tokens)), len(sizes) - 1) if len(sizes) > 1 else 0
        seconds = self._mixed[sizes[at]].at(operator.sequences, mean)[0]
        if at and chunk_tokens < sizes[at]:
            share = math.log(sizes[at] / max(chunk_tokens, sizes[at - 1])) / math.log(sizes[at] / sizes[at - 1])
            seconds += share * (self._mixed[sizes[at - 1]].at(operator.sequences, mean)[0] - seconds)
        return seconds + self._skew(operator)

    def _gemm(self, operator: Gemm) -> tuple[float, bool] | None:
        products = self._products.get(operator.dtype)
        if products is not None:
            return products.at(operator.rows, operator.columns, operator.inner)
        curve = self._rows.get(operator.kind)
        return curve.at(operator.rows) if curve is not None else None

    def _decoding(self, operator: DecodeAttention) -> tuple[float, bool] | None:
        surface = self._of(self._decode, operator)
        if surface is None or not operator.sequences:
            return None
        seconds, inside = surface.at(operator.sequences, operator.context / operator.sequences)
        return seconds + self._skew(operator), inside

    def _skew(self, operator: DecodeAttention) -> float:
        """What uneven contexts take more than even ones."""
        surface = self._of(self._decode, operator)
        if surface is None or not operator.spread or not self._alphas or operator.sequences < 2:
            return 0.0
        mean = operator.context / operator.sequences
        longest = mean * (1.0 + operator.spread * math.sqrt(2.0 * math.log(operator.sequences)))
        at = min(bisect.bisect_left(self._alpha_sizes, operator.sequences), len(self._alphas) - 1)
        ends = [surface.at(operator.sequences, length)[0] for length in (mean, longest)]
        return self._alphas[at] * (ends[1] - ends[0])

    @staticmethod
    def _of(surfaces: Mapping[Shape, Surface], operator: DecodeAttention | PrefillAttention) -> Surface | None:
        exact = surfaces.get((operator.heads, operator.kv_heads, operator.head_dim))
        return exact if exact is not None else surfaces.get(None)


def read_profile(path: Path, fallback: OperatorPrice) -> Profile:
    """A profile in the open format of this module. Raises InvalidProfile, which names file, line and column."""
    points = Points()
    for line, row in enumerate(profile_lines(path), start=2):
        _add(points, {key: value for key, value in row.items() if value not in (None, "")}, path, line)
    return profile_of(points, fallback, path)


def profile_of(points: Points, fallback: OperatorPrice, path: Path) -> Profile:
    """A profile of what was read from `path`. Raises InvalidProfile: an operator of which no line has a size and a time
    above zero."""
    try:
        return Profile(points, fallback)
    except ValueError as error:
        raise InvalidProfile(
            field="twin.data", value=str(path), why=str(error), remedy="sizes and times above zero for each operator"
        ) from None


def profile_lines(path: Path) -> Iterable[Mapping[str, Any]]:
    """Its lines by column, CSV (plain or .gz) or Parquet. Raises InvalidProfile: it cannot be read."""
    if path.suffix == ".parquet":
        return read_table(path)
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        return list(csv.DictReader(io.StringIO(raw.decode())))
    except (OSError, EOFError, zlib.error, UnicodeDecodeError, csv.Error) as broken:
        raise InvalidProfile(
            field="twin.data", value=str(path), why=str(broken), remedy="a CSV or Parquet file"
        ) from broken


def _add(points: Points, row: Mapping[str, Any], path: Path, line: int) -> None:
    def number(name: str, default: float | None = None) -> float:
        found = row.get(name, default)
        try:
            value = float(found)
        except (TypeError, ValueError):
            value = math.nan
        if not math.isfinite(value) or value < 0:
            raise InvalidProfile(
                field=f"{path.name}, line {line}, column {name}", value=found, why="not a number of 0 or more",
                remedy="a number",
            )  # fmt: skip
        return value

    kind = row.get("operator")
    if kind not in get_args(Kind):
        raise InvalidProfile(
            field=f"{path.name}, line {line}, column operator", value=kind, why="no such operator",
            remedy="one of " + ", ".join(get_args(Kind)),
        )  # fmt: skip
    scale = next((scale for name, scale in (("seconds", 1.0), ("ms", 1e-3), ("us", 1e-6)) if name in row), None)
    seconds = number("seconds" if scale is None else {1.0: "seconds", 1e-3: "ms", 1e-6: "us"}[scale]) * (scale or 1.0)
    shape: Shape = None
    if "heads" in row:
        shape = int(number("heads")), int(number("kv_heads")), int(number("head_dim"))
    if kind == "attention_prefill":
        points.prefill[shape].append((number("past", 0.0), number("rows"), seconds))
    elif kind == "attention_decode":
        point = number("rows"), number("context"), seconds
        if chunk := int(number("chunk", 0.0)):
            points.mixed[chunk].append(point)
        else:
            points.decode[shape].append(point)
    elif kind == "experts":
        points.experts.append((number("active"), number("rows"), seconds))
    elif "bytes" in row:
        points.collectives[str(kind), int(number("ranks"))].append((number("bytes"), seconds))
    elif "columns" in row:
        shapes = points.products[str(row.get("dtype", "bfloat16"))]
        shapes[int(number("columns")), int(number("inner"))].append((number("rows"), seconds))
    else:
        points.rows[str(kind)].append((number("rows"), seconds))
