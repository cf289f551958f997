"""A worker process for tests: the real protocol and threads, and an executor that misbehaves on request.

python scripted_worker.py '{"kill_at_step": 5, "marker": "/tmp/m"}' --fd N
python scripted_worker.py @FILE --fork-server N          each fork reads its script from FILE when it starts

engine            "scripted" (default) or "real": the deployment's model
fail_to_start     "bad model", "exit", or "exit later": in all but the first worker
kill_at_step      SIGKILL itself when this step is to run, in the first worker only (the marker remembers)
hang_at_step      never come back from this step, in the first worker only
step_s            seconds that every step takes
hang_to_start     a file: the second worker writes its process id there and is never ready
garbage_at_step   write bytes that are no message into the socket, in the first worker only
raise_on_token    raise whenever a prompt with this token is computed, in every worker
fail_on_token     report a request with this token as failed
file_bytes        no file can grow beyond this: as on a full disk
reads             tell that so many of 100 bytes of weights are read
fresh             for conftest.py: a program of its own, no fork
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from penstock.control.request import Request
from penstock.control.step import Step, StepResult
from penstock.deployment import Deployment
from penstock.errors import UnsupportedModel
from penstock.runtime.build import Built, OnPhase, build
from penstock.runtime.executor import Executor
from penstock.runtime.facts import ModelInfo
from penstock.runtime.reading import OnRead
from penstock.runtime.worker import main
from penstock.testing import ScriptedExecutor, small_replica

VOCABULARY = 50
BLOCKS, BLOCK_TOKENS = 64, 4


@dataclass
class Misbehaving:
    """An executor with a script."""

    inner: Executor
    script: dict[str, Any]

    def add(self, request: Request) -> None:
        if self.script.get("fail_on_token") in request.prompt:
            self.inner.fails |= {request.id}  # type: ignore[attr-defined]
        if self.script.get("raise_on_token") in request.prompt:
            self.script.setdefault("poison", []).append(request.id)
        self.inner.add(request)

    def run(self, step: Step) -> StepResult:
        time.sleep(self.script.get("step_s", 0.0))
        if step.number == self.script.get("kill_at_step") and self._first():
            os.kill(os.getpid(), signal.SIGKILL)
        if step.number == self.script.get("hang_at_step") and self._first():
            threading.Event().wait()
        if step.number == self.script.get("garbage_at_step") and self._first():
            os.write(int(sys.argv[-1]), b"\xff" * 64)
        if any(chunk.id in self.script.get("poison", ()) for chunk in step.chunks):
            raise RuntimeError("scripted crash")
        return self.inner.run(step)

    def close(self) -> None:
        self.inner.close()

    def _first(self) -> bool:
        try:
            Path(self.script["marker"]).touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


def builder(script: dict[str, Any], deployment: Deployment, on_phase: OnPhase, on_read: OnRead) -> Built:
    if script.get("fail_to_start") == "bad model":
        raise UnsupportedModel(field="architectures[0]", value="Nonesuch", why="unknown", remedy="another model")
    later = script.get("fail_to_start") == "exit later" and Path(script["marker"]).exists()
    if later or script.get("fail_to_start") == "exit":
        os._exit(3)
    if "hang_to_start" in script and Path(script["marker"]).exists() and not Path(script["hang_to_start"]).exists():
        Path(script["hang_to_start"]).write_text(str(os.getpid()))
        threading.Event().wait()
    if script.get("engine") == "real":
        built = build(deployment, on_phase)
        return Built(built.replica, Misbehaving(built.executor, script), built.info, built.plan_ahead)
    if "file_bytes" in script:
        resource.setrlimit(resource.RLIMIT_FSIZE, (script["file_bytes"], script["file_bytes"]))
    for done in script.get("reads", ()):
        on_read(done, 100)
    on_phase("script", 0.0, "nothing to load")
    replica = small_replica(blocks=BLOCKS, block_tokens=BLOCK_TOKENS, max_seqs=deployment.policy.max_seqs)
    executor = ScriptedExecutor(blocks=BLOCKS, block_tokens=BLOCK_TOKENS, vocabulary=VOCABULARY)
    info = ModelInfo(
        name="scripted", path="/nowhere", architecture="None", parameters=0, dtype="float32", vocab_size=VOCABULARY,
        max_sequence_tokens=BLOCKS * BLOCK_TOKENS, kv_capacity_tokens=BLOCKS * BLOCK_TOKENS, block_tokens=BLOCK_TOKENS,
        blocks=BLOCKS, max_seqs=deployment.policy.max_seqs, fingerprint="fp_0",
    )  # fmt: skip
    return Built(replica, Misbehaving(executor, script), info, deployment.policy.plan_ahead)


def told(argument: str) -> dict[str, Any]:
    script: dict[str, Any] = json.loads(Path(argument[1:]).read_text() if argument.startswith("@") else argument)
    return script


if __name__ == "__main__":
    main(sys.argv[2:], lambda deployment, on_phase, on_read: builder(told(sys.argv[1]), deployment, on_phase, on_read))
