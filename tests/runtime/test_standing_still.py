"""The front end stands still for a while (SIGSTOP, a frozen container): no worker is blamed, and no token is lost."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from penstock.control.request import Request
from penstock.deployment import Deployment
from penstock.runtime.patience import patience
from penstock.runtime.service import Service
from penstock.runtime.supervisor import for_worker
from penstock.runtime.wire import Start, encode

Make = Callable[..., Any]

DEADLINE_S = 2.0
"""A worker that gets no processor for so long, while the front end does, would be blamed."""


def run(stop_s: float, *, worker_too: bool = False) -> dict[str, Any]:
    """What the front end says at its end, having been stopped once in the middle for `stop_s`."""
    small = {"memory.kv_bytes": "4MiB", "policy.max_seqs": 8, "server.step_deadline": DEADLINE_S}
    here, script = Path(__file__), json.dumps({"step_s": 0.02})
    worker = json.dumps([sys.executable, str(here.with_name("scripted_worker.py")), script])
    command = [sys.executable, str(here.with_name("front_end.py")), worker]
    with subprocess.Popen([*command, json.dumps(small)], stdout=subprocess.PIPE, text=True) as front:
        try:
            assert front.stdout is not None
            pid = json.loads(front.stdout.readline())["worker"]
            stopped = [front.pid, *([pid] if worker_too else [])]
            for one in stopped if stop_s else ():
                os.kill(one, signal.SIGSTOP)
            time.sleep(stop_s)
            for one in stopped if stop_s else ():
                os.kill(one, signal.SIGCONT)
            said: dict[str, Any] = json.loads(front.stdout.readline())
            assert front.wait(60) == 0
            return said
        finally:
            front.kill()


@functools.cache
def undisturbed() -> dict[str, Any]:
    return run(0.0)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("worker_too", [False, True], ids=["the worker goes on", "all of them stand"])
@pytest.mark.parametrize("stop_s", [DEADLINE_S + 0.2, DEADLINE_S + 0.8])
def test_a_front_end_that_stood_still_blames_no_worker(stop_s: float, worker_too: bool) -> None:
    found = run(stop_s, worker_too=worker_too)
    assert (found["restarts"], found["said"]) == (0, [])
    assert found["tokens"] == undisturbed()["tokens"]
    assert [len(tokens) for tokens in found["tokens"]] == [60] * 4


def test_patience_counts_no_time_in_which_this_process_stood_still() -> None:
    async def body() -> str:
        loop = asyncio.get_running_loop()
        ours, theirs = os.pipe()
        arrived = asyncio.Event()
        loop.add_reader(ours, arrived.set)
        loop.call_later(0.01, time.sleep, 1.6)  # for the event loop the same as a stop
        late = threading.Timer(0.5, os.write, (theirs, b"there"))
        late.start()
        try:
            async with patience(0.3):
                await arrived.wait()
            return os.read(ours, 10).decode()
        finally:
            loop.remove_reader(ours)
            late.join()
            os.close(ours)
            os.close(theirs)

    assert asyncio.run(body()) == "there"


def test_patience_ends() -> None:
    async def body(seconds: float | None, takes_s: float) -> None:
        async with patience(seconds):
            await asyncio.sleep(takes_s)

    with pytest.raises(TimeoutError):
        asyncio.run(body(0.05, 200.0))
    asyncio.run(body(None, 0.05))
    asyncio.run(body(30.0, 0.05))


def test_a_replacement_that_is_never_ready_is_ended_and_replaced(
    deployment: Make, worker: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """`TimeoutError` is an `OSError`: what was not ready in time was once taken for what cannot be started."""
    hung = tmp_path / "hung"

    def hangs() -> bool:
        return hung.exists() and bool(hung.read_text())

    @asynccontextmanager
    async def until_it_hangs(seconds: float | None) -> AsyncIterator[None]:
        async with asyncio.timeout(None) as limit:

            async def wait() -> None:
                while not hangs():
                    await asyncio.sleep(0.01)
                limit.reschedule(asyncio.get_running_loop().time())

            waiting = asyncio.create_task(wait()) if seconds is not None and not hangs() else None
            try:
                yield
            finally:
                if waiting is not None:
                    waiting.cancel()

    monkeypatch.setattr("penstock.runtime.supervisor.patience", until_it_hangs)

    async def body() -> None:
        service = await Service.start(deployment(), command=worker(kill_at_step=3, hang_to_start=str(hung), fresh=True))
        one = Request(id="a", prompt=(1, 2, 3), max_tokens=20)
        async with asyncio.timeout(240):
            tokens = [token async for output in service.generate(one) for token in output.tokens]
        assert (len(tokens), service.restarts) == (20, 2)
        with pytest.raises(ProcessLookupError):
            os.kill(int(hung.read_text()), 0)
        await service.close()

    asyncio.run(body())
    assert "it was not ready within" in caplog.text


def test_a_worker_is_told_no_key_and_no_path_of_one(tmp_path: Path) -> None:
    secrets = {
        "api_keys": ["sk-first-secret", "sk-second-secret"], "key_file": str(tmp_path / "who-may.yaml"),
        "keys": [{"name": "ann", "hash": "sha256:" + "a1" * 32, "scopes": ["inference", "admin"]}],
        "tls_certificate": "/certificates/chain.pem", "tls_key": "/certificates/secret.pem",
        "trace_endpoint": "http://user:password@collector.example:4318/v1/traces",
    }  # fmt: skip
    deployment = Deployment.parse(
        {
            "server": {**secrets, "host": "0.0.0.0", "admin_port": 0, "log_format": "json", "record": "run.jsonl.gz"},
            "model": {"adapter_directory": "/adapters"}, "policy": {"order": "fair_share"},
        }
    )  # fmt: skip
    frame = encode(Start(for_worker(deployment)))
    for secret in ("sk-", "who-may", "ann", "a1a1", "certificates", "password", "0.0.0.0"):
        assert secret.encode() not in frame
    told = Deployment.parse(for_worker(deployment))
    assert (told.server.log_format, told.server.record) == ("json", "run.jsonl.gz")
    assert told.model_copy(update={"server": deployment.server}) == deployment
