"""What a cluster drives, whatever is inside: it takes requests, and says when something happens next."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from penstock.control.cluster.router import Target
from penstock.control.request import Request

if TYPE_CHECKING:
    from penstock.runtime.instance import Instance

IDLE: Final = float("inf")


class Driven(Target):
    """A replica in virtual time. `wake` is when `fire` must be called next; IDLE: not before a request comes."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number
        """Which replica of the cluster this is."""
        self.wake = IDLE
        self.horizon = IDLE
        """No request comes before this time: stretches need not be computed beyond it."""
        self.place = -1
        """Where it stands among the alarms."""
        self._end = 0.0
        """When the running step ends."""
        self._ends: list[float] = []
        """When the plain steps after it end, as far as they are computed."""

    def lanes(self) -> list[Instance]:
        """The schedulers inside, in order."""
        raise NotImplementedError

    def lane(self, request: Request) -> int:
        """Number of the scheduler that the request will go to; `submit` must follow."""
        raise NotImplementedError

    def submit(
        self, request: Request, now: float, *, output_tokens: int, index: int, output: Sequence[int] = ()
    ) -> None:
        """A request arrives. Call `start` after the last one of a moment. Raises InvalidRequest; nothing is kept."""
        raise NotImplementedError

    def start(self, now: float) -> None:
        """Something has come in at `now`."""
        raise NotImplementedError

    def fire(self) -> None:
        """The time is `wake`."""
        raise NotImplementedError

    def halt(self, now: float) -> None:
        """The run ends at `now`: what has begun by then has happened."""
        if self._ends:
            self._interrupt(now)

    def _interrupt(self, now: float) -> None:
        """Something comes during a stretch: the steps that have begun before `now` happen, the others do not."""
        ends = self._ends
        if now <= self._end:
            self._ends = []
        else:
            del ends[min(bisect_left(ends, now) + 1, len(ends)) :]
            self._skip()
        self.wake = self._end

    def _skip(self) -> None:
        """The stretch is over but for its last step, which runs."""
        raise NotImplementedError


class Alarms:
    """Who wakes next; by number where two wake at once. A binary heap that is mended when wakes have changed."""

    def __init__(self, driven: Sequence[Driven]) -> None:
        self._heap = list(driven)
        self.mend()

    def first(self) -> Driven:
        """The one that wakes first. O(1)."""
        return self._heap[0]

    def changed(self, one: Driven) -> None:
        """Its `wake` is another, and nobody else's. O(log of their number)."""
        heap = self._heap
        at = one.place
        while at > 0:
            above = heap[(at - 1) >> 1]
            if not _before(one, above):
                break
            heap[at] = above
            above.place = at
            at = (at - 1) >> 1
        self._sink(one, at)

    def mend(self) -> None:
        """Any of them may wake at another time. O(their number)."""
        for at in range(len(self._heap) - 1, -1, -1):
            self._sink(self._heap[at], at)

    def _sink(self, one: Driven, at: int) -> None:
        heap = self._heap
        count = len(heap)
        below = 2 * at + 1
        while below < count:
            low = heap[below]
            if below + 1 < count and _before(heap[below + 1], low):
                below += 1
                low = heap[below]
            if not _before(low, one):
                break
            heap[at] = low
            low.place = at
            at = below
            below = 2 * at + 1
        heap[at] = one
        one.place = at


def _before(one: Driven, other: Driven) -> bool:
    return one.wake < other.wake or (one.wake == other.wake and one.number < other.number)
