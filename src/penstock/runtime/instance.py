"""One replica in virtual time: its brain, its twin, and when something happens next.

It makes the calls that runtime/local.py makes, in the same order and at the same times, with or without a step planned
ahead. Stretches of plain decodes are coasted: their ends are computed, and brain and twin are told of all of them at
once, at the end of the stretch or when a request comes in the middle of it (as many as have begun by then).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from penstock.compiled.attributes import mypyc_attr
from penstock.control.replica import Replica
from penstock.control.request import Request
from penstock.control.step import NewTokens, Step, StepResult, Update
from penstock.runtime.driven import IDLE as IDLE
from penstock.runtime.driven import Driven
from penstock.twin.twin import Row, Twin

STRETCH: Final = 4096
"""Longest stretch computed at once."""


@mypyc_attr(allow_interpreted_subclasses=True)
class Observer:
    """Told what happens in one instance. Times are virtual seconds."""

    def stepped(self, instance: Instance, step: Step, started: float, ended: float) -> None:
        """A step has ended."""
        raise NotImplementedError

    def coasted(self, instance: Instance, started: float, ends: list[float]) -> None:
        """Further steps of decodes alone, the first begun at `started`, ended at these times. Those whose first token
        came with the step before decode in them too."""
        raise NotImplementedError

    def first_token(self, row: Row, now: float) -> None:
        """A prompt is done; for evicted requests again."""
        raise NotImplementedError

    def ended(self, row: Row, update: Update, now: float) -> None:
        """A request has ended: Finished or Failed."""
        raise NotImplementedError


class Instance(Driven):
    """Drives one replica and its twin.

    Args:
        number: which instance of the cluster this is.
        plan_ahead: plan one step while the one before still runs.
        coast: go through stretches of plain decodes at once. Same steps, same times; off for tests of just that.
    """

    def __init__(
        self, number: int, replica: Replica, twin: Twin, observer: Observer, *, plan_ahead: bool, coast: bool = True
    ) -> None:
        super().__init__(number)
        self.replica, self.twin = replica, twin
        self._observer = observer
        self._plan_ahead, self._coasts = plan_ahead, coast
        self.running: Step | None = None
        """The step under way, until the next one follows."""
        self._next: Step | None = None
        self._result: StepResult | None = None
        self._firsts: list[Row] = []
        self._started = 0.0
        self.peers: list[Instance] = []
        """The ranks that step together with this one, itself included; empty: it steps alone."""

    def waiting(self) -> int:
        return self.replica.waiting

    def lanes(self) -> list[Instance]:
        return [self]

    def lane(self, request: Request) -> int:
        return self.number

    # -- events -------------------------------------------------------------------------------------------------

    def submit(
        self, request: Request, now: float, *, output_tokens: int, index: int, output: Sequence[int] = ()
    ) -> None:
        if self._ends:
            self._interrupt(now)
        self.replica.submit(request, now)
        self.twin.add(request, output_tokens, index=index, output=output)
        self.outstanding += 1

    def cancel(self, request_id: str, now: float) -> None:
        """Nobody wants it any more; an id that has ended is ignored."""
        if self._ends:
            self._interrupt(now)
        self.replica.cancel(request_id, now)
        self._take(self.replica.take_updates(), now)

    def start(self, now: float) -> None:
        """Plan as far ahead as is allowed."""
        if self.running is None:
            step = self.replica.plan(now)
            if step is None:
                return
            self._launch(step, now)
        if self._plan_ahead and self._next is None:
            self._next = self.replica.plan(now)
        if self._coasts and not self._ends:
            self._stretch()

    def fire(self) -> None:
        """The running step has ended."""
        if self._ends:
            self._skip()
        now = self._end
        self.conclude(now)
        if not self.follow(now):
            self.wake = IDLE
            return
        if self._plan_ahead:
            self._next = self.replica.plan(now)
        if self._coasts:
            self._stretch()

    def unfinished(self) -> Iterable[Row]:
        """Requests that have not ended."""
        return self.twin.unfinished()

    # -- piece by piece, for ranks that step together (lockstep.py) -----------------------------------------------

    def conclude(self, now: float) -> None:
        """The running step has ended."""
        step, result = self.running, self._result
        assert step is not None, "a step was launched"
        assert result is not None
        updates = self.replica.commit(step, result, now)
        self._tell_step(step, now)
        if updates:
            self._take(updates, now)

    def follow(self, now: float) -> bool:
        """Launch the next step, if there is one."""
        following = self._next
        if following is not None:
            self._next = None
        else:
            following = self.replica.plan(now)
            if following is None:
                self.running = None
                return False
        self._launch(following, now)
        return True

    def last_until(self, end: float) -> None:
        """The running step takes until then, whatever its own price said."""
        self.wake = self._end = end

    def plan_next(self, now: float) -> None:
        """Plan one step ahead, where none is."""
        if self._next is None:
            self._next = self.replica.plan(now)

    def quiet(self) -> int:
        """How many of the next steps are sure to be decodes alone."""
        if self._result is None or self._result.finished or (self._plan_ahead and self._next is None):
            return 0
        most = self.replica.quiet()
        return min(most, self.twin.quiet()) if most > 0 else 0

    def tell_step(self) -> None:
        """The running step has ended, and plain ones follow."""
        assert self.running is not None
        self._tell_step(self.running, self._end)

    def coast(self, steps: int) -> None:
        """Through that many steps, the running one included: the one after them runs."""
        assert self._result is not None
        self.replica.coast(steps)
        self.twin.coast(steps, self._result)

    def tell_coasted(self, ends: list[float]) -> None:
        """Those of them that followed ended at these times but for the last, at which the one that runs will end."""
        self._started = self._end
        self._end = ends[-1]
        if len(ends) > 1:
            self._observer.coasted(self, self._started, ends[:-1])
            self._started = ends[-2]

    # -- inside -------------------------------------------------------------------------------------------------

    def _tell_step(self, step: Step, now: float) -> None:
        self._observer.stepped(self, step, self._started, now)
        if self._firsts:
            for row in self._firsts:
                self._observer.first_token(row, now)
            self._firsts = []

    def _launch(self, step: Step, now: float) -> None:
        twin = self.twin
        result = twin.run(step)
        self.running, self._result, self._firsts = step, result, twin.firsts
        self._started = now
        self.wake = self._end = now + result.seconds

    def _stretch(self) -> None:
        """Compute how far only plain decodes follow, if at all."""
        if self._end < self.horizon:
            most = min(self.quiet(), STRETCH)
            if most > 0:
                self._ends = self.twin.ends(self._end, most, self.horizon)
                self.wake = self._ends[-1]

    def _skip(self) -> None:
        """The stretch is over but for its last step, which runs."""
        ends, self._ends = self._ends, []
        self.tell_step()
        self.coast(len(ends))
        self.tell_coasted(ends)

    def _take(self, updates: list[Update], now: float) -> None:
        for update in updates:
            if type(update) is not NewTokens:
                row = self.twin.end(update.id)
                self.outstanding -= 1
                self._observer.ended(row, update, now)
