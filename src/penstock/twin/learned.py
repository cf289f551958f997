"""The fourth price: regression over measured operators, between and a little beyond the shapes that were measured.

What is learned is not time but how far an operator stays behind the device's limits: the log of its seconds over
(shortest kernel + FLOP / peak + bytes / bandwidth). Beyond its training data the trees are flat, so the price goes on
with the limits' own slope. Two guards: never below the roofline, and never cheaper than the same operator with fewer
rows, a shorter inner width or a shorter context.

The lesson of GPPerf (arXiv 2411.16954), whose forest scored R^2 0.98 because 448 rows shared each of its 36 shapes: a
random split tests repeats. `validate` reports it beside a split that holds out whole shapes, which is what a new model
asks for. A model is stored as JSON: numbers only, nothing that runs.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Final

import numpy as np

from penstock.catalog.device import Device
from penstock.errors import BadInput
from penstock.twin.boosted import Floats, Growth, Trees, grow
from penstock.twin.operators import (
    Collective,
    DecodeAttention,
    Experts,
    Gemm,
    LatentDecode,
    LatentPrefill,
    Operator,
    PrefillAttention,
)
from penstock.twin.price import Estimate, OperatorPrice
from penstock.twin.roofline import COMPUTED_AS, matrix_rate, memory_rate

FORMAT: Final = "penstock-learned/1"
Point = tuple[Operator, float]
"""An operator and its measured seconds."""
_TILE: Final = 128
_LEAST_INNER: Final = 64
"""Halving an inner width stops here."""
_MEMORY: Final = 500_000
"""Predictions kept before all are forgotten."""
_GROWS_WITH: Final[dict[type, tuple[str, ...]]] = {
    Gemm: ("rows", "inner"), PrefillAttention: ("tokens", "past"), LatentPrefill: ("tokens", "past"),
    DecodeAttention: ("context",), LatentDecode: ("context",), Experts: ("tokens",), Collective: ("bytes",),
}  # fmt: skip
"""In which of its sizes an operator's price never falls when they double."""
_SHAPE: Final[dict[type, tuple[str, ...]]] = {
    Gemm: ("columns", "inner"), Experts: ("hidden", "intermediate", "experts", "experts_per_token"),
    PrefillAttention: ("heads", "kv_heads", "head_dim"), DecodeAttention: ("heads", "kv_heads", "head_dim"),
    LatentPrefill: ("heads", "kv_rank"), LatentDecode: ("heads", "kv_rank"), Collective: ("ranks", "nodes"),
}  # fmt: skip
"""What another model would change: held out together in the grouped split."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The device's, for the lower bound."""

    flop_per_s: Mapping[str, float]
    """By the weights' type."""
    memory_bytes_per_s: float
    link_bytes_per_s: float = 0.0

    @classmethod
    def of(cls, device: Device) -> Limits:
        link = device.scale_up
        return cls(
            {dtype: matrix_rate(device, dtype, ideal=True) for dtype in COMPUTED_AS},
            memory_rate(device, ideal=True),
            0.0 if link is None else link.bytes_per_s.value,
        )

    def parts(self, operator: Operator) -> tuple[float, float, float]:
        """Seconds that FLOP, memory and link each need at least."""
        work, dtype = operator.work(), getattr(operator, "dtype", None)
        rate = max(self.flop_per_s.values()) if dtype is None else self.flop_per_s[dtype]
        link = work.link_bytes / self.link_bytes_per_s if self.link_bytes_per_s else 0.0
        return work.flop / rate, work.bytes / self.memory_bytes_per_s, link


@dataclass(frozen=True, slots=True)
class Scores:
    """How well one family is predicted, by cross-validation: R^2 of seconds, and median absolute percentage error."""

    points: int
    shapes: int
    random_r2: float
    grouped_r2: float
    random_error: float
    grouped_error: float


