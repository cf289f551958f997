"""The loop: the order of calls, one step ahead and never more, and what a refusal leaves behind."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from penstock.control.replica import Replica
from penstock.control.request import Request, Sampling
from penstock.control.step import Failed, Finished, NewTokens, Step, StepResult
from penstock.errors import InvalidRequest, ProtocolError
from penstock.runtime.local import Loop, Turn
from penstock.testing import ScriptedExecutor, expected_output, small_replica


class Watched:
    """A replica that writes down who called what."""

    def __init__(self, replica: Replica, log: list[str]) -> None:
        self._replica, self._log = replica, log

    def plan(self, now: float) -> Step | None:
        step = self._replica.plan(now)
        self._log.append(f"plan {step.number}" if step is not None else "plan nothing")
        return step

    def commit(self, step: Step, result: StepResult, now: float) -> Any:
        self._log.append(f"commit {step.number}")
        return self._replica.commit(step, result, now)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._replica, name)


class WatchedExecutor(ScriptedExecutor):
    log: list[str]

    def run(self, step: Step) -> StepResult:
        self.log.append(f"run {step.number}")
        return super().run(step)


def make(plan_ahead: bool, **options: Any) -> tuple[Loop, list[str]]:
    log: list[str] = []
    executor = WatchedExecutor(blocks=16, block_tokens=4, **options)
    executor.log = log
    clock = itertools.count()
    replica: Any = Watched(small_replica(), log)
    return Loop(replica, executor, clock=lambda: float(next(clock)), plan_ahead=plan_ahead), log


def outputs(turns: list[Turn]) -> dict[str, list[int]]:
    found: dict[str, list[int]] = {}
    for turn in turns:
        for update in turn.updates:
            if isinstance(update, NewTokens):
                for id, token in update.tokens.items():
                    found.setdefault(id, []).append(token)
    return found


def request(id: str = "a", prompt: tuple[int, ...] = (1, 2, 3), max_tokens: int = 3, **more: Any) -> Request:
    return Request(id=id, prompt=prompt, max_tokens=max_tokens, **more)


def test_a_step_is_planned_while_the_one_before_runs_and_after_the_commit_before_that() -> None:
    loop, log = make(plan_ahead=True)
    loop.submit(request(max_tokens=3))
    list(loop.run())
    assert log[:7] == ["plan 1", "plan 2", "run 1", "commit 1", "plan 3", "run 2", "commit 2"]


def test_without_plan_ahead_every_step_is_planned_on_the_last_ones_result() -> None:
    loop, log = make(plan_ahead=False)
    loop.submit(request(max_tokens=2))
    list(loop.run())
    assert log[:6] == ["plan 1", "run 1", "commit 1", "plan 2", "run 2", "commit 2"]


@pytest.mark.parametrize("plan_ahead", [True, False])
def test_tokens_are_those_of_any_correct_schedule(plan_ahead: bool) -> None:
    loop, _ = make(plan_ahead)
    requests = [request(str(i), tuple(range(i + 1)), max_tokens=7 + i) for i in range(6)]
    for one in requests:
        loop.submit(one)
    assert outputs(list(loop.run())) == {one.id: list(expected_output(one, 50)) for one in requests}


@pytest.mark.parametrize("plan_ahead", [True, False])
def test_tokens_a_request_brings_along_are_not_emitted_again(plan_ahead: bool) -> None:
    whole = request(max_tokens=9)
    expected = expected_output(whole, 50)
    loop, _ = make(plan_ahead)
    loop.submit(request(max_tokens=9, output=expected[:4]))
    assert outputs(list(loop.run())) == {"a": list(expected[4:])}


def test_an_executor_elsewhere_has_its_next_step_before_the_one_under_way_is_committed() -> None:
    log: list[str] = []
    executor = ScriptedExecutor(blocks=16, block_tokens=4)
    replica: Any = Watched(small_replica(), log)
    launched: list[Step] = []

    def launch(step: Step) -> None:
        log.append(f"launch {step.number}")
        launched.append(step)

    loop = Loop(replica, executor, clock=lambda: 0.0, launch=launch)
    loop.submit(request(max_tokens=3))
    loop.advance()
    while loop.busy:
        loop.done(executor.run(launched.pop(0)), 0.0, 0.0)
    assert log[:7] == ["plan 1", "launch 1", "plan 2", "launch 2", "commit 1", "plan 3", "launch 3"]


def test_a_cancelled_request_makes_no_token_after_the_step_under_way() -> None:
    loop, _ = make(plan_ahead=True)
    loop.submit(request("a", max_tokens=20))
    loop.submit(request("b", max_tokens=20))
    loop.turn()
    loop.cancel("a")
    turns = list(loop.run())
    assert "a" not in outputs(turns)
    assert [u.reason for t in turns for u in t.updates if isinstance(u, Finished) and u.id == "a"] == ["cancelled"]
    assert len(outputs(turns)["b"]) == 19


def test_a_request_that_fails_fails_alone() -> None:
    loop, _ = make(plan_ahead=True, fails=("bad",))
    for id in ("good", "bad", "fine"):
        loop.submit(request(id, max_tokens=5))
    turns = list(loop.run())
    assert [update.id for turn in turns for update in turn.updates if isinstance(update, Failed)] == ["bad"]
    assert set(outputs(turns)) == {"good", "fine"}


def test_a_stop_token_ends_a_request_although_the_next_step_is_planned() -> None:
    plain = expected_output(request(max_tokens=20), 50)
    stop = plain[4]
    loop, _ = make(plan_ahead=True)
    loop.submit(request(max_tokens=20, sampling=Sampling(stop_ids=(stop,))))
    assert outputs(list(loop.run()))["a"] == list(plain[: plain.index(stop) + 1])


def test_a_request_the_replica_refuses_leaves_nothing_in_the_executor() -> None:
    executor = ScriptedExecutor(blocks=16, block_tokens=4)
    loop = Loop(small_replica(), executor, clock=lambda: 0.0)
    with pytest.raises(InvalidRequest, match="max_tokens"):
        loop.submit(request("big", max_tokens=1_000))
    loop.submit(request("a"))
    list(loop.run())
    assert "big" not in executor.rows


def test_a_result_of_another_step_is_a_protocol_error() -> None:
    loop, _ = make(plan_ahead=True)
    with pytest.raises(ProtocolError, match="step 1"):
        loop.done(StepResult(1), 0.0, 0.0)
