"""SERVING-CHECKLIST section 7, the end: what a signal does to running and to new requests, and the exit code."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
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
    """Start drain_server.py with a drain timeout in seconds, which closing its stdin cuts short; gives the process and
    its URL."""
    started: list[subprocess.Popen[str]] = []

    def begin(drain_timeout_s: float) -> tuple[subprocess.Popen[str], str]:
        script = Path(__file__).with_name("drain_server.py")
        process = subprocess.Popen(
            [sys.executable, str(script), str(drain_timeout_s)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
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
    process, url = start(600)
    with httpx.stream("POST", f"{url}/v1/completions", json=STREAM, timeout=30) as running:
        parts = running.iter_raw()
        raw = next(parts)
        process.send_signal(signal.SIGTERM)
        assert line(process) == "draining"
        refused = httpx.post(f"{url}/v1/completions", json=STREAM, timeout=60)
        assert refused.status_code == 503
        assert refused.headers["retry-after"] == "1"
        assert httpx.get(f"{url}/ready", timeout=60).status_code == 503
        assert httpx.get(f"{url}/health", timeout=60).status_code == 200
        assert process.stdin is not None
        process.stdin.close()
        raw += b"".join(parts)
    stream = read_stream(raw, chat=False)
    assert stream.error is not None, "what did not finish in time gets a clean error"
    assert process.wait(60) == 0
    assert line(process) == "cut off 1"


def test_a_second_signal_ends_the_wait_with_a_clean_error_and_without_a_traceback(start: Start) -> None:
    process, url = start(600)
    with httpx.stream("POST", f"{url}/v1/completions", json=STREAM, timeout=30) as running:
        parts = running.iter_raw()
        raw = next(parts)
        process.send_signal(signal.SIGINT)
        assert line(process) == "draining"
        process.send_signal(signal.SIGINT)
        raw += b"".join(parts)
    assert read_stream(raw, chat=False).error is not None
    assert process.wait(60) == 0
    assert line(process) == "cut off 1"
    assert process.stderr is not None
    assert "Traceback" not in process.stderr.read()


def test_a_whole_answer_that_draining_cuts_off_is_a_503_with_a_time_to_come_back(start: Start) -> None:
    process, url = start(600)
    with ThreadPoolExecutor(1) as pool:
        whole = pool.submit(httpx.post, f"{url}/v1/completions", json={"prompt": "x"}, timeout=30)
        while "penstock_requests_in_flight 1.0" not in httpx.get(f"{url}/metrics", timeout=60).text:
            assert not whole.done()
        process.send_signal(signal.SIGTERM)
        assert line(process) == "draining"
        process.send_signal(signal.SIGTERM)
        answer = whole.result(30)
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert answer.json()["error"]["code"] == "service_unavailable"


def test_a_client_that_does_not_read_keeps_no_server_up_and_leaves_no_traceback(start: Start) -> None:
    process, url = start(0.5)
    host, port = url.removeprefix("http://").split(":")
    body = b'{"prompt":"flood","stream":true,"return_token_ids":true}'
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect((host, int(port)))
        client.sendall(
            b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n%s" % (len(body), body)
        )
        assert client.recv(16).startswith(b"HTTP/1.1 200")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    assert process.stderr is not None
    assert "Traceback" not in process.stderr.read()


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
