"""SERVING-CHECKLIST section 13: a fault at every process and step boundary, and the tokens of the undisturbed run.

Real engine and small checkpoint. Every step's books are recounted (faulty_worker.py); at the end nothing is held.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from penstock.control.request import Request, Sampling
from penstock.deployment import Deployment
from penstock.errors import RequestFailed, Unavailable
from penstock.runtime.service import Service
from tests.runtime.faults import Bench, Fault, OfWorker, Served, assert_same, idle, requests, served

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux")


@pytest.fixture(scope="module")
def bench(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    bench = Bench(tmp_path_factory.mktemp("faults"), checkpoint)
    yield bench
    bench.run(bench.forks.close())
    bench.runner.close()


@pytest.fixture(autouse=True)
def seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The seeds that the front end draws are the same in each run."""
    monkeypatch.setattr("penstock.runtime.service.secrets.randbits", lambda bits: next(Bench.seeds))


@pytest.fixture(scope="module")
def undisturbed(bench: Bench) -> Callable[..., dict[str, Served]]:
    runs: dict[str, dict[str, Served]] = {}

    def of(deployment: Deployment) -> dict[str, Served]:
        key = deployment.to_yaml()
        if key not in runs:
            runs[key] = bench.serve(deployment)
        return runs[key]

    return of


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that was stopped is found soon. One that computes does not rest, however slow it is."""
    monkeypatch.setattr("penstock.runtime.supervisor.QUIET_S", 0.2)
    monkeypatch.setattr("penstock.runtime.supervisor.SLOWEST_STEPS", 3)
    monkeypatch.setattr("penstock.runtime.supervisor.POLL_S", 0.05)
    monkeypatch.setattr("penstock.runtime.supervisor.LAST_DUMP_S", 60.0)  # it goes on, whenever it gets a processor


@pytest.fixture(params=["kill", "stop"])
def strike(request: pytest.FixtureRequest) -> str:
    """SIGKILL or SIGSTOP."""
    if request.param == "stop":
        request.getfixturevalue("impatient")
    return str(request.param)


AMID: Fault = {"at": "before run", "hit": 20, "do": "stop"}
"""Then the worker is there, and has work, until something is done to it."""

BOUNDARIES = [
    ("submit read", 5), ("before submit", 3), ("after submit", 6), ("before plan", 8), ("after plan", 9),
    ("before launch", 2), ("after launch", 7), ("before run", 5), ("after run", 11), ("before commit", 1),
    ("after commit", 13), ("before prefill", 2), ("after prefill", 3),
    ("before Admitted", 1), ("amid Admitted", 1), ("after Admitted", 2),
    ("before Stepped", 4), ("amid Stepped", 9), ("after Stepped", 12),
]  # fmt: skip


@pytest.mark.parametrize(("boundary", "hit"), BOUNDARIES)
def test_killed_at(bench: Bench, undisturbed: Callable[..., Any], boundary: str, hit: int) -> None:
    here = bench.deployment()
    assert_same(bench.serve(here, {"at": boundary, "hit": hit, "do": "kill"}), undisturbed(here))


@pytest.mark.parametrize("deed", ["exit", "raise", "drop", "garbage"])
@pytest.mark.parametrize(("boundary", "hit"), [("before run", 4), ("before Stepped", 6)])
def test_other_ends(bench: Bench, undisturbed: Callable[..., Any], boundary: str, hit: int, deed: str) -> None:
    here = bench.deployment()
    assert_same(bench.serve(here, {"at": boundary, "hit": hit, "do": deed}), undisturbed(here))


@pytest.mark.parametrize(("boundary", "hit"), BOUNDARIES)
@pytest.mark.usefixtures("impatient")
def test_stopped_at(
    bench: Bench, undisturbed: Callable[..., Any], boundary: str, hit: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Found long before `server.step_deadline`, since a worker that was stopped does not compute."""
    here = bench.deployment()
    wanted = undisturbed(here)
    with caplog.at_level(logging.ERROR, "penstock.runtime"):
        assert_same(bench.serve(here, {"at": boundary, "hit": hit, "do": "stop"}), wanted)
    reports = [record for record in caplog.records if "made no step" in record.message]
    assert reports
    assert all(report.request_ids and report.step >= 0 for report in reports)  # type: ignore[attr-defined]
    assert "Current thread" in (bench.begun / "stderr").read_text(), "the stacks of all its threads"


