"""A ServeGen pool on disk: two Parquet tables in long form.

    NAME-trace.parquet     chunk, timestamp_s, rate (requests/s), pattern (Gamma or Weibull), arg1 (shape)
    NAME-dataset.parquet   chunk, window_s, field, value, prob

A chunk is a client. A client whose lengths are missing borrows those of the client with the most similar mean rate.
The scale of the gap law (arg2) and its cv are not read: rate and shape fix both.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from penstock.errors import BadInput

WINDOW_S: Final = 600.0
_TRACE, _DATASET = "-trace.parquet", "-dataset.parquet"
_TRACE_COLUMNS: Final = ("chunk", "timestamp_s", "rate", "pattern", "arg1")
_DATASET_COLUMNS: Final = ("chunk", "window_s", "field", "value", "prob")
_PATTERNS: Final = ("Gamma", "Weibull")

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Table = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Law:
    """One client in one window."""

    rate: float
    """Requests per second."""
    shape: float
    gamma: bool
    """Gamma gaps, else Weibull."""


@dataclass(frozen=True, slots=True)
class Distribution:
    """Values and their cumulative probabilities."""

    values: Ints
    shares: Floats

    def draw(self, count: int, generator: np.random.Generator) -> Ints:
        at = np.searchsorted(self.shares, generator.random(count) * self.shares[-1], side="right")
        drawn: Ints = self.values[np.minimum(at, self.values.size - 1)]
        return drawn


@dataclass(slots=True)
class ClientLengths:
    """Length distributions of a client: field -> (ascending begins of the windows in s, one distribution each)."""

    fields: dict[str, tuple[list[float], list[Distribution]]] = field(default_factory=dict)

    def draw(self, time_s: float, count: int, generator: np.random.Generator) -> tuple[Ints, Ints]:
        """([count] prompt tokens, [count] output tokens), each at least 1."""
        outputs = self._one("output_tokens", time_s, count, generator)
        if "input_tokens" in self.fields:
            prompts = self._one("input_tokens", time_s, count, generator)
        else:
            prompts = self._one("text_tokens", time_s, count, generator)
            if "image_count" in self.fields and "image_tokens" in self.fields:
                images = self._one("image_count", time_s, count, generator)
                tokens = self._one("image_tokens", time_s, int(images.sum()), generator)
                sums = np.concatenate([[0], np.cumsum(tokens)])
                ends = np.cumsum(images)
                prompts = prompts + sums[ends] - sums[ends - images]
        return np.maximum(prompts, 1), np.maximum(outputs, 1)

    def _one(self, name: str, time_s: float, count: int, generator: np.random.Generator) -> Ints:
        """From the window that `time_s` lies in, or the nearest one before, or the first."""
        begins, laws = self.fields[name]
        return laws[max(0, bisect_right(begins, time_s) - 1)].draw(count, generator)

    @property
    def complete(self) -> bool:
        return "output_tokens" in self.fields and ("input_tokens" in self.fields or "text_tokens" in self.fields)


@dataclass(frozen=True, slots=True)
class Client:
    """A client: its laws by begin of window in whole seconds, and its lengths."""

    number: int
    laws: dict[int, Law]
    lengths: ClientLengths

    @property
    def requests(self) -> float:
        """Implied by all windows together."""
        return sum(law.rate for law in self.laws.values()) * WINDOW_S


@dataclass(frozen=True, slots=True)
class Pool:
    """All clients, by number."""

    name: str
    clients: tuple[Client, ...]
    notes: tuple[str, ...] = ()

    @property
    def end_s(self) -> float:
        return max(max(client.laws) for client in self.clients) + WINDOW_S

    def rate(self, begin_s: float, end_s: float) -> float:
        """Mean requests per second of the windows that touch [begin_s, end_s)."""
        first, last = int(begin_s // WINDOW_S), max(int(begin_s // WINDOW_S) + 1, int(-(-end_s // WINDOW_S)))
        begins = range(first * int(WINDOW_S), last * int(WINDOW_S), int(WINDOW_S))
        rates = (client.laws[begin].rate for client in self.clients for begin in begins if begin in client.laws)
        return sum(rates) / len(begins)


def read_pool(path: Path) -> Pool:
    """Raises BadInput: no pyarrow, unreadable or wrong files; names file, row, column, value and remedy."""
    if not path.name.endswith(_TRACE):
        raise BadInput(
            field="workload.trace", value=str(path), why=f"a ServeGen pool is a file whose name ends in {_TRACE}",
            remedy=f"NAME{_TRACE} with NAME{_DATASET} beside it",
        )  # fmt: skip
    laws = _laws(path, _table(path, _TRACE_COLUMNS))
    beside = path.with_name(path.name.removesuffix(_TRACE) + _DATASET)
    lengths = _lengths(beside, _table(beside, _DATASET_COLUMNS))
    return _joined(path, laws, lengths)


def _table(path: Path, columns: tuple[str, ...]) -> Table:
    """Columns as numpy arrays, texts as (codes, names)."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise BadInput(
            field="workload.trace", value=str(path), why="reading Parquet files needs pyarrow",
            remedy="pip install 'penstock[parquet]'",
        ) from None  # fmt: skip
    try:
        table = pq.read_table(path, columns=list(columns))
    except (OSError, pa.ArrowException, KeyError) as error:
        raise BadInput(
            field=str(path), value=path.name, why=f"it cannot be read: {error}",
            remedy="a ServeGen table with the columns " + ", ".join(columns),
        ) from None  # fmt: skip
    missing = [name for name in columns if name not in table.column_names]
    if missing or not table.num_rows:
        raise BadInput(
            field=str(path), value=", ".join(table.column_names), why="no rows" if not missing else "columns missing",
            remedy="a ServeGen table with the columns " + ", ".join(columns),
        )  # fmt: skip
    found: Table = {}
    for name in columns:
        column = table.column(name)
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
            coded = column.combine_chunks().dictionary_encode()
            found[name] = (coded.indices.to_numpy(zero_copy_only=False), coded.dictionary.to_pylist())
        elif pa.types.is_dictionary(column.type):
            coded = column.unify_dictionaries().combine_chunks()
            found[name] = (coded.indices.to_numpy(zero_copy_only=False), coded.dictionary.to_pylist())
        else:
            found[name] = column.to_numpy()
    return found


