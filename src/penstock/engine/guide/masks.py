"""The masks of a step's guided sequences, computed in another thread while the model computes the logits."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Final

from penstock.control.request import GUIDE_FAILED
from penstock.engine.guide.bounded import Bounded
from penstock.engine.guide.matching import Matching

MASK_LIMIT_S: Final = 2.0
"""Waited for one mask. A grammar that passed the checker takes some tens of milliseconds at its worst."""


class Masks:
    """`start` after sampling, `wait` before the next: a mask that is late fails its own sequence and no other."""

    def __init__(self, limit_s: float = MASK_LIMIT_S) -> None:
        self._limit_s = limit_s
        self._thread = Bounded("penstock-masks")
        self._running: Future[None] | None = None

    def start(self, places: Sequence[Matching]) -> None:
        """Begin to compute the masks of what comes next at these places."""
        self._running = self._thread.start(lambda: _fill(places)) if places else None

    def wait(self, places: Sequence[Matching]) -> None:
        """All of `places` are ready, or have an error."""
        if self._running is not None:
            # Others may be in it, which are not wanted now; they are as ready later.
            self._finish(self._running, places)
            self._running = None
        while late := [place for place in places if not place.ready and not place.error]:
            self._finish(self._thread.start(lambda late=late: _fill(late)), late)  # type: ignore[misc]

    def close(self) -> None:
        """No more masks."""
        self._thread.close()

    def _finish(self, running: Future[None], places: Sequence[Matching]) -> None:
        try:
            self._thread.wait(running, self._limit_s)
        except TimeoutError:
            for place in places:
                if not place.ready and not place.error:
                    place.error = f"{GUIDE_FAILED}a mask takes longer than {self._limit_s:g} s"
                    return


def _fill(places: Sequence[Matching]) -> None:
    for place in places:
        try:
            place.fill()
        except Exception as error:  # noqa: BLE001 - whatever the library raises, one sequence's grammar did it
            place.error = GUIDE_FAILED + str(error)[:200]
