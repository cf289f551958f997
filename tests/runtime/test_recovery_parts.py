"""What recovery rests on: is a process at rest or computing; workers as forks; a recording that cannot go on."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import uvloop

from penstock.control.request import Request
from penstock.runtime import process as process_module
from penstock.runtime import wire
from penstock.runtime.launch import Child, Forks, OnMark
from penstock.runtime.liveness import Liveness
from penstock.runtime.process import WorkerProcess
from penstock.runtime.service import Service
from penstock.testing import expected_output

Make = Callable[..., Any]
linux = pytest.mark.skipif(sys.platform != "linux", reason="/proc, and children that end with their parent")


@contextmanager
def program(code: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@linux
def test_a_process_that_waits_or_was_stopped_rests_and_one_that_computes_does_not() -> None:
    with program("import time; print(flush=True); time.sleep(600)") as waits:
        alive = Liveness(waits.pid)
        while alive.rests_for(0.0, working=True) or alive.rests_for(1.0, working=True) != 1.0:
            time.sleep(0.01)  # the last of its start
        assert alive.rests_for(10.0, working=True) == 10.0
        assert alive.rests_for(11.0, working=False) == 0.0, "nobody expects anything of it"
        assert alive.rests_for(12.0, working=True) == 0.0
    with program("print(flush=True)\nwhile True: pass") as spins:
        alive = Liveness(spins.pid)
        assert alive.rests_for(0.0, working=True) == 0.0
        now = 0.0
        while True:  # one long step, in which it burns time: at rest for none of it
            time.sleep(0.05)
            now += 0.1
            if alive.rests_for(now, working=True) == 0.0:
                break
        spins.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, spins.pid, os.WSTOPPED | os.WNOWAIT)
        alive.rests_for(now + 1.0, working=True)  # what it computed until it stopped
        assert alive.rests_for(now + 8.0, working=True) >= 7.0
        assert (alive.stopped_for(20.0), alive.stopped_for(23.0)) == (0.0, 3.0)
        spins.send_signal(signal.SIGCONT)
        while alive.stopped_for(24.0):
            time.sleep(0.01)
        assert alive.stopped_for(25.0) == 0.0
    assert alive.rests_for(999.0, working=True) == 0.0, "it is gone"


@linux
@pytest.mark.parametrize("state", ["R", "D"])
def test_a_process_does_not_rest_while_a_thread_waits_for_a_processor_or_a_disk(tmp_path: Path, state: str) -> None:
    def told(path: str, state: str) -> None:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"7 (a) b) {state} " + "0 " * 40)

    alive = Liveness(7, tmp_path)
    for path in ("7/stat", "7/task/7/stat"):
        told(path, "S")
    told("7/task/8/stat", state)
    assert [alive.rests_for(now, working=True) for now in (0.0, 9.0)] == [0.0, 0.0]
    told("7/task/8/stat", "S")
    assert [alive.rests_for(now, working=True) for now in (10.0, 20.0)] == [1.0, 11.0]


@linux
def test_a_process_that_ends_while_its_threads_are_listed_ends_nobody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(path: Path, pattern: str) -> None:
        raise FileNotFoundError(path)

    (tmp_path / "7").mkdir()
    (tmp_path / "7/stat").write_text("7 (a) S " + "0 " * 40)
    monkeypatch.setattr(Path, "glob", gone)
    alive = Liveness(7, tmp_path)
    assert [alive.rests_for(now, working=True) for now in (0.0, 9.0)] == [0.0, 9.0]


@linux
def test_forks_tell_how_they_ended_and_end_with_their_server() -> None:
    async def body() -> None:
        # A worker that ends as soon as its socket does: nothing of an engine is needed.
        forks = Forks((sys.executable, "-c", FORK_SERVER))
        marks: list[str] = []
        ours, theirs = socket.socketpair()
        with ours, theirs:
            one = await forks.launch(theirs, lambda name, ended, detail: marks.append(name))
            assert marks == ["start Python", "import torch"]
            two = await forks.launch(theirs, lambda name, ended, detail: marks.append(name))
            assert len(marks) == 2, "the imports are done"
            one.signal(signal.SIGKILL)
            assert await one.reap(30.0) == -signal.SIGKILL
            one.signal(signal.SIGKILL)  # long gone
            assert forks._server is not None
            server = forks._server.pid
            forks._server.kill()
            assert await two.reap(30.0) == -signal.SIGKILL
            three = await forks.launch(theirs, lambda name, ended, detail: marks.append(name))
            assert forks._server.pid != server
            theirs.close()
            ours.close()
            assert await three.reap(30.0) == 0
        await forks.close()

    asyncio.run(body())


FORK_SERVER = """
import os, socket, sys
from penstock.runtime.forkserver import serve_forks
from penstock.runtime.parent import die_with_parent

