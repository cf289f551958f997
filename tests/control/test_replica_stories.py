"""Single stories: late cancellations, failures, refusals, one step planned ahead."""

from __future__ import annotations

import pytest

from penstock.control.request import Request, Sampling
from penstock.control.step import Failed, Finished, StepResult
from penstock.errors import InvalidRequest, ProtocolError
from penstock.testing import Driver, ScriptedExecutor, expected_output, small_replica


def request(name: str, prompt: int = 6, max_tokens: int = 4, **more: object) -> Request:
    return Request(id=name, prompt=tuple(range(prompt)), max_tokens=max_tokens, **more)  # type: ignore[arg-type]


def test_a_token_that_arrives_after_cancel_is_dropped_and_its_blocks_come_back() -> None:
    replica = small_replica(blocks=4)
    replica.submit(request("a"), now=0.0)
    step = replica.plan(now=0.0)
    assert step is not None
    replica.cancel("a", now=0.1)  # the step is still running
    news = replica.commit(step, StepResult(step.number, tokens={"a": 7}), now=0.2)
    assert news == [Finished("a", "cancelled")]
    seen = replica.statistics()
    assert (seen.waiting, seen.running, seen.free_blocks, seen.held_blocks) == (0, 0, 4, 0)


def test_a_cancellation_while_nothing_runs_is_news_without_a_commit() -> None:
    replica = small_replica()
    replica.submit(request("a"), now=0.0)
    replica.cancel("a", now=0.0)
    assert replica.take_updates() == [Finished("a", "cancelled")]
    last = replica.plan(now=0.0)
    assert last is not None
    assert (last.release, last.tokens) == (["a"], 0)  # the executor hears of it without waiting for more work
    assert replica.plan(now=0.0) is None


def test_cancelling_what_is_unknown_or_over_is_ignored() -> None:
    replica = small_replica()
    replica.cancel("nobody", now=0.0)
    assert replica.take_updates() == []


def test_a_stop_found_while_the_next_step_is_already_planned_wastes_one_row_and_no_token() -> None:
    stop = expected_output(request("a"), 50)[1]
    asked = request("a", max_tokens=8, sampling=Sampling(stop_ids=(stop,)))
    run = Driver(small_replica(), ScriptedExecutor(blocks=16, block_tokens=4), plan_ahead=True)
    run.submit(asked)
    run.run()
    assert tuple(run.outputs["a"]) == expected_output(asked, 50)
    assert run.ended["a"] == Finished("a", "stop", stop_id=stop)
    assert sum(step.tokens for step in run.steps) == 6 + 1 + 1


def test_two_steps_ahead_are_refused() -> None:
    replica = small_replica()
    replica.submit(request("a"), now=0.0)
    assert replica.plan(0.0)
    assert replica.plan(0.0)
    with pytest.raises(ProtocolError, match="one step"):
        replica.plan(0.0)


def test_a_result_out_of_order_is_refused() -> None:
    replica = small_replica()
    replica.submit(request("a"), now=0.0)
    replica.plan(0.0)
    second = replica.plan(0.0)
    assert second is not None
    with pytest.raises(ProtocolError, match="out of order"):
        replica.commit(second, StepResult(second.number), 0.0)


def test_a_failing_request_fails_alone() -> None:
    run = Driver(small_replica(), ScriptedExecutor(blocks=16, block_tokens=4, fails=["b"]))
    for name in "abc":
        run.submit(Request(id=name, prompt=(ord(name), 1, 2), max_tokens=5))
    run.run()
    assert run.ended["b"] == Failed("b", "scripted failure")
    assert all(len(run.outputs[name]) == 5 for name in "ac")


def test_what_can_never_run_is_refused_at_once_and_leaves_nothing() -> None:
    replica = small_replica(blocks=4, block_tokens=4)
    with pytest.raises(InvalidRequest, match="5 KV blocks"):
        replica.submit(request("a", prompt=12, max_tokens=6), now=0.0)
    with pytest.raises(InvalidRequest, match="no token"):
        replica.submit(request("b", prompt=0), now=0.0)
    with pytest.raises(InvalidRequest, match="there already"):
        replica.submit(request("c", max_tokens=2, output=(1, 2)), now=0.0)
    assert replica.idle
    assert replica.statistics().submitted == 0


def test_the_last_token_needs_no_room_since_it_is_never_an_input() -> None:
    run = Driver(small_replica(blocks=4, block_tokens=4), ScriptedExecutor(blocks=4, block_tokens=4))
    run.submit(request("a", prompt=12, max_tokens=5))
    run.run()
    assert len(run.outputs["a"]) == 5


def test_an_id_in_use_is_refused() -> None:
    replica = small_replica()
    replica.submit(request("a"), now=0.0)
    with pytest.raises(ProtocolError, match="in use"):
        replica.submit(request("a"), now=0.0)


def test_a_resumed_request_continues_where_it_was() -> None:
    whole = expected_output(request("a", max_tokens=9), 50)
    run = Driver(small_replica(), ScriptedExecutor(blocks=16, block_tokens=4))
    run.submit(request("a", max_tokens=9, output=whole[:4]))
    run.run()
    assert tuple(run.outputs["a"]) == whole[4:]


def test_an_unreported_last_token_is_a_bug_said_loudly() -> None:
    replica = small_replica()
    replica.submit(request("a", max_tokens=1), now=0.0)
    step = replica.plan(0.0)
    assert step is not None
    with pytest.raises(ProtocolError, match="was not finished"):
        replica.commit(step, StepResult(step.number, tokens={"a": 1}), 0.0)


def test_the_blocks_of_a_finished_answer_serve_the_next_turn() -> None:
    run = Driver(small_replica(), ScriptedExecutor(blocks=16, block_tokens=4))
    run.submit(request("a", prompt=6, max_tokens=7))
    run.run()
    turn = Request(id="b", prompt=(*range(6), *run.outputs["a"], 99, 98), max_tokens=2)
    run.submit(turn)
    run.run()
    end = run.ended["b"]
    assert isinstance(end, Finished)
    assert end.cached_tokens == 12  # 6 + 7 - 1 tokens have KV: three whole blocks


def test_a_prefix_is_not_shared_across_tenants_or_salts() -> None:
    run = Driver(small_replica(blocks=64), ScriptedExecutor(blocks=64, block_tokens=4))
    for name, border in {"a": {}, "b": {"tenant": "t"}, "c": {"salt": "s"}, "d": {}}.items():
        run.submit(request(name, prompt=13, max_tokens=2, **border))
        run.run()
    cached = {name: end.cached_tokens for name, end in run.ended.items() if isinstance(end, Finished)}
    assert cached == {"a": 0, "b": 0, "c": 0, "d": 12}


def test_many_salts_leave_no_memory_behind() -> None:
    run = Driver(small_replica(blocks=8), ScriptedExecutor(blocks=8, block_tokens=4))
    for number in range(200):
        run.submit(request(f"r{number}", prompt=9, max_tokens=2, salt=str(number)))
        run.run()
    memory = run.replica._memory
    assert len(memory._roots) <= 4  # type: ignore[attr-defined]  # 8 blocks, 2 per prompt