@dataclass(frozen=True, slots=True)
class Family:
    """Trees for one kind of operator in one combination of types."""

    trees: Trees
    floor_s: float
    """Shortest time seen: what a kernel takes that has next to nothing to do."""
    seen: frozenset[tuple[float, ...]]
    """Sizes of the training points."""


class Learned:
    """A price learned from measured points (OperatorPrice).

    Args:
        limits: of the device the points are from.
        families: by `family_of`.
        fallback: prices operators of families without data; its estimates carry its own name.
        scores: what `validate` said when it was trained.
        trained_on: name of the device.
    """

    name = "learned"

    def __init__(
        self, limits: Limits, families: Mapping[str, Family], fallback: OperatorPrice,
        scores: Mapping[str, Scores] | None = None, trained_on: str = "",
    ) -> None:  # fmt: skip
        self.limits, self.families, self.fallback = limits, dict(families), fallback
        self.scores = dict(scores or {})
        self.trained_on = trained_on
        self._known: dict[Operator, float] = {}

    def price(self, operator: Operator) -> Estimate:
        """Seconds of one run. Basis: measured for a shape that was in the training data, else extrapolated."""
        family = self.families.get(family_of(operator))
        if family is None:
            return self.fallback.price(operator)
        seconds = self._seconds(family, _smaller(operator))
        known = tuple(sizes(operator)) in family.seen
        return Estimate(
            max(seconds, *self.limits.parts(operator)), self.name, "measured" if known else "extrapolated"
        )  # fmt: skip

    def _seconds(self, family: Family, smaller: list[Operator]) -> float:
        """The most of several predictions; those of other calls are kept, since their halves are often the same."""
        known = self._known
        if missing := [operator for operator in smaller if operator not in known]:
            if len(known) > _MEMORY:
                known.clear()
                missing = smaller
            known.update(zip(missing, _predict(family, self.limits, missing).tolist(), strict=True))
        return max(known[operator] for operator in smaller)

    # -- on disk ----------------------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        data = {
            "format": FORMAT,
            "device": self.trained_on,
            "limits": {**asdict(self.limits), "flop_per_s": dict(self.limits.flop_per_s)},
            "families": {
                name: {"floor_s": one.floor_s, "seen": sorted(one.seen), "trees": one.trees.as_json()}
                for name, one in sorted(self.families.items())
            },
            "scores": {name: asdict(one) for name, one in sorted(self.scores.items())},
        }
        path.write_text(json.dumps(data, separators=(",", ":")), encoding="utf-8")

    @classmethod
    def load(cls, path: Path, fallback: OperatorPrice) -> Learned:
        """Read what `save` wrote.

        Raises:
            BadInput: the file is missing, not of this format, or damaged.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            if data["format"] != FORMAT:
                raise ValueError(f"its format is {data['format']!r}, not {FORMAT!r}")
            families = {
                name: Family(
                    Trees.from_json(one["trees"], _feature_count(one["seen"], name)), float(one["floor_s"]),
                    frozenset(map(tuple, one["seen"])),
                )
                for name, one in data["families"].items()
            }  # fmt: skip
            scores = {name: Scores(**one) for name, one in data["scores"].items()}
            return cls(Limits(**data["limits"]), families, fallback, scores, str(data.get("device", "")))
        except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
            raise BadInput(
                field="twin.data", value=str(path), why=f"it is no learned price: {error}",
                remedy="a file that `penstock learn` wrote",
            ) from None  # fmt: skip


def train(
    points: Iterable[Point], device: Device, fallback: OperatorPrice, *, growth: Growth | None = None, folds: int = 5,
    seed: int = 0, on_family: Callable[[str, int, int], None] | None = None,
) -> Learned:  # fmt: skip
    """Learn from measured points; several for the same operator are averaged.

    Args:
        folds: of the cross-validation whose scores the result carries; 0: none (it costs 2 x folds fits).
        on_family: told before each family is begun: its name, points done and points in all.
    Raises:
        BadInput: there are no points, or one that is not positive.
    """
    limits, by_family = Limits.of(device), _by_family(points)
    families: dict[str, Family] = {}
    scores: dict[str, Scores] = {}
    done, total = 0, sum(map(len, by_family.values()))
    for name, family in sorted(by_family.items()):
        if on_family is not None:
            on_family(name, done, total)
        done += len(family)
        families[name] = Family(
            _fit(family, limits, growth),
            min(seconds for _, seconds in family),
            frozenset(tuple(sizes(operator)) for operator, _ in family),
        )
        if folds and len({shape_of(operator) for operator, _ in family}) >= folds:
            scores[name] = _score(family, limits, growth, folds, seed)
    return Learned(limits, families, fallback, scores, device.name)


def validate(
    points: Iterable[Point], device: Device, *, growth: Growth | None = None, folds: int = 5, seed: int = 0,
    group: Callable[[Operator], tuple[float, ...]] | None = None,
) -> dict[str, Scores]:  # fmt: skip
    """Cross-validation by family, at random and by whole shapes (`group`, default `shape_of`)."""
    limits = Limits.of(device)
    return {
        name: _score(family, limits, growth, folds, seed, group or shape_of)
        for name, family in sorted(_by_family(points).items())
    }


def family_of(operator: Operator) -> str:
    """Type of operator and every name it carries but a product's place in the layer, which does not change its time.

    >>> family_of(Gemm("down", 8, 4096, 11008, "fp8"))
    'Gemm/fp8/bfloat16'
    """
    names = [
        str(value)
        for field, value in _values(operator)
        if isinstance(value, str) and not (field == "kind" and isinstance(operator, Gemm))
    ]
    return "/".join([type(operator).__name__, *names])


def sizes(operator: Operator) -> list[float]:
    """Its numbers, in the order of its fields; what is not given counts as 0."""
    return [float(value or 0) for _, value in _values(operator) if not isinstance(value, str)]


def shape_of(operator: Operator) -> tuple[float, ...]:
    """What belongs to the model and not to the batch: the weights' widths, the heads."""
    chosen = _SHAPE.get(type(operator))
    return tuple(sizes(operator)) if chosen is None else tuple(float(getattr(operator, name)) for name in chosen)