def child(fd):
    die_with_parent()
    socket.socket(fileno=fd).recv(1)

serve_forks(socket.socket(fileno=int(sys.argv[-1])), child, preload=("json",))
"""


@linux
def test_a_program_that_cannot_fork_is_an_error_that_says_so() -> None:
    async def body() -> None:
        forks = Forks((sys.executable, "-c", "raise SystemExit(3)"))
        with socket.socket() as link, pytest.raises(OSError, match="has ended"):
            await forks.launch(link, lambda name, ended, detail: None)
        await forks.close()

    asyncio.run(body())


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_what_a_worker_said_before_its_end_is_heard_although_a_write_to_it_fails(
    loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """Its last words say what it died of."""

    class Gone:
        """It has said two things and is gone before this process looks."""

        pid = 0

        async def launch(self, link: socket.socket, on_mark: OnMark) -> Child:
            link.sendall(wire.encode(wire.Admitted(["a"])) + wire.encode(wire.Admitted(["b"])))
            link.shutdown(socket.SHUT_RDWR)
            return self

        async def close(self) -> None:
            """Nothing to close."""

        def signal(self, number: signal.Signals) -> None:
            """Nobody to signal."""

        async def reap(self, grace_s: float) -> int:
            return 0

    async def body() -> tuple[str, list[wire.FromWorker]]:
        heard: list[wire.FromWorker] = []
        worker = await WorkerProcess.spawn(Gone(), heard.append, lambda: None, lambda *_: None)
        worker.send(wire.Cancel("a"))
        async with asyncio.timeout(60):
            return await worker.exited, heard

    with asyncio.Runner(loop_factory=loop) as runner:
        ending, heard = runner.run(body())
    assert ending == "exit code 0"
    assert heard == [wire.Admitted(["a"]), wire.Admitted(["b"])]


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_messages_of_a_burst_leave_in_order_and_all_but_the_first_together(
    loop: Callable[[], asyncio.AbstractEventLoop], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 0.0
    monkeypatch.setattr(process_module, "time", SimpleNamespace(monotonic=lambda: now))

    class Reading:
        """Its end of the link is the test's."""

        pid = 0

        async def launch(self, link: socket.socket, on_mark: OnMark) -> Child:
            self.link = link.dup()
            return self

        async def close(self) -> None:
            """Nothing to close."""

        def signal(self, number: signal.Signals) -> None:
            """Nobody to signal."""

        async def reap(self, grace_s: float) -> int:
            return 0

    async def body() -> list[list[wire.ToWorker]]:
        nonlocal now
        reading = Reading()
        worker = await WorkerProcess.spawn(reading, lambda message: None, lambda: None, lambda *_: None)
        frames = wire.Frames(wire.to_worker)
        heard: list[list[wire.ToWorker]] = []
        with reading.link as link:
            for burst in ("abc", "d"):
                for id in burst:
                    worker.send(wire.Cancel(id))
                heard.append(list(frames.feed(link.recv(2**16))))
                await asyncio.sleep(0.01)
                now += 1.0  # longer than a burst is
                heard.append(list(frames.feed(link.recv(2**16))) if len(burst) > 1 else [])
            worker.send(wire.Cancel("e"))
            worker.send(wire.Cancel("f"))
            heard.append(list(frames.feed(link.recv(2**16))))
            worker._transport.close()  # type: ignore[union-attr]
        await worker.exited
        return heard

    with asyncio.Runner(loop_factory=loop) as runner:
        heard = runner.run(body())
    assert [[message.id for message in some if isinstance(message, wire.Cancel)] for some in heard] == [
        ["a"], ["b", "c"], ["d"], [], ["e"]
    ]  # fmt: skip


def test_a_full_disk_ends_the_recording_and_nothing_else(
    deployment: Make, worker: Make, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recorded = tmp_path / "schedule.jsonl"
    one = Request(id="a", prompt=(1, 2, 3), max_tokens=240)

    async def body() -> None:
        here = deployment({"server.record": str(recorded)})
        service = await Service.start(here, command=worker(file_bytes=12_000, fresh=True))
        for number in range(3):
            again = Request(id=f"{number}", prompt=one.prompt, max_tokens=one.max_tokens)
            tokens = [token async for output in service.generate(again) for token in output.tokens]
            assert tuple(tokens) == expected_output(one, 50)
        assert service.restarts == 0
        await service.close()

    asyncio.run(body())
    assert f"recording into {recorded} has ended: File too large" in capfd.readouterr().err
    assert 0 < recorded.stat().st_size <= 12_000