def _laws(path: Path, table: Table) -> dict[int, dict[int, Law]]:
    codes, names = table["pattern"]
    rates, shapes = table["rate"].astype(np.float64), table["arg1"].astype(np.float64)
    known = np.array([name in _PATTERNS for name in names])
    _refuse(
        path, "rate", rates, ~(np.isfinite(rates) & (rates >= 0)), "a rate must be 0 or more", "requests per second"
    )
    _refuse(path, "pattern", np.array(names)[codes], ~known[codes], "no such law of gaps", " or ".join(_PATTERNS))
    _refuse(path, "arg1", shapes, ~(np.isfinite(shapes) & (shapes > 0)), "a shape must be positive", "such as 1")
    gammas = np.array([name == "Gamma" for name in names])[codes]
    laws: dict[int, dict[int, Law]] = {}
    rows = zip(
        table["chunk"].tolist(), table["timestamp_s"].tolist(), rates.tolist(), shapes.tolist(), gammas.tolist(),
        strict=True,
    )  # fmt: skip
    for chunk, time_s, rate, shape, gamma in rows:
        if rate:
            laws.setdefault(chunk, {})[int(time_s)] = Law(rate, shape, gamma)
    return laws


def _lengths(path: Path, table: Table) -> dict[int, ClientLengths]:
    codes, names = table["field"]
    shares, values = table["prob"].astype(np.float64), table["value"].astype(np.float64)
    _refuse(path, "prob", shares, ~(shares >= 0), "a probability must be 0 or more", "such as 0.01")
    chunks, windows = table["chunk"].astype(np.int64), table["window_s"].astype(np.int64)
    order = np.lexsort((values, windows, codes, chunks))
    keys = np.stack([chunks, codes, windows])[:, order]
    starts = np.flatnonzero(np.concatenate([[True], (np.diff(keys, axis=1) != 0).any(axis=0)]))
    whole = np.rint(values[order]).astype(np.int64)
    ordered = shares[order]
    lengths: dict[int, ClientLengths] = {}
    for begin, end in zip(starts, [*starts[1:], whole.size], strict=True):
        chunk, code, window = (int(key) for key in keys[:, begin])
        total = np.cumsum(ordered[begin:end])
        if total[-1] > 0:
            begins, laws = lengths.setdefault(chunk, ClientLengths()).fields.setdefault(names[code], ([], []))
            begins.append(float(window))
            laws.append(Distribution(whole[begin:end], total))
    return lengths


def _joined(path: Path, laws: dict[int, dict[int, Law]], lengths: dict[int, ClientLengths]) -> Pool:
    own = {chunk: lengths[chunk] for chunk in laws if chunk in lengths and lengths[chunk].complete}
    if not own:
        raise BadInput(
            field=str(path), value=len(laws), why="no client has both traffic and lengths",
            remedy="the trace and dataset tables of the same pool",
        )  # fmt: skip
    traffic = {chunk: sum(law.rate for law in windows.values()) for chunk, windows in laws.items()}
    clients, borrowed = [], 0.0
    for chunk in sorted(laws):
        lender = chunk if chunk in own else min(own, key=lambda other: (abs(traffic[other] - traffic[chunk]), other))
        borrowed += traffic[chunk] * (chunk != lender)
        clients.append(Client(chunk, laws[chunk], own[lender]))
    notes = [f"drawn from the ServeGen pool {path.name}: {len(clients)} clients"]
    if borrowed:
        share = borrowed / sum(traffic.values())
        notes.append(f"{share:.0%} of its traffic has no lengths of its own: those of the client with the nearest rate")
    return Pool(path.name, tuple(clients), tuple(notes))


def _refuse(path: Path, column: str, values: NDArray[Any], bad: NDArray[np.bool_], why: str, remedy: str) -> None:
    rows = np.flatnonzero(bad)
    if rows.size:
        row = int(rows[0])
        raise BadInput(field=f"{path}: row {row + 1} {column}", value=values[row].item(), why=why, remedy=remedy)
