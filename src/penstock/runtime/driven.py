"""What a cluster drives, whatever is inside: it takes requests, and says when something happens next."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from penstock.control.calendar import Calendar, Dated
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
    """Who wakes next; by number where two wake at once."""

    def __init__(self, driven: Sequence[Driven]) -> None:
        """`driven`: in the order of their numbers, from 0 on."""
        self._driven = list(driven)
        self._alarms = [Dated() for _ in driven]
        self._calendar = Calendar()
        for one, alarm in zip(self._driven, self._alarms, strict=True):
            self._calendar.enter(alarm, one.wake)

    def first(self) -> Driven:
        """The one that wakes first. O(1)."""
        return self._driven[self._calendar.head().entry - 1]

    def changed(self, one: Driven) -> None:
        """Its `wake` is another. O(log of their number)."""
        self._calendar.move(self._alarms[one.number], one.wake)