# -- features and fitting -------------------------------------------------------------------------------------------


def _values(operator: Operator) -> list[tuple[str, Any]]:
    return [(name, getattr(operator, name)) for name in type(operator).__dataclass_fields__]


def _features(operator: Operator, limits: Limits) -> list[float]:
    """log2 of every size, of the limits' times and their ratio, and what tiles of 128 waste and count."""
    numbers = sizes(operator)
    compute, memory, link = (part + 1e-12 for part in limits.parts(operator))
    row = [*(number + 1.0 for number in numbers), compute, memory, link, compute / memory]
    if isinstance(operator, Gemm):
        tall, wide = -(-operator.rows // _TILE), -(-operator.columns // _TILE)
        row += [tall * wide, _TILE * tall / max(1, operator.rows), _TILE * wide / max(1, operator.columns)]
    logs: list[float] = np.log2(row).tolist()
    return logs


def _feature_count(seen: Sequence[Sequence[float]], name: str) -> int:
    return len(seen[0]) + 4 + (3 if name.startswith("Gemm/") else 0)


def _base(operators: Sequence[Operator], limits: Limits, floor_s: float) -> Floats:
    """[N] seconds that the trees correct by a factor."""
    return np.asarray([floor_s + sum(limits.parts(operator)) for operator in operators])


def _predict(family: Family, limits: Limits, operators: Sequence[Operator]) -> Floats:
    """[N] seconds, unguarded."""
    rows = np.asarray([_features(operator, limits) for operator in operators])
    return _base(operators, limits, family.floor_s) * np.exp(family.trees.predict(rows))


def _smaller(operator: Operator) -> list[Operator]:
    """The operator and all that come of halving, again and again, the sizes its price must not fall with."""
    chains: list[list[tuple[str, Any]]] = []
    for name in _GROWS_WITH.get(type(operator), ()):
        value = getattr(operator, name)
        least = {"context": getattr(operator, "sequences", 1), "past": 0, "inner": _LEAST_INNER}.get(name, 1)
        if name == "inner":  # below the least it is priced as the least, or twice as much could be cheaper
            value = max(value, least)
        chain = [(name, value)]
        while value > least and value // 2 >= least:
            value = value // 2 if isinstance(value, int) else value / 2
            chain.append((name, value))
        if name == "inner" and value > least:
            chain.append((name, least))
        chains.append(chain)
    smaller: list[dict[str, Any]] = [dict(changes) for changes in product(*chains)]
    return [replace(operator, **changes) for changes in smaller]


def _by_family(points: Iterable[Point]) -> dict[str, list[Point]]:
    times: dict[Operator, list[float]] = defaultdict(list)
    for operator, seconds in points:
        if not 0.0 < seconds < float("inf"):
            raise BadInput(
                field="seconds", value=seconds, why=f"{operator} cannot take so long", remedy="positive, finite seconds"
            )
        times[operator].append(seconds)
    if not times:
        raise BadInput(field="points", value=[], why="there is nothing to learn from", remedy="measured operators")
    families: dict[str, dict[tuple[float, ...], tuple[Operator, list[float]]]] = defaultdict(dict)
    for operator, each in times.items():
        # Products that differ by their place in the layer alone are one.
        _, kept = families[family_of(operator)].setdefault(tuple(sizes(operator)), (operator, []))
        kept += each
    return {
        name: [(operator, sum(each) / len(each)) for operator, each in known.values()]
        for name, known in families.items()
    }


def _fit(points: Sequence[Point], limits: Limits, growth: Growth | None, floor_s: float | None = None) -> Trees:
    operators, seconds = [operator for operator, _ in points], np.asarray([seconds for _, seconds in points])
    floor = float(seconds.min()) if floor_s is None else floor_s
    rows = np.asarray([_features(operator, limits) for operator in operators])
    return grow(rows, np.log(seconds / _base(operators, limits, floor)), growth)


def _score(
    points: Sequence[Point], limits: Limits, growth: Growth | None, folds: int, seed: int,
    group: Callable[[Operator], tuple[float, ...]] = shape_of,
) -> Scores:  # fmt: skip
    chance = np.random.default_rng(seed)
    truth = np.asarray([seconds for _, seconds in points])
    shapes = {shape: index for index, shape in enumerate(sorted({group(operator) for operator, _ in points}))}
    fold_of_shape = chance.permutation(len(shapes)) % folds
    by_shape = np.asarray([fold_of_shape[shapes[group(operator)]] for operator, _ in points])
    at_random = chance.permutation(len(points)) % folds
    results = []
    for fold_N in (at_random, by_shape):
        guess = np.empty(len(points))
        for fold in range(folds):
            held = np.flatnonzero(fold_N == fold)
            if not len(held) or len(held) == len(points):
                raise BadInput(
                    field="folds", value=folds, why=f"{len(shapes)} shapes and {len(points)} points are too few",
                    remedy="fewer folds, or more shapes",
                )  # fmt: skip
            kept = [points[index] for index in np.flatnonzero(fold_N != fold).tolist()]
            family = Family(_fit(kept, limits, growth), min(seconds for _, seconds in kept), frozenset())
            asked = [points[index][0] for index in held.tolist()]
            bound = np.asarray([max(limits.parts(operator)) for operator in asked])
            guess[held] = np.maximum(_predict(family, limits, asked), bound)
        spread = float(((truth - truth.mean()) ** 2).sum())
        left = float(((guess - truth) ** 2).sum())
        results.append((1.0 - left / spread if spread else 1.0, float(np.median(np.abs(guess / truth - 1.0)))))
    (random_r2, random_error), (grouped_r2, grouped_error) = results
    return Scores(len(points), len(shapes), random_r2, grouped_r2, random_error, grouped_error)
