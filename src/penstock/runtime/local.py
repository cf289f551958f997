"""A clock, a replica and an executor: the loop that serves, in any process or thread.

With `plan_ahead` the next step is planned while the executor is busy, and launched before the commit, so that the
executor never waits for Python. Step N+1 is planned after the commit of step N-1 and never earlier. The order of calls
to the replica is the same whether the executor runs in this thread (`turn`) or in another (runtime/worker.py):

    plan 1, plan 2, commit 1, plan 3, commit 2, ...               with plan_ahead
    plan 1, commit 1, plan 2, commit 2, ...                       without
"""

from __future__ import annotations

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
        """`launch` starts `executor.run(step)` elsewhere and returns at once; its result comes back through `done`.

        Without it the caller uses `turn` or `run`.
        """
        self.replica = replica
        self._executor = executor
        self._clock = clock
        self._plan_ahead = plan_ahead
        self._launch = launch
        self._running: Step | None = None
        self._ahead: Step | None = None
        self._started = 0.0
        self._refused: list[str] = []
        """The executor knows them and the replica does not: the next step releases them."""

    @property
    def busy(self) -> bool:
        """A step was launched and is not done."""
        return self._running is not None

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
        """Launch a step if none runs, then look ahead. Call it after submits and cancels; `done` does it by itself."""
        if self._running is None and (step := self.replica.plan(self._clock())) is not None:
            self._start(step)
        if self._plan_ahead and self._running is not None and self._ahead is None:
            self._ahead = self.replica.plan(self._clock())

    def done(self, result: StepResult) -> Turn:
        """Take the running step's result. Raises ProtocolError if it is another step's."""
        step, started, ended = self._running, self._started, self._clock()
        if step is None or result.number != step.number:
            raise ProtocolError(f"result of step {result.number}, but step {step and step.number} is running")
        self._running = None
        if self._ahead is not None:
            ahead, self._ahead = self._ahead, None
            self._start(ahead)  # before anything else: the executor must not wait for the commit
        turn = Turn(step, result, self.replica.commit(step, result, ended), started, ended)
        self.advance()
        return turn

    def turn(self) -> Turn | None:
        """Run one step in this thread. None: nothing to do."""
        self.advance()
        return self.done(self._executor.run(self._running)) if self._running is not None else None

    def run(self) -> Iterator[Turn]:
        """Turns until there is nothing to do."""
        while (turn := self.turn()) is not None:
            yield turn

    def _start(self, step: Step) -> None:
        if self._refused:
            step.release.extend(self._refused)
            self._refused.clear()
        self._running, self._started = step, self._clock()
        if self._launch is not None:
            self._launch(step)
