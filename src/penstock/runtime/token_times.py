"""When each token of a simulated request came: kept where it is asked for, and put together at the end.

All that decode in a step of one scheduler get a token at its end. So the ends of its decode steps are kept once for all
of them, and of a request only where among them it began: a few numbers, however long its answer and its neighbours.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from penstock.report.simulation import Floats
from penstock.twin.twin import Row


class TokenTimes:
    """`stepped` takes what a collector's `on_step` is told, `first_token` what a cluster's `on_first` is."""

    def __init__(self, lanes: int) -> None:
        """`lanes`: schedulers; each rank of a replica counts."""
        self._ends = [array("d") for _ in range(lanes)]
        """Of each scheduler: when its decode set got the tokens of its first tick, its second, ..."""
        self._rows: dict[int, Row] = {}
        self._prompts: dict[int, list[tuple[int, float]]] = {}
        """Of each request: which token came at the end of its prompt, and when; again for each time it was evicted."""

    def stepped(self, lane: int, started: float, ended: float, decoding: int, chunks: int, tokens: int) -> None:
        """One step of a scheduler, in the order of time."""
        if decoding:
            self._ends[lane].append(ended)

    def first_token(self, row: Row, now: float) -> None:
        """A prompt is done, and a token came of it. The request joins the decode set after that, if at all."""
        if row.spells is None:
            row.spells = []
            self._rows[row.index] = row
            self._prompts[row.index] = []
        self._prompts[row.index].append((row.outputs, now))

    def columns(
        self, indices: Iterable[int], lanes: Iterable[int], made: Iterable[int]
    ) -> tuple[Floats, NDArray[np.int64]]:
        """([T] times of the tokens of these requests, one request after the other, [R + 1] where each one's begin).

        Args:
            indices: [R] of the requests.
            lanes: [R] the scheduler of each.
            made: [R] tokens each has made; those of a step that has not ended are left out.
        """
        ends = [np.array(times, dtype=np.float64) for times in self._ends]
        each = [
            self._of(index, ends[lane], count) for index, lane, count in zip(indices, lanes, made, strict=True)
        ]  # fmt: skip
        return np.concatenate([np.empty(0), *each]), np.cumsum([0, *map(len, each)], dtype=np.int64)

    def _of(self, index: int, ends: Floats, made: int) -> Floats:
        row = self._rows.get(index)
        if row is None or row.spells is None:
            return np.empty(0)
        found = np.full(made, np.nan)
        # A spell in the decode set lasts until the next one, or the next end of its prompt, says otherwise: in the
        # order of the tokens, and where none came of a spell, the prompt was later.
        marks = [(outputs, False, tick, 0.0) for outputs, tick in row.spells]
        marks += [(outputs - 1, True, 0, now) for outputs, now in self._prompts[index]]
        for at, of_prompt, tick, now in sorted(marks, key=lambda mark: mark[:2]):
            if at < made and of_prompt:
                found[at] = now
            elif at < made:
                times = ends[tick : tick + made - at]
                found[at : at + len(times)] = times
        known: Floats = found[~np.isnan(found)]
        return known
