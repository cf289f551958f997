"""The step being planned: what it will announce to the executor, kept true while plans come to nothing or change.

A sequence whose last prompt chunk is in this step joins the decode set in the next one, since its token has to be made
first; one whose last token is in this step pauses in the next. What a draft says stands until it is taken as a step,
unless the sequence ends or gives way meanwhile (`withdraw`).
"""

from __future__ import annotations

from penstock.control.step import Step, added


class Draft:
    """Makes steps 1, 2, 3, ..."""

    def __init__(self) -> None:
        self.step = Step(1)
        self.said = False
        """Something is announced, or may be: only then is the draft worth a look."""
        self._join_next: list[str] = []
        self._pause_next: list[str] = []

    def begin(self) -> Step:
        """Start to plan: what was to be announced in the next step belongs to this one now."""
        step = self.step
        if self._join_next:
            step.join = step.join + self._join_next if step.join else self._join_next
            self._join_next = []
        if self._pause_next:
            step.pause = step.pause + self._pause_next if step.pause else self._pause_next
            self._pause_next = []
        return step

    @property
    def only_joins(self) -> bool:
        """Nothing but who joins in the step after this one is announced, if anything is. Between plans only."""
        step = self.step
        return not (self._pause_next or step.release or step.join or step.pause)

    def skip(self, steps: int) -> list[str]:
        """So many steps were taken, at least one, and said nothing but who joins in the first; these are returned."""
        self.step.number += steps
        joined = self._join_next
        if joined:
            self._join_next = []
        self.said = False
        return joined

    def take(self) -> Step:
        """The planned step; a new draft begins."""
        step = self.step
        self.step = Step(step.number + 1)
        self.said = bool(self._join_next or self._pause_next)
        return step

    def join_next(self, request_id: str) -> None:
        """It enters the decode set in the step after this one."""
        self._join_next.append(request_id)
        self.said = True

    def pause_next(self, request_id: str) -> None:
        """It leaves the decode set in the step after this one."""
        self._pause_next.append(request_id)
        self.said = True

    def stall(self, request_id: str) -> None:
        """It leaves the decode set; if this very draft lets it join, the executor never hears of either."""
        self.said = True
        step = self.step
        if request_id in step.join:
            step.join.remove(request_id)
        else:
            step.pause = added(step.pause, request_id)

    def resume(self, request_id: str) -> None:
        """The opposite of `stall`."""
        self.said = True
        step = self.step
        if request_id in step.pause:
            step.pause.remove(request_id)
        else:
            step.join = added(step.join, request_id)

    def withdraw(self, request_id: str) -> None:
        """It has ended or given way: nothing makes it join or pause any more."""
        if not self.said:
            return
        step = self.step
        for announced in (self._join_next, self._pause_next, step.join, step.pause):
            if request_id in announced:
                announced.remove(request_id)

    def release(self, request_id: str) -> None:
        """The executor may forget it with this step."""
        self.withdraw(request_id)
        self.step.release = added(self.step.release, request_id)
        self.said = True
