"""Small replicas for tests, and a driver that runs one to the end."""

from __future__ import annotations

from collections import deque
from typing import Any

from penstock.control.policy import build_replica
from penstock.control.replica import Replica
from penstock.control.step import NewTokens, Step, Update
from penstock.errors import ProtocolError
from penstock.runtime.executor import Executor


def small_replica(blocks: int = 16, block_tokens: int = 4, **options: Any) -> Replica:
    """A replica of few, small blocks, with no watermark unless asked; `options` as in `build_replica`."""
    defaults: dict[str, Any] = {"max_sequence_tokens": blocks * block_tokens, "watermark": 0.0, "max_seqs": 8}
    return build_replica(blocks=blocks, block_tokens=block_tokens, **(defaults | options))


class Driver:
    """Runs a replica on an executor, optionally one step ahead, checking the replica after every event."""

    def __init__(self, replica: Replica, executor: Executor, *, plan_ahead: bool = False, check: bool = True) -> None:
        self.replica, self.executor, self.plan_ahead, self.check = replica, executor, plan_ahead, check
        self.now = 0.0
        self.outputs: dict[str, list[int]] = {}
        self.ended: dict[str, Update] = {}
        self.steps: list[Step] = []
        self._planned: deque[Step] = deque()

    def submit(self, request: Any) -> None:
        """The replica first: what it refuses, the executor never sees."""
        self.replica.submit(request, self.now)
        self.executor.add(request)
        self.outputs[request.id] = []
        self._recount()

    def cancel(self, request_id: str) -> None:
        """Cancel, and take the news."""
        self.replica.cancel(request_id, self.now)
        self._take(self.replica.take_updates())
        self._recount()

    def tick(self) -> bool:
        """Plan (one ahead if so configured), then run and commit the oldest step. False: nothing to do."""
        for _ in range(2 if self.plan_ahead else 1):
            if len(self._planned) < (2 if self.plan_ahead else 1):
                step = self.replica.plan(self.now)
                self._recount()
                if step is not None:
                    self._planned.append(step)
                    self.steps.append(step)
        if not self._planned:
            return False
        step = self._planned.popleft()
        result = self.executor.run(step)
        self.now += result.seconds or 1.0
        self._take(self.replica.commit(step, result, self.now))
        self._recount()
        return True

    def run(self, most: int = 100_000) -> None:
        """Until nothing is left. Raises ProtocolError if that takes more than `most` steps, or work is left over."""
        for _ in range(most):
            if not self.tick():
                if not self.replica.idle:
                    raise ProtocolError(f"stuck: {self.replica.statistics()}")
                return
        raise ProtocolError(f"not done after {most} steps")

    def _take(self, updates: list[Update]) -> None:
        for update in updates:
            if isinstance(update, NewTokens):
                for request_id, token in update.tokens.items():
                    if request_id in self.ended:
                        raise ProtocolError(f"{request_id} got a token after its end")
                    self.outputs[request_id].append(token)
            else:
                if update.id in self.ended:
                    raise ProtocolError(f"{update.id} ended twice")
                self.ended[update.id] = update

    def _recount(self) -> None:
        if self.check:
            self.replica.check()
