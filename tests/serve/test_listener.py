"""Without a descriptor for it a connection waits, the log says what to do, and the server goes on when there is one."""

from __future__ import annotations

import asyncio
import errno
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvloop

from penstock.serve import listener
from penstock.serve.listener import Listener, ShortageLog
from penstock.serve.server import listen

SERVER = """
import asyncio, json, logging, resource, sys
import uvloop
sys.path.insert(0, sys.argv[1])
from penstock.deployment import Deployment
from penstock.serve.server import Server, listen, settings, url_of
from serve.scripted import ScriptedService, scripted_app

async def main():
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    sock = listen("127.0.0.1", 0)
    server = Server(settings(scripted_app(ScriptedService(Deployment()))))
    limit = int(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    print(url_of(sock), flush=True)
    await server.serve([sock])

asyncio.Runner(loop_factory=uvloop.new_event_loop).run(main())
"""
LIMIT = 64


@pytest.fixture
def server() -> Iterator[subprocess.Popen[str]]:
    """A server that may have LIMIT files open; the first line of its stdout is its address."""
    command = [sys.executable, "-c", SERVER, str(Path(__file__).parents[1]), str(LIMIT)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


def ask(connection: socket.socket, path: str) -> None:
    connection.sendall(f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n".encode())


def answer(connection: socket.socket) -> bytes:
    with connection, connection.makefile("rb") as read:
        return read.read()


def test_a_server_without_descriptors_says_what_to_do_lets_clients_wait_and_goes_on(
    server: subprocess.Popen[str],
) -> None:
    assert server.stdout is not None
    assert server.stderr is not None
    host, _, port = server.stdout.readline().strip().removeprefix("http://").partition(":")

    def connect() -> socket.socket:
        return socket.create_connection((host, int(port)), timeout=120)

    silent = [connect() for _ in range(LIMIT)]  # all of them are connected: those without a descriptor by the system
    waiting = connect()
    ask(waiting, "/health")
    said = next(line for line in server.stderr if "no connection can be accepted" in line)
    assert f"this process may have {LIMIT} files open" in said
    assert "ulimit -n" in said
    assert "LimitNOFILE" in said
    for one in silent:
        one.close()
    assert answer(waiting).startswith(b"HTTP/1.1 200 ")
    metrics = connect()
    ask(metrics, "/metrics")
    counted = next(line for line in answer(metrics).splitlines() if line.startswith(b"penstock_descriptor_shortages"))
    assert float(counted.split()[1]) >= 1


def test_the_last_descriptors_are_kept_and_it_goes_on_when_others_are_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "PAUSE_S", 0.0)
    now = {"limits": (2**20, 0)}  # full with the first
    looks: list[None] = []
    shortages: list[None] = []

    def limits() -> tuple[int, int]:
        looks.append(None)
        return now["limits"]

    class Echo(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            self.transport.write(data)  # type: ignore[attr-defined]
            self.transport.close()

    async def echoed(address: tuple[str, int]) -> bytes:
        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"here")
        try:
            return await reader.read()
        finally:
            writer.close()

    async def main() -> None:
        monkeypatch.setattr(listener, "limits", limits)
        with listen("127.0.0.1", 0) as sock:
            one = Listener(sock, Echo, None, lambda: shortages.append(None))
            await one.open()
            async with asyncio.timeout(60):
                assert await echoed(sock.getsockname()) == b"here", "the one after which it was full"
                waiting = [asyncio.create_task(echoed(sock.getsockname())) for _ in range(3)]
                seen = len(looks)
                while len(looks) < seen + 10:
                    await asyncio.sleep(0)
                assert not any(each.done() for each in waiting)
                assert len(shortages) == 1, "one, however often it looks"
                now["limits"] = (2**20, 2**20)
                assert await asyncio.gather(*waiting) == [b"here"] * 3
            one.close()
            await one.wait_closed()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
    assert len(shortages) == 1


def test_it_is_closed_in_a_pause_too(monkeypatch: pytest.MonkeyPatch) -> None:
    shortages: list[None] = []

    async def main() -> None:
        monkeypatch.setattr(listener, "limits", lambda: (2**20, 0))
        with listen("127.0.0.1", 0) as sock:
            one = Listener(sock, asyncio.Protocol, None, lambda: shortages.append(None))
            await one.open()
            _, writer = await asyncio.open_connection(*sock.getsockname())
            async with asyncio.timeout(60):
                while not shortages:
                    await asyncio.sleep(0)
                one.close()
                await one.wait_closed()
                writer.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
    assert shortages


def test_the_limit_is_that_of_the_process_less_what_is_kept() -> None:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit, full = listener.limits()
    assert limit == (soft if soft != resource.RLIM_INFINITY else 2**31)
    assert 0 < limit - full <= listener.KEPT


def test_there_is_one_line_in_ten_seconds_and_the_systems_own_shortage_is_told_apart(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told = ShortageLog()
    for now in (0.0, 0.1, 9.9, 10.0, 19.9):
        told.write(None, 1024, 16, now)
    assert (
        caplog.messages
        == [
            "no connection can be accepted now, clients wait: this process may have 1024 files open, and the last 16 "
            "are for its own use; raise the limit before it starts: ulimit -n, or LimitNOFILE= of its systemd unit"
        ]
        * 2
    )
    told.write(OSError(errno.ENFILE, "Too many open files in system"), 1024, 16, 20.0)
    assert caplog.messages[-1].endswith("the system says: Too many open files in system")
    told.write(OSError(errno.EMFILE, "Too many open files"), 1024, 16, 30.0)
    assert "may have 1024 files open, and all are; raise" in caplog.messages[-1]
