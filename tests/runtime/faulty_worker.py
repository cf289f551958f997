"""The real worker with the real engine, and a fault at a boundary that a test names. Every step is recounted.

python faulty_worker.py SCRIPT --fd N            or --fork-server N, and each fork reads SCRIPT when it starts

SCRIPT is a JSON file: {"faults": [{"at": BOUNDARY, "hit": 3, "do": "kill"}, ...], "begun": DIRECTORY}; stderr goes to a
file there, and a file "struck N" for each fault that came about. The first worker has the first fault, its successor
the second, and so on; those after the last have none. A list in the place of a fault: that worker has all of them, one
after the other. `hit` counts how often it comes to the boundary since its last one; `do` is kill, stop, exit, raise,
drop (the link), or garbage (into the link).

load, loaded                       while it starts
submit read                        a request is out of the socket
before X, after X                  X: submit, cancel, plan, launch, run, commit; the message Admitted, Stepped or Ready
amid X                             half of such a message's frame is in the socket
before X, after X, X as part of a step that is run: prefill, swap out, swap in, evict
"""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import penstock.runtime.worker as module
from penstock.control.step import Step, StepResult
from penstock.deployment import Deployment
from penstock.runtime import wire
from penstock.runtime.build import Built, OnPhase, build
from penstock.runtime.local import Loop
from penstock.runtime.reading import OnRead

SCRIPT = Path(sys.argv[1])


class Fault:
    """What happens to this process, and where."""

    def __init__(self) -> None:
        script = json.loads(SCRIPT.read_text())
        begun = Path(script["begun"])
        number = len(list(begun.glob("worker*")))
        (begun / f"worker {number}").touch()
        with (begun / "stderr").open("ab") as errors:
            os.dup2(errors.fileno(), 2)
        mine = script["faults"][number : number + 1]
        self.faults: list[dict[str, Any]] = mine[0] if mine and isinstance(mine[0], list) else mine
        self.begun = begun
        self.hits = 0
        self.link: socket.socket | None = None

    def here(self, boundary: str) -> bool:
        if not self.faults or boundary != self.faults[0]["at"]:
            return False
        self.hits += 1
        return bool(self.hits == self.faults[0].get("hit", 1))

    def at(self, boundary: str) -> None:
        if self.here(boundary):
            self.strike()

    def strike(self) -> None:
        fault, self.hits = self.faults.pop(0), 0
        (self.begun / f"struck {len(list(self.begun.glob('struck*')))}").touch()
        match fault["do"]:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "exit":
                os._exit(0)
            case "drop":
                assert self.link is not None
                self.link.shutdown(socket.SHUT_RDWR)
            case "garbage":
                assert self.link is not None
                self.link.sendall(b"\xff" * 64)
            case "raise":
                raise RuntimeError("a fault on purpose")


class Events(queue.SimpleQueue[Any]):
    """What arrives, with a boundary before it is queued."""

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        if isinstance(item, wire.Submit):
            FAULT.at("submit read")
        super().put(item, block, timeout)


class FaultyWorker(module.Worker):
    def __init__(self, link: socket.socket) -> None:
        super().__init__(link)
        self.events = Events()
        FAULT.link = link

    def send(self, message: wire.FromWorker) -> None:
        name = type(message).__name__
        FAULT.at(f"before {name}")
        frame = wire.encode(message)
        if FAULT.here(f"amid {name}"):
            self._link.sendall(frame[: len(frame) // 2])
            FAULT.strike()
            frame = frame[len(frame) // 2 :]
        self._link.sendall(frame)
        FAULT.at(f"after {name}")

    def _handle(self, loop: Loop, event: module.Event) -> None:
        name = {wire.Submit: "submit", wire.Cancel: "cancel"}.get(type(event), "result")  # type: ignore[call-overload]
        FAULT.at(f"before {name}")
        super()._handle(loop, event)
        FAULT.at(f"after {name}")

    def _launch(self, step: Step) -> None:
        FAULT.at("before launch")
        super()._launch(step)
        FAULT.at("after launch")


class Checked:
    """A replica that is recounted after every commit."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def plan(self, now: float) -> Step | None:
        FAULT.at("before plan")
        step: Step | None = self.inner.plan(now)
        if step is not None:
            FAULT.at("after plan")
        return step

    def commit(self, step: Step, result: StepResult, now: float) -> Any:
        FAULT.at("before commit")
        updates = self.inner.commit(step, result, now)
        self.inner.check()
        FAULT.at("after commit")
        return updates


class Engine:
    """An engine that is recounted after every step."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def run(self, step: Step) -> StepResult:
        parts = {"run": True, "prefill": step.chunks, "swap out": step.swap_out, "swap in": step.swap_in,
                 "evict": step.evict}  # fmt: skip
        for name in (name for name, part in parts.items() if part):
            FAULT.at(f"before {name}")
        result: StepResult = self.inner.run(step)
        self.inner.check()
        for name in (name for name, part in parts.items() if part):
            FAULT.at(f"after {name}")
        return result


def builder(deployment: Deployment, on_phase: OnPhase, on_read: OnRead) -> Built:
    FAULT.at("load")
    built = build(deployment, on_phase, on_read)
    FAULT.at("loaded")
    return Built(Checked(built.replica), Engine(built.executor), built.info, built.plan_ahead, built.host_blocks)  # type: ignore[arg-type]


def work(fd: int, build: module.Builder) -> None:
    global FAULT
    FAULT = Fault()
    real_work(fd, builder)


FAULT: Fault
real_work = module.work
module.Worker = FaultyWorker  # type: ignore[misc]
module.work = work

if __name__ == "__main__":
    module.main(sys.argv[2:])
