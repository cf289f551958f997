"""The connection under an answer: who leaves is noticed whatever came before, and a head leaves with what follows."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator
from typing import Any

import pytest

from penstock.control.request import Request
from penstock.runtime.facts import Output
from penstock.serve.http_protocol import HeadFirst
from penstock.serve.watch import Watch

from .conftest import Scripted


async def _endless(request: Request) -> AsyncIterator[Output]:
    yield Output((104,))
    await asyncio.Event().wait()


@pytest.mark.parametrize("filler", [0, 300_000], ids=["small", "so large that reading paused"])
def test_a_client_that_leaves_is_noticed(scripted: Scripted, filler: int) -> None:
    service = scripted.service
    service.script = _endless
    service.someone_left.clear()
    body = json.dumps({"prompt": "x", "stream": True, "filler": "a" * filler}).encode()
    host, port = scripted.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as client:
        head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        client.sendall(head + b"content-length: %d\r\n\r\n" % len(body) + body)
        assert client.recv(12) == b"HTTP/1.1 200"
        assert not service.someone_left.is_set()
    assert service.someone_left.wait(10), "the work went on for nobody"


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_behind_a_second_request_is_noticed_and_nobody_is_alarmed(
    scripted: Scripted, caplog: pytest.LogCaptureFixture, stream: bool
) -> None:
    service = scripted.service
    service.script = _endless
    service.someone_left.clear()
    service.someone_runs.clear()
    body = json.dumps({"prompt": "x", "stream": stream}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    request = head + b"content-length: %d\r\n\r\n" % len(body) + body
    host, port = scripted.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as client:
        client.sendall(request + request)
        assert service.someone_runs.wait(20)
        if stream:
            assert client.recv(12) == b"HTTP/1.1 200"
    assert service.someone_left.wait(20)
    assert scripted.http.get("/health").status_code == 200
    assert not [one for one in caplog.records if one.levelno >= logging.WARNING]


class _Cycle:
    """As much of uvicorn's as is looked at."""

    def __init__(self) -> None:
        self.response_started = False
        self.transport = self
        self.written: list[bytes] = []
        self.closed = 0

    def write(self, data: bytes) -> None:
        self.written.append(data)

    def close(self) -> None:
        self.closed += 1

    def is_closing(self) -> bool:
        return bool(self.closed)


def test_a_head_leaves_with_what_follows_at_once_and_alone_if_nothing_does() -> None:
    async def writes(*data: bytes, end: bool) -> list[bytes]:
        cycle = _Cycle()
        transport = HeadFirst(cycle)  # type: ignore[arg-type]
        transport.write(b"100")  # "Continue", before the answer
        cycle.response_started = True
        for some in data:
            transport.write(some)
        if end:
            transport.close()
            assert transport.is_closing()
            assert cycle.closed == 1
        await asyncio.sleep(0)
        return cycle.written

    assert asyncio.run(writes(b"head", b"a", b"b", end=False)) == [b"100", b"heada", b"b"]
    assert asyncio.run(writes(b"head", b"a", b"b", end=True)) == [b"100", b"heada", b"b"]
    assert asyncio.run(writes(b"head", end=False)) == [b"100", b"head"]
    assert asyncio.run(writes(b"head", end=True)) == [b"100", b"head"]


def test_a_watch_takes_back_its_own_cancellation_and_no_other() -> None:
    class Gone:
        def watch(self, lost: Any) -> None:
            asyncio.get_running_loop().call_soon(lost)

        def forget(self, lost: Any) -> None:
            """Nothing is kept."""

        def abort(self) -> None:
            raise AssertionError

    async def work(also: bool) -> bool:
        async def receive() -> Any:
            raise AssertionError("the connection is asked instead")

        task = asyncio.current_task()
        assert task is not None
        watch = Watch({"penstock.connection": Gone()}, receive, 60.0, lambda: True)
        if also:
            asyncio.get_running_loop().call_soon(task.cancel)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            watch.stop()
            return watch.take_back()
        return False

    async def main(also: bool) -> bool:
        return await asyncio.create_task(work(also))

    assert asyncio.run(main(False))
    assert not asyncio.run(main(True))
