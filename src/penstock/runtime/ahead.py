"""Steps from a queue to an executor; one that can begin a step early gets the next one while it computes."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator
from typing import Final

from penstock.control.step import Step, StepResult
from penstock.runtime.executor import Executor

LOOK_EVERY_S: Final = 0.0005
"""How often the device is asked whether it is done, while the next step is awaited."""


def launches_early(executor: Executor) -> bool:
    """Whether it can begin a step while another computes."""
    return hasattr(executor, "begin") and hasattr(executor, "busy")


def results(
    executor: Executor, steps: queue.SimpleQueue[Step], clock: Callable[[], float]
) -> Iterator[tuple[StepResult, float, float]]:
    """Each step's result, and when it began and ended by the clock; never ends by itself.

    An executor may have `begin(step)`, which launches it, and `busy()`: whether the oldest step begun still computes.
    """
    begin: Callable[[Step], None] | None = getattr(executor, "begin", None)
    busy: Callable[[], bool] | None = getattr(executor, "busy", None)
    following: Step | None = None
    ended = clock()
    while True:
        early = following is not None
        step = steps.get() if following is None else following
        following = None
        # What was begun while another computed could not compute before that one ended.
        started = ended if early else clock()
        if begin is not None and busy is not None:
            begin(step)
            following = _next(steps, busy)
            if following is not None:
                begin(following)
        result = executor.run(step)
        ended = clock()
        yield result, started, ended


def _next(steps: queue.SimpleQueue[Step], busy: Callable[[], bool]) -> Step | None:
    """The next step, if it comes before the device is done."""
    while True:
        try:
            return steps.get_nowait()
        except queue.Empty:
            if not busy():
                return None
            time.sleep(LOOK_EVERY_S)
