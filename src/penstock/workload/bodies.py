"""What generated requests ask, apart from when: lengths, shared prefix, tenant, priority, whether the user leaves.

Drawn in batches, each purpose from its own generator, so a longer run begins with the same requests as a shorter one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Protocol, TypeVar

import numpy as np

from penstock.errors import BadInput
from penstock.workload.plan import Workload
from penstock.workload.source import SOURCE_BLOCK_TOKENS
from penstock.workload.trace import Trace

BATCH: Final = 4096
_SHARED, _MARKS = 11, (12, 13, 14)
SHARED_IDS: Final = 1 << 56
"""Ids of shared prefixes begin here, above those of sessions, whatever their number."""

T = TypeVar("T")

Body = tuple[int, int, "tuple[int, ...] | None", str, int, int]
"""(prompt tokens, output tokens, prefix, tenant, priority, cancel_tokens), the fields of a TimedRequest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SharedPrefix:
    """Text that many prompts begin with, such as a system prompt. It comes in front of the prompt's own tokens."""

    tokens: int
    share: float = 1.0
    """Share of the requests that begin with one."""
    groups: int = 1
    """Number of different prefixes, each equally likely."""

    def __post_init__(self) -> None:
        _check("shared_prefix.tokens", self.tokens, self.tokens >= 0, "it must not be negative", "such as 256")
        _check("shared_prefix.share", self.share, 0 <= self.share <= 1, "a share lies in 0 to 1", "such as 0.5")
        _check("shared_prefix.groups", self.groups, self.groups >= 1, "there must be one at least", "such as 1")

    def prefix(self, group: int) -> tuple[int, ...]:
        """Ids of its whole blocks."""
        blocks = self.tokens // SOURCE_BLOCK_TOKENS
        return tuple(range(SHARED_IDS + group * blocks, SHARED_IDS + (group + 1) * blocks))


Columns = tuple[list[str], list[int], list[int]]
BodyColumns = tuple[list[int], list[int], "list[tuple[int, ...] | None]", list[str], list[int], list[int]]
"""Many bodies: a list of each field."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """Who asks and how patient they are. Shares in `tenants` and `priorities` need not add up to 1."""

    tenants: Mapping[str, float] = field(default_factory=dict)
    priorities: Mapping[int, float] = field(default_factory=dict)
    cancel_fraction: float = 0.0
    """Share of requests whose user leaves after some of the tokens: any number of them from 1 is equally likely."""

    def __post_init__(self) -> None:
        share = self.cancel_fraction
        _check("cancel_fraction", share, 0 <= share <= 1, "a share lies in 0 to 1", "such as 0.05")
        for name, weights in (("tenants", self.tenants), ("priorities", self.priorities)):
            for key, weight in weights.items():
                _check(f"{name}.{key}", weight, 0 < weight < float("inf"), "a share must be positive", "such as 1")

    def drawer(self, seed: int) -> Callable[[list[int]], Columns]:
        """Draws (tenants, priorities, cancel_tokens) for the output lengths of one batch after another."""
        tenants, priorities, cancels = (np.random.default_rng([seed, purpose]) for purpose in _MARKS)

        def draw(outputs: list[int]) -> Columns:
            count = len(outputs)
            return (
                _chosen(self.tenants, "", count, tenants),
                _chosen(self.priorities, 0, count, priorities),
                _cuts(outputs, self.cancel_fraction, cancels),
            )

        return draw


class BodySource(Protocol):
    """A stream of bodies; the loops put times to them."""

    @property
    def seed(self) -> int: ...

    @property
    def block_tokens(self) -> int:
        """Tokens one id of a prefix stands for."""
        ...

    def batches(self) -> Iterator[BodyColumns]:
        """From the first one on, the same each time, in batches of any size."""
        ...

    def draw(self) -> Iterator[Body]:
        """The same one by one."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Bodies:
    """The law of one request's content."""

    lengths: Workload
    shared: SharedPrefix | None = None
    marks: Marks = field(default_factory=Marks)
    seed: int = 0

    @property
    def block_tokens(self) -> int:
        return SOURCE_BLOCK_TOKENS

    def draw(self) -> Iterator[Body]:
        return _one_by_one(self.batches())

    def batches(self) -> Iterator[BodyColumns]:
        """Without end. About half a microsecond each."""
        draw_marks = self.marks.drawer(self.seed)
        draw_shared = np.random.default_rng([self.seed, _SHARED])
        for prompts, outputs in self.lengths.batches(self.seed, BATCH):
            prefixes: list[tuple[int, ...] | None] = [None] * BATCH
            if self.shared is not None and self.shared.tokens:
                groups = _groups(self.shared, draw_shared)
                known = {group: self.shared.prefix(group) for group in set(groups) if group >= 0}
                prefixes = [known.get(group) for group in groups]
                more = self.shared.tokens
                prompts = [own + (more if group >= 0 else 0) for own, group in zip(prompts, groups, strict=True)]
            yield prompts, outputs, prefixes, *draw_marks(outputs)


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceBodies:
    """The rows of a trace in their order, once, whatever their times; `marks` adds what traces do not tell."""

    trace: Trace
    marks: Marks = field(default_factory=Marks)
    seed: int = 0

    @property
    def block_tokens(self) -> int:
        return self.trace.block_tokens

    def draw(self) -> Iterator[Body]:
        return _one_by_one(self.batches())

    def batches(self) -> Iterator[BodyColumns]:
        draw_marks = self.marks.drawer(self.seed)
        rows = iter(self.trace.requests)
        while batch := list(itertools.islice(rows, BATCH)):
            outputs = [row.output_tokens for row in batch]
            prompts = [row.prompt_tokens for row in batch]
            prefixes = [row.prefix_blocks or None for row in batch]
            yield prompts, outputs, prefixes, *draw_marks(outputs)


def _one_by_one(batches: Iterator[BodyColumns]) -> Iterator[Body]:
    for columns in batches:
        yield from zip(*columns, strict=True)


def _groups(shared: SharedPrefix, generator: np.random.Generator) -> list[int]:
    """Which prefix each request begins with; -1 for none."""
    groups = generator.integers(0, shared.groups, BATCH)
    return [int(group) for group in np.where(generator.random(BATCH) < shared.share, groups, -1)]


def _chosen(weights: Mapping[T, float], default: T, count: int, generator: np.random.Generator) -> list[T]:
    if not weights:
        return [default] * count
    names = list(weights)
    shares = np.array(list(weights.values()), dtype=np.float64)
    return [names[which] for which in generator.choice(len(names), count, p=shares / shares.sum()).tolist()]


def _cuts(outputs: list[int], fraction: float, generator: np.random.Generator) -> list[int]:
    if not fraction:
        return [0] * len(outputs)
    # A cut at the last token would be no cut: it lies in 1 to n - 1, and a request of one token stays whole.
    lengths = np.array(outputs, dtype=np.int64)
    cuts = 1 + np.floor(generator.random(len(outputs)) * (lengths - 1)).astype(np.int64)
    cut: list[int] = np.where((generator.random(len(outputs)) < fraction) & (lengths > 1), cuts, 0).tolist()
    return cut


def _check(name: str, value: object, holds: bool, why: str, remedy: str) -> None:
    if not holds:
        raise BadInput(field=f"workload.{name}", value=value, why=why, remedy=remedy)
