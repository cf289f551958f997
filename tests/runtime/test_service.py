"""The front end and a scripted worker process: streams, refusals, restarts, the end."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from contextlib import aclosing
from typing import Any, TypeVar

import pytest
from msgspec.structs import replace

from penstock.control.request import Request, Sampling
from penstock.errors import InvalidRequest, Overloaded, PenstockError, RequestFailed, Unavailable, UnsupportedModel
from penstock.runtime.facts import Output, StepReport
from penstock.runtime.process import WorkerProcess
from penstock.runtime.service import Service
from penstock.testing import expected_output

VOCABULARY = 50  # of scripted_worker.py
Make = Callable[..., Any]
T = TypeVar("T")


def run(body: Coroutine[Any, Any, T]) -> T:
    async def bounded() -> T:
        async with asyncio.timeout(240):  # a worker starts in a second, or in ten beside other work
            return await body

    return asyncio.run(bounded())


def request(id: str = "a", prompt: tuple[int, ...] = (1, 2, 3), max_tokens: int = 20, **more: Any) -> Request:
    return Request(id=id, prompt=prompt, max_tokens=max_tokens, **more)


async def collect(service: Service, one: Request) -> list[Output]:
    return [output async for output in service.generate(one)]


async def tokens(service: Service, one: Request) -> tuple[int, ...]:
    return tuple(token for output in await collect(service, one) for token in output.tokens)


def test_a_stream_gives_every_token_once_and_ends_with_its_reason_and_timings(deployment: Make, worker: Make) -> None:
    async def body() -> None:
        service = await Service.start(deployment(), command=worker())
        outputs = await collect(service, request())
        assert tuple(t for o in outputs for t in o.tokens) == expected_output(request(), VOCABULARY)
        assert [output.finished for output in outputs[:-1]] == [None] * (len(outputs) - 1)
        last = outputs[-1]
        assert last.finished == "length"
        assert last.timings is not None
        assert min(last.timings.queue_s, last.timings.prefill_s, last.timings.decode_s) >= 0
        await service.close()

    run(body())


def test_many_streams_at_once_do_not_mix(deployment: Make, worker: Make) -> None:
    async def body() -> None:
        service = await Service.start(deployment(), command=worker())
        requests = [request(f"r{i}", tuple(range(1 + i % 7)), max_tokens=5 + i) for i in range(40)]
        found = await asyncio.gather(*(tokens(service, one) for one in requests))
        assert found == [expected_output(one, VOCABULARY) for one in requests]
        assert service.in_flight == 0
        await service.close()

    run(body())


def test_phases_and_steps_and_statistics_are_told(deployment: Make, worker: Make) -> None:
    async def body() -> None:
        phases: list[str] = []
        service = await Service.start(
            deployment(), lambda name, seconds, detail: phases.append(name), command=worker(fresh=True)
        )
        steps: list[int] = []
        service.on_step.append(lambda report: steps.append(report.number))
        await tokens(service, request(max_tokens=5))
        assert phases == ["start worker", "script", "take up work"]
        assert steps == sorted(set(steps))
        assert len(steps) >= 5
        assert service.statistics.finished == 1
        assert service.statistics.running == 0
        await service.close()

    run(body())


def test_how_far_the_weights_are_read_is_told(deployment: Make, worker: Make) -> None:
    async def body() -> None:
        told: list[tuple[int, int]] = []
        service = await Service.start(
            deployment(), None, lambda *read: told.append(read), command=worker(reads=[10, 60])
        )  # fmt: skip
        await service.close()
        assert told == [(10, 100), (60, 100)]

    run(body())


def test_an_observer_that_raises_disturbs_no_stream(deployment: Make, worker: Make) -> None:
    def observer(report: StepReport) -> None:
        raise ValueError(report.number)

    async def body() -> None:
        service = await Service.start(deployment(), command=worker())
        service.on_step.append(observer)
        assert await tokens(service, request()) == expected_output(request(), VOCABULARY)
        assert service.restarts == 0
        await service.close()

    run(body())


def test_closing_a_stream_cancels_it_in_the_worker(deployment: Make, worker: Make) -> None:
    async def body() -> None:
        service = await Service.start(deployment(), command=worker(step_s=0.02))  # in all it would take five seconds
        async with aclosing(service.generate(request("gone", max_tokens=250))) as stream:
            await anext(stream)
        assert service.in_flight == 0
        await tokens(service, request("next"))
        assert (service.statistics.cancelled, service.statistics.running) == (1, 0)
        await service.close()

    run(body())


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (request(prompt=()), "prompt"),
        (request(prompt=(1, 50)), "prompt"),
        (request(max_tokens=0), "max_tokens"),
        (request(max_tokens=257), "max_tokens"),
    ],
)
def test_an_impossible_request_is_refused_with_its_field(
    deployment: Make, worker: Make, bad: Request, field: str
) -> None:
    async def body() -> None:
        service = await Service.start(deployment(), command=worker())
        with pytest.raises(InvalidRequest) as refused:
            await collect(service, bad)
        assert refused.value.field == field
        assert (service.in_flight, service.admission.requests) == (0, 0)
        await service.close()

    run(body())


def test_an_id_in_flight_is_refused_and_the_first_goes_on(deployment: Make, worker: Make) -> None:
    async def body() -> None:
        service = await Service.start(deployment(), command=worker())
        async with aclosing(service.generate(request(max_tokens=100))) as stream:
            first = (await anext(stream)).tokens
            with pytest.raises(InvalidRequest, match="in flight"):
                await collect(service, request())
            rest = [token async for output in stream for token in output.tokens]
        assert (*first, *rest) == expected_output(request(max_tokens=100), VOCABULARY)
        await service.close()

    run(body())


def test_beyond_the_queue_bound_requests_are_refused_with_a_time_to_come_back(deployment: Make, worker: Make) -> None:
    async def body() -> None:
        service = await Service.start(deployment({"server.queue.max_requests": 1}), command=worker())
        async with aclosing(service.generate(request("first"))) as stream:
            first = asyncio.ensure_future(anext(stream))
            await asyncio.sleep(0)
            with pytest.raises(Overloaded) as refused:
                await collect(service, request("second"))
            assert 0.05 <= refused.value.retry_after_s <= 60
            await first
        await service.close()

    run(body())


def test_reserved_requests_are_counted_once_and_what_was_not_run_is_given_back(deployment: Make, worker: Make) -> None:
    async def body() -> None:
        service = await Service.start(deployment({"server.queue.max_requests": 2}), command=worker())
        group = [request("a"), request("b")]
        with service.reserve(group):
            assert service.admission.requests == 2
            with pytest.raises(Overloaded):
                await collect(service, request("other"))
            with pytest.raises(InvalidRequest, match="in flight"), service.reserve(group):
                pass
            assert await tokens(service, group[0]) == expected_output(group[0], VOCABULARY)
        assert service.admission.requests == 0
        with pytest.raises(InvalidRequest, match="2 requests"), service.reserve([*group, request("c")]):
            pass
        assert await tokens(service, group[1]) == expected_output(group[1], VOCABULARY)
        await service.close()

    run(body())


class _Walked(tuple[int, ...]):
    """A prompt that counts how often somebody walks over it."""

    walks = 0

    def __iter__(self) -> Iterator[int]:
        self.walks += 1
        return super().__iter__()


def test_a_prompt_is_measured_once_for_all_its_sequences(deployment: Make, worker: Make) -> None:
    async def body() -> None:
        service = await Service.start(deployment(), command=worker())
        one, many = _Walked((1, 2, 3)), _Walked((1, 2, 3))
        with service.reserve([replace(request("a"), prompt=one)]):
            pass
        with service.reserve([replace(request(f"{at}"), prompt=many) for at in range(8)]):
            pass
        assert many.walks == one.walks > 0
        longer = replace(request("b"), prompt=many, max_tokens=10**6)
        with (
            pytest.raises(InvalidRequest, match="context"),
            service.reserve([replace(request("c"), prompt=many), longer]),
        ):
            pass
        assert service.admission.requests == 0
        await service.close()

    run(body())


def test_a_failing_request_fails_alone(deployment: Make, worker: Make) -> None:
    async def body() -> None:
        service = await Service.start(deployment(), command=worker(fail_on_token=13))
        good, bad = await asyncio.gather(
            tokens(service, request("good")), collect(service, request("bad", (13,))), return_exceptions=True
        )
        assert good == expected_output(request("good"), VOCABULARY)
        assert isinstance(bad, RequestFailed)
        assert service.restarts == 0
        await service.close()

    run(body())


def test_a_killed_worker_is_replaced_and_every_stream_goes_on_exactly(
    deployment: Make, worker: Make, caplog: pytest.LogCaptureFixture
) -> None:
    async def body() -> None:
        service = await Service.start(deployment(), command=worker(kill_at_step=9))
        first_pid = service.worker_pid
        requests = [request(f"r{i}", (i,), max_tokens=12 + i) for i in range(12)]
        found = await asyncio.gather(*(tokens(service, one) for one in requests))
        assert found == [expected_output(one, VOCABULARY) for one in requests]
        assert (service.restarts, service.state) == (1, "ready")
        assert service.worker_pid != first_pid
        await service.close()

    run(body())
    assert "killed by SIGKILL" in caplog.text


def test_gauges_are_those_of_the_worker_that_runs_and_totals_of_all(deployment: Make, worker: Make) -> None:
    async def body() -> None:
        service = await Service.start(deployment(), command=worker())
        while not service.statistics.free_blocks:
            await asyncio.sleep(0.001)
        await tokens(service, request())
        while not service.statistics.finished:
            await asyncio.sleep(0.001)
        assert service.worker_pid is not None
        os.kill(service.worker_pid, signal.SIGKILL)
        while service.restarts == 0 or service.state != "ready" or not service.statistics.free_blocks:
            await asyncio.sleep(0.001)
        assert service.statistics.running == service.statistics.waiting == service.statistics.held_blocks == 0
        assert service.statistics.finished == 1
        await service.close()

    run(body())


def test_a_request_that_arrives_while_the_worker_is_replaced_waits_for_it(deployment: Make, worker: Make) -> None:
    async def body() -> None:
        service = await Service.start(deployment(), command=worker())
        assert service.worker_pid is not None
        os.kill(service.worker_pid, signal.SIGKILL)
        while service.state != "restarting":
            await asyncio.sleep(0.001)
        assert await tokens(service, request()) == expected_output(request(), VOCABULARY)
        await service.close()

    run(body())


def test_nothing_is_sent_to_a_worker_whose_socket_has_ended(
    deployment: Make, worker: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    reap, may_reap = WorkerProcess._reap, asyncio.Event()

    async def reap_later(process: WorkerProcess) -> None:
        await may_reap.wait()
        await reap(process)

    monkeypatch.setattr(WorkerProcess, "_reap", reap_later)

    async def body() -> None:
        service = await Service.start(deployment(), command=worker())
        assert service.worker_pid is not None
        os.kill(service.worker_pid, signal.SIGKILL)
        while service.state == "ready":
            await asyncio.sleep(0.001)
        late = asyncio.create_task(tokens(service, request()))
        while not service.in_flight:
            await asyncio.sleep(0)
        assert service._in_flight.in_worker() == []
        may_reap.set()
        assert await late == expected_output(request(), VOCABULARY)
        await service.close()

    run(body())


def test_a_worker_whose_step_hangs_is_replaced(
    deployment: Make, worker: Make, caplog: pytest.LogCaptureFixture
) -> None:
    async def body() -> None:
        service = await Service.start(deployment({"server.step_deadline": "300ms"}), command=worker(hang_at_step=5))
        assert await tokens(service, request("stuck")) == expected_output(request("stuck"), VOCABULARY)
        assert service.restarts >= 1, "on a busy machine others are too slow for so short a deadline as well"
        await service.close()

    run(body())
    assert "requests: stuck" in caplog.text


def test_a_worker_that_sends_garbage_is_replaced(deployment: Make, worker: Make) -> None:
    async def body() -> None:
        service = await Service.start(deployment(), command=worker(garbage_at_step=4, fresh=True))
        assert await tokens(service, request()) == expected_output(request(), VOCABULARY)
        assert service.restarts == 1
        await service.close()

    run(body())


def test_a_request_that_kills_every_worker_fails_alone(deployment: Make, worker: Make) -> None:
    async def body() -> None:
        service = await Service.start(deployment(), command=worker(raise_on_token=13))
        good = [request(f"good{i}", (i,)) for i in range(3)]
        bad = [request(f"bad{i}", (13, i)) for i in range(2)]
        found = await asyncio.gather(*(tokens(service, one) for one in good + bad), return_exceptions=True)
        assert found[:3] == [expected_output(one, VOCABULARY) for one in good]
        assert [type(one) for one in found[3:]] == [RequestFailed] * 2
        assert await tokens(service, request("later")) == expected_output(request("later"), VOCABULARY)
        assert service.state == "ready"
        await service.close()

    run(body())


def test_who_only_waited_is_not_blamed_for_a_workers_death(deployment: Make, worker: Make) -> None:
    async def body() -> None:
        service = await Service.start(deployment({"policy.max_seqs": 1}), command=worker(raise_on_token=13))
        bad = asyncio.create_task(collect(service, request("bad", (13,))))
        good = asyncio.create_task(tokens(service, request("good")))
        blame: set[int] = set()
        while not bad.done():
            blame |= {stream.deaths for id, stream in service._streams.items() if id == "good"}
            await asyncio.sleep(0.001)
        assert blame == {0}
        assert isinstance(bad.exception(), RequestFailed)
        assert await good == expected_output(request("good"), VOCABULARY)
        await service.close()

    run(body())


def test_when_no_worker_gets_to_its_first_step_the_service_gives_up_and_says_why(
    deployment: Make, worker: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock.runtime.supervisor.BACK_OFF_S", (0.0,))

    async def body() -> None:
        service = await Service.start(deployment(), command=worker(kill_at_step=3, fail_to_start="exit later"))
        with pytest.raises(RequestFailed, match="12 workers in a row"):
            await collect(service, request())
        assert service.stopped.is_set()
        assert service.state == "stopped"
        with pytest.raises(Unavailable, match="exit code 3"):
            await collect(service, request("late"))
        await service.close()

    run(body())


def test_a_workers_refusal_of_the_model_is_the_services_own_error(deployment: Make, worker: Make) -> None:
    async def body() -> None:
        with pytest.raises(UnsupportedModel) as refused:
            await Service.start(deployment(), command=worker(fail_to_start="bad model"))
        assert (refused.value.field, refused.value.value) == ("architectures[0]", "Nonesuch")

    run(body())


def test_a_worker_that_cannot_start_is_an_error_that_says_how_it_ended(deployment: Make, worker: Make) -> None:
    async def body() -> None:
        with pytest.raises(PenstockError, match="exit code 3"):
            await Service.start(deployment(), command=worker(fail_to_start="exit"))
        with pytest.raises(PenstockError, match="cannot be started"):
            await Service.start(deployment(), command=("/nonexistent/worker",))

    run(body())


def test_draining_refuses_new_requests_and_lets_running_ones_finish(deployment: Make, worker: Make) -> None:
    async def body() -> None:
        service = await Service.start(deployment(), command=worker())
        async with aclosing(service.generate(request(max_tokens=100))) as stream:
            first = (await anext(stream)).tokens
            draining = asyncio.create_task(service.drain(30.0))
            await asyncio.sleep(0)
            assert service.state == "draining"
            with pytest.raises(Unavailable, match="shutting down"):
                await collect(service, request("late"))
            told = service.retry_after_s
            await asyncio.sleep(0.01)
            assert service.retry_after_s < told <= 30.0, "what is left of the drain, not all of it"
            rest = [token async for output in stream for token in output.tokens]
        assert await draining == 0
        assert (*first, *rest) == expected_output(request(max_tokens=100), VOCABULARY)
        await service.close()
        assert service.state == "stopped"

    run(body())


def test_draining_does_not_wait_for_a_reader_that_takes_nothing(deployment: Make, worker: Make) -> None:
    async def body() -> None:
        service = await Service.start(deployment(), command=worker())
        async with aclosing(service.generate(request(max_tokens=100))) as unread:
            await anext(unread)
            async with asyncio.timeout(30):
                assert await service.drain(600.0) == 0
            assert [output.finished async for output in unread][-1] == "length"
        await service.close()

    run(body())


def test_what_outlives_the_drain_gets_a_clean_error(deployment: Make, worker: Make) -> None:
    async def body() -> None:
        service = await Service.start(deployment(), command=worker(hang_at_step=5))
        stuck = asyncio.create_task(tokens(service, request(max_tokens=100)))
        while not service.statistics.steps:
            await asyncio.sleep(0.001)
        assert await service.drain(0.05) == 1
        with pytest.raises(Unavailable, match="shutting down"):
            await stuck
        await service.close()

    run(body())


def test_sampling_without_a_seed_gets_one_so_that_it_can_be_resumed(
    deployment: Make, worker: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []

    def draw(bits: int) -> int:
        drawn.append(bits)
        return 7

    monkeypatch.setattr("penstock.runtime.service.secrets.randbits", draw)

    async def body() -> None:
        service = await Service.start(deployment(), command=worker())
        await tokens(service, request("unseeded", sampling=Sampling(temperature=1.0)))
        assert drawn == [63]
        await tokens(service, request("seeded", sampling=Sampling(temperature=1.0, seed=1)))
        await tokens(service, request("greedy", sampling=Sampling(temperature=0.0)))
        assert drawn == [63]
        await service.close()

    run(body())


PARENT = """
import asyncio, json, os, sys
from penstock.deployment import Deployment
from penstock.runtime.service import Service

async def main():
    service = await Service.start(Deployment(), command=json.loads(sys.argv[1]))
    print(service.worker_pid, flush=True)
    os.kill(os.getpid(), 9)

asyncio.run(main())
"""


def test_a_worker_ends_when_its_parent_is_killed(worker: Make) -> None:
    import json

    import psutil

    parent = subprocess.run(
        [sys.executable, "-c", PARENT, json.dumps(worker())],
        stdout=subprocess.PIPE,
        text=True,
        timeout=200,
        check=False,
    )
    assert parent.returncode == -signal.SIGKILL
    pid = int(parent.stdout)
    try:
        orphan = psutil.Process(pid)
    except psutil.NoSuchProcess:
        return
    _, alive = psutil.wait_procs([orphan], timeout=60)
    assert not alive or orphan.status() == psutil.STATUS_ZOMBIE


def test_the_front_end_never_imports_torch() -> None:
    code = (
        "import sys, penstock.runtime.service, penstock.runtime, penstock.cli.serve, penstock.cli.hosting\n"
        "assert not [name for name in ('torch', 'transformers', 'pickle5') if name in sys.modules]"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=200).returncode == 0
