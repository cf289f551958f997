"""Steps reach an executor in order, and early where it can begin them."""

from __future__ import annotations

import itertools
import queue
import threading

from penstock.control.step import Step, StepResult
from penstock.runtime.ahead import results


class Plain:
    def __init__(self):
        self.seen = []

    def add(self, request):
        raise AssertionError(request)

    def run(self, step):
        self.seen.append(("run", step.number))
        return StepResult(step.number)

    def close(self):
        self.seen.append(("close", 0))


class Early(Plain):
    """Its steps take until somebody lets them go."""

    def __init__(self):
        super().__init__()
        self.done = threading.Event()

    def begin(self, step):
        if ("begin", step.number) not in self.seen:
            self.seen.append(("begin", step.number))

    def busy(self):
        return not self.done.is_set()


def take(executor, steps, count):
    ticks = itertools.count()
    return list(itertools.islice(results(executor, steps, lambda: next(ticks)), count))


def test_steps_run_one_after_the_other():
    steps, executor = queue.SimpleQueue(), Plain()
    for number in (1, 2, 3):
        steps.put(Step(number))
    found = take(executor, steps, 3)
    assert [result.number for result, _, _ in found] == [1, 2, 3]
    assert executor.seen == [("run", 1), ("run", 2), ("run", 3)]
    assert all(started < ended for _, started, ended in found)


def test_the_next_step_is_begun_while_one_computes_and_its_time_starts_with_the_end_of_that_one():
    steps, executor = queue.SimpleQueue(), Early()
    for number in (1, 2, 3):
        steps.put(Step(number))
    found = take(executor, steps, 2)
    assert executor.seen == [("begin", 1), ("begin", 2), ("run", 1), ("begin", 3), ("run", 2)]
    assert found[1][1] == found[0][2]


def test_a_step_that_comes_late_is_waited_for_only_while_the_device_computes():
    steps, executor = queue.SimpleQueue(), Early()
    steps.put(Step(1))
    later = threading.Timer(0.05, lambda: steps.put(Step(2)))
    later.start()
    taken = results(executor, steps, lambda: 0.0)
    assert next(taken)[0].number == 1
    assert executor.seen == [("begin", 1), ("begin", 2), ("run", 1)]
    executor.done.set()
    assert next(taken)[0].number == 2
    assert executor.seen[3:] == [("run", 2)]
    later.join()
