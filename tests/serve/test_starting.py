"""Before the app there is an answer too, and between the two no connection gets lost."""

from __future__ import annotations

import asyncio
import errno
import json
import shutil
import socket
import ssl
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
import uvloop
from starlette.types import Receive, Scope, Send

from penstock.serve.server import Server, listen, settings
from penstock.serve.starting import Starting

from .test_upkeep import certificate

PAUSE_S = 0.2


async def asked(port: int, head: bytes, tls: ssl.SSLContext | None = None, body: bytes = b"") -> tuple[bytes, bytes]:
    """Head and body of the answer, to its end."""
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", port, ssl=tls, server_hostname="localhost" if tls else None
    )
    writer.write(head + b"\r\nhost: localhost\r\nconnection: close\r\n\r\n" + body)
    with closing(writer):
        found, _, rest = (await reader.read(-1)).partition(b"\r\n\r\n")
    return found, rest


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"3")]})
    await send({"type": "http.response.body", "body": b"app"})


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_no_connection_is_lost_when_the_app_takes_over(factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def main() -> list[bytes]:
        sock = listen("127.0.0.1", 0)
        port = sock.getsockname()[1]
        starting = Starting(sock)
        bodies: list[bytes] = []

        async def client() -> None:
            while not bodies or bodies[-1] != b"app":
                bodies.append((await asked(port, b"GET /v1/models HTTP/1.1"))[1])

        clients = [asyncio.create_task(client()) for _ in range(20)]
        while len(bodies) < 60:
            await asyncio.sleep(0)
        waiting = socket.create_connection(("127.0.0.1", port))  # in the backlog, or accepted and silent
        starting.close()
        late = asyncio.create_task(asked(port, b"GET / HTTP/1.1"))  # comes while nobody accepts
        await asyncio.sleep(0.05)
        server = Server(settings(app))
        serving = asyncio.create_task(server.serve([sock]))
        await asyncio.gather(*clients)
        assert (await late)[1] == b"app"
        waiting.close()
        server.should_exit = True
        await serving
        return bodies

    with asyncio.Runner(loop_factory=factory) as runner:
        bodies = runner.run(main())
    early = [json.loads(body)["error"] for body in bodies if body != b"app"]
    assert len(early) >= 60
    assert {one["code"] for one in early} == {"service_unavailable"}


def test_what_it_says_in_each_case() -> None:
    async def main() -> None:
        sock = listen("127.0.0.1", 0)
        port = sock.getsockname()[1]
        starting = Starting(sock)
        head, body = await asked(port, b"GET /health?x=1 HTTP/1.1")
        assert head.startswith(b"HTTP/1.1 200 OK")
        assert json.loads(body)["state"] == "starting"
        head, body = await asked(port, b"HEAD /ready HTTP/1.1")
        assert head.startswith(b"HTTP/1.1 503 ")
        assert body == b""
        head, _ = await asked(port, b"POST /v1/completions HTTP/1.1\r\nX-Request-Id: mine", body=b"x" * 2**20)
        for line in (b"x-request-id: mine", b"retry-after: ", b"retry-after-ms: ", b"connection: close"):
            assert line in head
        starting.close()
        sock.close()

    asyncio.run(main())


class Exhausted:
    """A listening socket in a process that has no descriptors left, until `freed`."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock, self.asked, self.freed = sock, 0, False

    def dup(self) -> Exhausted:
        return self

    def setblocking(self, flag: bool) -> None:
        self._sock.setblocking(flag)

    def fileno(self) -> int:
        return self._sock.fileno()

    def accept(self) -> tuple[socket.socket, object]:
        self.asked += 1
        if not self.freed:
            raise OSError(errno.EMFILE, "Too many open files")
        return self._sock.accept()

    def close(self) -> None:
        self._sock.close()


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_without_descriptors_it_asks_again_after_a_pause_and_does_not_spin(
    factory: Callable[[], asyncio.AbstractEventLoop], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("penstock.serve.starting.ACCEPT_PAUSE_S", PAUSE_S)

    async def main() -> None:
        sock = listen("127.0.0.1", 0)
        loop = asyncio.get_running_loop()
        began = loop.time()
        exhausted = Exhausted(sock)
        starting = Starting(exhausted)  # type: ignore[arg-type]
        client = asyncio.create_task(asked(sock.getsockname()[1], b"GET /health HTTP/1.1"))
        while not exhausted.asked:
            await asyncio.sleep(0.001)
        for _ in range(100):  # the connection still waits in the backlog: a spinning loop would see it in each round
            await asyncio.sleep(0)
        asked_so_far = exhausted.asked
        assert asked_so_far <= 1 + (loop.time() - began) / PAUSE_S
        exhausted.freed = True
        head, _ = await client
        assert head.startswith(b"HTTP/1.1 200 OK")
        assert exhausted.asked == asked_so_far + 1
        exhausted.freed = False
        waiting = socket.create_connection(sock.getsockname())
        while exhausted.asked == asked_so_far + 1:
            await asyncio.sleep(0.001)
        starting.close()
        asked_so_far = exhausted.asked
        await asyncio.sleep(1.5 * PAUSE_S)
        assert exhausted.asked == asked_so_far, "it is closed, also in a pause"
        waiting.close()

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(main())
    assert "no connection can be accepted" in caplog.text


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_over_tls_where_the_app_is(tmp_path: Path) -> None:
    certificate(tmp_path, "first")
    files = [str(tmp_path / name) for name in ("cert.pem", "key.pem")]

    async def main() -> None:
        sock = listen("127.0.0.1", 0)
        starting = Starting(sock, certificate=files[0], key=files[1])
        tls = ssl.create_default_context(cafile=files[0])
        head, body = await asked(sock.getsockname()[1], b"GET /ready HTTP/1.1", tls)
        assert head.startswith(b"HTTP/1.1 503 ")
        assert json.loads(body)["status"] == "starting"
        starting.close()
        sock.close()

    asyncio.run(main())
