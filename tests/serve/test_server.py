"""SERVING-CHECKLIST section 7, the end: what a signal does to running and to new requests, and the exit code."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from penstock.deployment import Deployment
from penstock.errors import InvalidDeployment
from penstock.serve.server import listen, url_of

from .sse import read_stream

Start = Callable[[float], "tuple[subprocess.Popen[str], str]"]
STREAM = {"prompt": "x", "stream": True}


@pytest.fixture
def start() -> Iterator[Start]:
    """Start drain_server.py with a drain timeout in seconds; gives the process and its URL."""
    started: list[subprocess.Popen[str]] = []

    def begin(drain_timeout_s: float) -> tuple[subprocess.Popen[str], str]:
        script = Path(__file__).with_name("drain_server.py")
        process = subprocess.Popen(
            [sys.executable, str(script), str(drain_timeout_s)], stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        return process, line(process)

    yield begin
    for process in started:
        process.kill()
        process.wait()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_signal_refuses_new_requests_lets_running_ones_go_on_and_exits_0(start: Start) -> None:
    process, url = start(1.5)
    with httpx.stream("POST", f"{url}/v1/completions", json=STREAM, timeout=30) as running:
        parts = running.iter_raw()
        raw = next(parts)
        process.send_signal(signal.SIGTERM)
        assert line(process) == "draining"
        refused = httpx.post(f"{url}/v1/completions", json=STREAM)
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "1"
        assert httpx.get(f"{url}/ready").status_code == 503
        assert httpx.get(f"{url}/health").status_code == 200
        raw += b"".join(parts)
    stream = read_stream(raw, chat=False)
    assert stream.error is not None, "what did not finish in time gets a clean error"
    assert process.wait(20) == 0
    assert line(process) == "cut off 1"


def test_a_second_signal_stops_at_once(start: Start) -> None:
    process, url = start(600)
    with httpx.stream("POST", f"{url}/v1/completions", json=STREAM, timeout=30) as running:
        next(running.iter_raw())
        process.send_signal(signal.SIGINT)
        assert line(process) == "draining"
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    assert line(process) == "cut off 1"


def test_an_address_in_use_is_an_error_with_a_remedy() -> None:
    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(InvalidDeployment, match="another port"):
            listen("127.0.0.1", port)
        assert url_of(taken) == f"http://127.0.0.1:{port}"


def test_the_server_listens_on_loopback_unless_told_otherwise() -> None:
    assert Deployment().server.host == "127.0.0.1"
    with pytest.raises(InvalidDeployment, match="no key is set"):
        Deployment.parse({"server": {"host": "0.0.0.0"}})
