"""A clock, a replica and an executor: the loop that serves, in any process or thread.

With `plan_ahead` the next step is planned and launched while the executor is busy, so that it goes from one to the
other without waiting for Python. Step N+1 is planned after the commit of step N-1 and never earlier. The order of calls
to the replica is the same whether the executor runs in this thread (`turn`) or in another (runtime/worker.py):

    plan 1, plan 2, commit 1, plan 3, commit 2, ...               with plan_ahead
    plan 1, commit 1, plan 2, commit 2, ...                       without
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from penstock.control.replica import Replica
from penstock.control.request import Request
from penstock.control.step import Failed, Finished, Step, StepResult, Update
from penstock.errors import InvalidRequest, ProtocolError
from penstock.runtime.executor import Executor
from penstock.runtime.legs import Legs


@dataclass(frozen=True, slots=True)
class Turn:
    """One step from plan to commit. Times are the clock's seconds."""

    step: Step
    result: StepResult
    updates: list[Update]
    started: float
    ended: float


class Observer(Protocol):
    """Told of everything that control sees and decides, in that order (record.py)."""

    def submitted(self, request: Request, now: float) -> None:
        """Control is given a request."""

    def refused(self, request_id: str) -> None:
        """It did not take the one submitted last."""

    def cancelled(self, request_id: str, now: float) -> None:
        """Nobody wants a request; it may be unknown or ended."""

    def planned(self, step: Step, now: float) -> None:
        """Control decided on a step."""

    def looked(self) -> None:
        """Nothing is left to plan until the next event."""

    def done(self, result: StepResult, started: float, ended: float, now: float) -> None:
        """A step's result arrives; the executor began and ended it at these times."""


class Loop:
    """Drives one replica. Not thread-safe: only the executor's `run` may happen in another thread."""

    def __init__(
        self,
        replica: Replica,
        executor: Executor,
        *,
        clock: Callable[[], float],
        plan_ahead: bool = True,
        launch: Callable[[Step], None] | None = None,
        observer: Observer | None = None,
        recompute_beyond: int | None = None,
    ) -> None:
        """`launch` queues a step for `executor.run` elsewhere and returns at once; results come back through `done`.

        Without it the caller uses `turn` or `run`. `recompute_beyond`: the executor's, see legs.py.
        """
        self._legs = Legs(recompute_beyond) if recompute_beyond is not None else None
        self.replica = replica
        self._observer = observer
        self._executor = executor
        self._clock = clock
        self._launch = launch
        self._begin: Callable[[Step], None] | None = getattr(executor, "begin", None)
        self._most = 2 if plan_ahead else 1
        self._launched: deque[Step] = deque()
        """The running step and, with plan_ahead, the one after it."""
        self._refused: list[str] = []
        """The executor knows them and the replica does not: the next step releases them."""

    @property
    def busy(self) -> bool:
        """A step was launched and is not done."""
        return bool(self._launched)

    def submit(self, request: Request) -> None:
        """Raises InvalidRequest: the executor or the replica cannot run it; nothing is kept."""
        if self._legs is None:
            self._submit(request)
            return
        try:
            self._submit(self._legs.begin(request))
        except InvalidRequest:
            self._legs.forget(request.id)
            raise

    def _submit(self, request: Request) -> None:
        self._executor.add(request)
        now = self._clock()
        if self._observer is not None:
            self._observer.submitted(request, now)
        try:
            self.replica.submit(request, now)
        except InvalidRequest:
            self._refused.append(request.id)
            if self._observer is not None:
                self._observer.refused(request.id)
            raise

    def cancel(self, request_id: str) -> None:
        """Its blocks are free with the next commit; an unknown or finished id is ignored."""
        now = self._clock()
        ids: tuple[str, ...] = (request_id,)
        if self._legs is not None:
            self._legs.forget(request_id)
            ids = self._legs.ids(request_id)
        for each in ids:
            if self._observer is not None:
                self._observer.cancelled(each, now)
            self.replica.cancel(each, now)

    def take_updates(self) -> list[Update]:
        """News that no step brought: cancelled while nothing ran."""
        updates = self.replica.take_updates()
        return updates if self._legs is None else [self._legs.outward(update) for update in updates]

    def advance(self) -> None:
        """Plan and launch as far ahead as is allowed. Call it after submits and cancels; `done` does it by itself."""
        self._advance()
        if self._observer is not None:
            self._observer.looked()

    def _advance(self) -> None:
        while len(self._launched) < self._most:
            now = self._clock()
            step = self.replica.plan(now)
            if step is None:
                return
            if self._refused:
                step.release = step.release + self._refused
                self._refused.clear()
            self._launched.append(step)
            if self._launch is not None:
                self._launch(step)
            if self._observer is not None:
                self._observer.planned(step, now)

    def done(self, result: StepResult, started: float, ended: float) -> Turn:
        """Take the running step's result, and the clock's seconds at which the executor began and ended it.

        Raises ProtocolError if it is another step's.
        """
        if not self._launched or result.number != self._launched[0].number:
            raise ProtocolError(f"result of step {result.number}, which is not the one that runs")
        step = self._launched.popleft()
        now = self._clock()
        if self._observer is not None:
            self._observer.done(result, started, ended, now)
        updates = self.replica.commit(step, result, now)
        if self._legs is not None:
            updates = self._go_on(self._legs, updates, result)
        turn = Turn(step, result, updates, started, ended)
        self._advance()
        return turn

    def _go_on(self, legs: Legs, updates: list[Update], result: StepResult) -> list[Update]:
        """Start the second legs of those whose first has ended; the rest is news."""
        news: list[Update] = []
        for update in updates:
            if isinstance(update, Finished) and update.id in result.finished:
                second = legs.rest(update, result.finished[update.id].output)
                if second is not None:
                    try:
                        self._submit(second)
                    except InvalidRequest as error:
                        news.append(Failed(update.id, str(error)))
                    continue
            news.append(legs.outward(update))
        return news

    def turn(self) -> Turn | None:
        """Run one step in this thread. None: nothing to do."""
        self.advance()
        if not self._launched:
            return None
        started = self._clock()
        if self._begin is not None:
            for step in self._launched:
                self._begin(step)
        result = self._executor.run(self._launched[0])
        return self.done(result, started, self._clock())

    def run(self) -> Iterator[Turn]:
        """Turns until there is nothing to do."""
        while (turn := self.turn()) is not None:
            yield turn
