"""The process around the app: a socket, uvicorn, and an orderly end.

The first SIGTERM or SIGINT stops admission (new requests get 503, /ready is false) while the socket stays open; what
runs may finish within `server.drain_timeout`. The second signal ends that time: streams get their error now.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import signal
import socket
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final

import uvicorn
from starlette.types import ASGIApp

from penstock.deployment import Deployment
from penstock.errors import InvalidDeployment
from penstock.serve.http_protocol import BoundedHttp
from penstock.serve.listener import BACKLOG, Listener

if TYPE_CHECKING:
    from penstock.runtime.service import Service
    from penstock.serve.upkeep import Upkeep

LAST_WRITES_S: Final = 2.0
"""After draining: time for the last bytes to leave before connections are cut."""
HURRIED_WRITES_S: Final = 0.5
"""The same after a second signal."""
GARBAGE: Final = (10_000, 20, 10)
"""When the collector looks: objects made and not dropped, and how often it looks at the young before the older.
Python's own 700 are a single request."""
KEEP_ALIVE_S: Final = 75
"""Longer than the 60 s of common proxies, so that they close idle connections and not we."""


def settings(app: ASGIApp, *, certificate: str | None = None, key: str | None = None) -> uvicorn.Config:
    """How uvicorn runs the app. Its access log is off: `answer.py` writes one line per request, and none for probes."""
    return uvicorn.Config(
        app, ssl_certfile=certificate, ssl_keyfile=key, http=BoundedHttp, ws="none", lifespan="off",
        proxy_headers=False, server_header=False, log_config=None, access_log=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        # `run` cuts connections before that: uvicorn would cancel the answers, and log a traceback for each.
        timeout_graceful_shutdown=5,
    )  # fmt: skip


class Server(uvicorn.Server):
    """uvicorn without its signal handlers, and with connections that wait where there is no descriptor for them."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Take connections from `sockets`, which `shutdown` closes."""
        await self.lifespan.startup()
        loop, config, state = asyncio.get_running_loop(), self.config, self.lifespan.state

        def protocol() -> asyncio.Protocol:
            return BoundedHttp(config, self.server_state, state, loop)

        on_shortage = getattr(getattr(config.app, "state", None), "on_shortage", None)
        listeners = [Listener(sock, protocol, config.ssl, on_shortage) for sock in sockets or ()]
        for one in listeners:
            await one.open()
        self.servers = listeners  # type: ignore[assignment]
        self.started = True

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals belong to `run`: uvicorn's own handling would refuse connections instead of answering 503."""
        yield


def listen(host: str, port: int, *, field: str = "server.port") -> socket.socket:
    """A listening socket. Raises InvalidDeployment if the address cannot be had: `field`, or the host."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # named: else asyncio leaves Nagle's delay on
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
        sock.listen(BACKLOG)
    except (OSError, UnicodeError) as error:
        sock.close()
        if not_here(error):
            raise InvalidDeployment(
                field="server.host", value=host, why="it is no address of this machine",
                remedy="127.0.0.1, another of its addresses, or 0.0.0.0 for all of them",
            ) from None  # fmt: skip
        raise InvalidDeployment(
            field=field, value=port, why=f"cannot listen on {host}: {getattr(error, 'strerror', None) or error}",
            remedy="another port, or 0 for a free one",
        ) from None  # fmt: skip
    return sock


def not_here(error: Exception) -> bool:
    """Whether an address could not be listened on since it is not one of this machine, or none at all."""
    unknown = isinstance(error, socket.gaierror | UnicodeError)  # a label too long for a name is a UnicodeError
    return unknown or (isinstance(error, OSError) and error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT))


def settle() -> None:
    """All that is there when serving begins stays: the collector need not walk over it again. Once per process."""
    gc.freeze()
    gc.set_threshold(*GARBAGE)


def url_of(sock: socket.socket, *, tls: bool = False) -> str:
    """Where clients find a listening socket."""
    host, port = sock.getsockname()[:2]
    scheme = "https" if tls else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


async def run(
    app: ASGIApp, service: Service, deployment: Deployment, *, sock: socket.socket | None = None,
    on_listening: Callable[[str], None] | None = None, on_draining: Callable[[], None] | None = None,
    upkeep: Upkeep | None = None,
) -> int:  # fmt: skip
    """Serve until a signal or the end of the service. Returns how many requests were cut off; closes `service`.

    `upkeep` runs beside it; it may ask for the end as a signal does.

    Raises:
        InvalidDeployment: the address cannot be had.
        PenstockError: the service gave up; its own reason.
    """
    sock = sock or listen(deployment.server.host, deployment.server.port)
    certificate = deployment.server.tls_certificate
    server = Server(settings(app, certificate=certificate, key=deployment.server.tls_key))
    asked, again = upkeep.drain if upkeep is not None else asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (again if asked.is_set() else asked).set()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    serving = asyncio.create_task(server.serve([sock]))
    ends: list[asyncio.Task[Any]] = [
        asyncio.create_task(asked.wait()), asyncio.create_task(service.stopped.wait()), serving
    ]  # fmt: skip
    beside = asyncio.create_task(upkeep.run(server)) if upkeep is not None else None
    cut_off = 0
    try:
        if on_listening is not None:
            on_listening(url_of(sock, tls=certificate is not None))
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        if asked.is_set() and not service.stopped.is_set():
            if on_draining is not None:
                on_draining()
            draining = asyncio.create_task(service.drain(deployment.server.drain_timeout))
            hurry = asyncio.create_task(again.wait())
            ends += [draining, hurry]
            await asyncio.wait({draining, serving, hurry}, return_when=asyncio.FIRST_COMPLETED)
            cut_off = draining.result() if draining.done() else await service.drain(0)
        server.should_exit = True
        await asyncio.wait({serving}, timeout=HURRIED_WRITES_S if again.is_set() else LAST_WRITES_S)
        for connection in list(server.server_state.connections):
            if connection.transport is not None:
                connection.transport.abort()  # to its answer this is a client that left
        await serving
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
        for task in ends:
            task.cancel()
        if beside is not None:
            beside.cancel()
            await asyncio.wait({beside})
        failure = service.failure
        await service.close()
        sock.close()
    if failure is not None:
        raise failure
    return cut_off