@pytest.mark.parametrize("of_all", [True, False], ids=["the first worker", "its successor"])
@pytest.mark.usefixtures("impatient")
def test_stopped_again_and_again_while_it_starts(
    bench: Bench, undisturbed: Callable[..., Any], of_all: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """It is woken: nobody knows how long loading takes, so no deadline would find it soon."""
    here = bench.deployment()
    wanted = undisturbed(here)
    places = ["load", "loaded", "before Ready", "amid Ready"]
    starting: list[Fault] = [{"at": place, "do": "stop"} for place in places]
    ready: Fault = {"at": "after Ready", "do": "stop"}
    faults: list[OfWorker] = [[*starting, {"at": "before run", "hit": 6, "do": "kill"}]]
    if not of_all:
        faults = [{"at": "before run", "hit": 6, "do": "kill"}, [*starting, ready]]
    with caplog.at_level(logging.WARNING, "penstock.runtime"):
        assert_same(bench.serve(here, *faults), wanted)
    assert sum("which starts, has been stopped by a signal" in record.message for record in caplog.records) >= len(
        places
    )
    assert not any("it was not ready within" in record.message for record in caplog.records)


def test_killed_again_and_again_while_it_starts_and_right_after(
    bench: Bench, undisturbed: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("penstock.runtime.supervisor.BACK_OFF_S", (0.0,))
    here = bench.deployment()
    places = [("before run", 6), ("load", 1), ("loaded", 1), ("before Ready", 1), ("after run", 12),
              ("amid Ready", 1), ("after Ready", 1), ("after Stepped", 12)]  # fmt: skip
    faults = [{"at": place, "hit": hit, "do": "kill"} for place, hit in places]
    assert_same(bench.serve(here, *faults), undisturbed(here))


@pytest.mark.parametrize(("boundary", "hit"), [("before swap out", 1), ("after swap out", 2), ("before swap in", 1)])
def test_killed_or_stopped_while_swapping(
    bench: Bench, undisturbed: Callable[..., Any], boundary: str, hit: int, strike: str
) -> None:
    tight = {"memory.kv_bytes": "300KiB", "memory.host_bytes": "1MiB", "memory.kind": "paged", "policy.evict": "swap"}
    here = bench.deployment(**tight)
    assert_same(bench.serve(here, {"at": boundary, "hit": hit, "do": strike}), undisturbed(here))


@pytest.mark.parametrize("boundary", ["before evict", "after evict"])
def test_killed_or_stopped_while_evicting(
    bench: Bench, undisturbed: Callable[..., Any], boundary: str, strike: str
) -> None:
    here = bench.deployment(**{"memory.kv_bytes": "300KiB"})
    assert_same(bench.serve(here, {"at": boundary, "do": strike}), undisturbed(here))


@pytest.mark.parametrize("boundary", ["before cancel", "after cancel"])
def test_killed_or_stopped_when_a_client_leaves(
    bench: Bench, undisturbed: Callable[..., Any], boundary: str, strike: str
) -> None:
    here = bench.deployment()
    wanted = undisturbed(here)

    async def leave_soon(service: Service) -> None:
        request = Request(id="leaves", prompt=(1, 2, 3), max_tokens=200, sampling=Sampling(temperature=0.0))
        async with aclosing(service.generate(request)) as outputs:  # type: ignore[type-var]
            await anext(outputs)
            await bench.until_struck(1)
            pid = service.worker_pid
            assert pid is not None
        await asyncio.sleep(0)  # that it leaves has been sent, and it waits for the worker
        while bench.struck() < 2:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
            await asyncio.sleep(0.01)

    async def body() -> dict[str, Served]:
        # Stopped in the middle, so that the worker is not done with all of it before it hears that one has left.
        faults: list[Fault] = [{"at": "after Stepped", "hit": 6, "do": "stop"}, {"at": boundary, "do": strike}]
        async with bench.service(here, faults) as service:
            _, *found = await asyncio.gather(leave_soon(service), *(served(service, one) for one in requests()))
            bench.assert_struck(service, faults)
            await idle(service)
            return {one.id: each for one, each in zip(requests(), found, strict=True)}

    assert_same(bench.run(body()), wanted)


def test_killed_or_stopped_while_draining(bench: Bench, undisturbed: Callable[..., Any], strike: str) -> None:
    here = bench.deployment()
    wanted = undisturbed(here)

    async def body() -> dict[str, Served]:
        fault = {"at": "before run", "hit": 8, "do": strike}
        async with bench.service(here, fault) as service:
            running = [asyncio.create_task(served(service, one)) for one in requests()]
            await asyncio.sleep(0)
            draining = asyncio.create_task(service.drain(60.0))
            await asyncio.sleep(0)
            with pytest.raises(Unavailable):
                await served(service, Request(id="late", prompt=(1,), max_tokens=1))
            assert await draining == 0
            bench.assert_struck(service, fault)
            found = await asyncio.gather(*running)
            return {one.id: each for one, each in zip(requests(), found, strict=True)}

    assert_same(bench.run(body()), wanted)


def test_an_idle_worker_may_be_killed_any_number_of_times(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("penstock.runtime.supervisor.SETTLED_S", 0.0)
    monkeypatch.setattr("penstock.runtime.supervisor.BACK_OFF_S", (0.0,))

    async def body() -> None:
        async with bench.service(bench.deployment(), *[{"at": "after Stepped", "do": "kill"}] * 8) as service:
            while service.restarts < 8 or service.state != "ready":
                assert service.failure is None
                await asyncio.sleep(0.01)

    bench.run(body())


@pytest.mark.parametrize(("deed", "workers"), [("raise", 3), ("kill", 9)])
def test_a_request_of_which_every_worker_dies_before_it_is_admitted_fails_alone(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, deed: str, workers: int
) -> None:
    monkeypatch.setattr("penstock.runtime.supervisor.BACK_OFF_S", (0.0,))

    async def body() -> None:
        faults = [{"at": "before submit", "do": deed}] * (workers + 1)  # nobody is blamed for the first
        async with bench.service(bench.deployment(), *faults) as service:
            with pytest.raises(RequestFailed, match=f"{workers} workers ended"):
                await served(service, Request(id="deadly", prompt=(1, 2), max_tokens=4))
            late = await served(service, Request(id="good", prompt=(1, 2), max_tokens=4))
            assert len(late.tokens) == 4
            assert service.restarts == workers + 1

    bench.run(body())


def test_a_request_survives_a_storm_of_kills(bench: Bench, undisturbed: Callable[..., Any]) -> None:
    """More of them without a token than crashes would be forgiven."""
    here = bench.deployment()
    faults = [{"at": "before run", "hit": 1, "do": "kill"}] * 7 + [{"at": "after run", "hit": 6, "do": "kill"}] * 3
    assert_same(bench.serve(here, *faults), undisturbed(here))


def test_the_fork_server_itself_may_be_killed(bench: Bench, undisturbed: Callable[..., Any]) -> None:
    here = bench.deployment()
    wanted = undisturbed(here)

    async def body() -> dict[str, Served]:
        async with bench.service(here, AMID) as service:
            running = [asyncio.create_task(served(service, one)) for one in requests()]
            await bench.until_struck(1)
            assert bench.forks._server is not None
            bench.forks._server.kill()
            found = await asyncio.gather(*running)
            assert service.restarts == 1
            return {one.id: each for one, each in zip(requests(), found, strict=True)}

    assert_same(bench.run(body()), wanted)


def test_a_fork_server_that_stands_still_is_replaced(
    bench: Bench, undisturbed: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    here = bench.deployment()
    wanted = undisturbed(here)
    monkeypatch.setattr("penstock.runtime.launch.FORK_PATIENCE_S", 0.5)
    monkeypatch.setattr("penstock.runtime.process.REAP_S", 0.2)

    async def body() -> dict[str, Served]:
        async with bench.service(here, AMID) as service:
            running = [asyncio.create_task(served(service, one)) for one in requests()]
            await bench.until_struck(1)
            stopped = bench.forks._server
            assert stopped is not None
            assert service.worker_pid is not None
            stopped.send_signal(signal.SIGSTOP)
            os.kill(service.worker_pid, signal.SIGKILL)
            found = await asyncio.gather(*running)
            assert service.restarts == 1
            assert stopped.wait(timeout=60) == -signal.SIGKILL
            return {one.id: each for one, each in zip(requests(), found, strict=True)}

    with caplog.at_level(logging.WARNING, "penstock.runtime"):
        assert_same(bench.run(body()), wanted)
    assert "the fork server does not answer" in caplog.text


def test_a_fork_server_that_stands_still_disturbs_no_worker(bench: Bench, undisturbed: Callable[..., Any]) -> None:
    here = bench.deployment()
    wanted = undisturbed(here)

    async def body() -> dict[str, Served]:
        async with bench.service(here) as service:
            assert bench.forks._server is not None
            bench.forks._server.send_signal(signal.SIGSTOP)
            found = await asyncio.gather(*(served(service, one) for one in requests()))
            bench.forks._server.send_signal(signal.SIGCONT)
            assert service.restarts == 0
            return {one.id: each for one, each in zip(requests(), found, strict=True)}

    assert_same(bench.run(body()), wanted)
