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

from penstock.control.replica import Replica
from penstock.control.request import Request
from penstock.control.step import Step, StepResult, Update
from penstock.errors import InvalidRequest, ProtocolError
from penstock.runtime.executor import Executor


@dataclass(frozen=True, slots=True)
class Turn:
    """One step from plan to commit. Times are the clock's seconds."""

    step: Step
    result: StepResult
    updates: list[Update]
    started: float
    ended: float


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
    ) -> None:
        """`launch` queues a step for `executor.run` elsewhere and returns at once; results come back through `done`.

        Without it the caller uses `turn` or `run`.
        """
        self.replica = replica
        self._executor = executor
        self._clock = clock
        self._launch = launch
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
        self._executor.add(request)
        try:
            self.replica.submit(request, self._clock())
        except InvalidRequest:
            self._refused.append(request.id)
            raise

    def cancel(self, request_id: str) -> None:
        """Its blocks are free with the next commit; an unknown or finished id is ignored."""
        self.replica.cancel(request_id, self._clock())

    def advance(self) -> None:
        """Plan and launch as far ahead as is allowed. Call it after submits and cancels; `done` does it by itself."""
        while len(self._launched) < self._most and (step := self.replica.plan(self._clock())) is not None:
            step.release.extend(self._refused)
            self._refused.clear()
            self._launched.append(step)
            if self._launch is not None:
                self._launch(step)

    def done(self, result: StepResult, started: float, ended: float) -> Turn:
        """Take the running step's result, and the clock's seconds at which the executor began and ended it.

        Raises ProtocolError if it is another step's.
        """
        if not self._launched or result.number != self._launched[0].number:
            raise ProtocolError(f"result of step {result.number}, which is not the one that runs")
        step = self._launched.popleft()
        turn = Turn(step, result, self.replica.commit(step, result, self._clock()), started, ended)
        self.advance()
        return turn

    def turn(self) -> Turn | None:
        """Run one step in this thread. None: nothing to do."""
        self.advance()
        if not self._launched:
            return None
        started = self._clock()
        result = self._executor.run(self._launched[0])
        return self.done(result, started, self._clock())

    def run(self) -> Iterator[Turn]:
        """Turns until there is nothing to do."""
        while (turn := self.turn()) is not None:
            yield turn
