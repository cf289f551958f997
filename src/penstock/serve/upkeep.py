"""What runs beside the server: the second listener, and a look at files that may change (keys, certificate)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import ssl
from typing import TYPE_CHECKING, Final

from fastapi import FastAPI

from penstock.deployment import Deployment, Server
from penstock.errors import InvalidDeployment
from penstock.serve.tls import load

if TYPE_CHECKING:
    import uvicorn

    from penstock.serve.auth import KeyRing

LOOK_EVERY_S: Final = 1.0

_log = logging.getLogger("penstock.serve")


class Upkeep:
    """Looks at the files once a second, and at once after SIGHUP. `drain` set: somebody asked for the end."""

    def __init__(self, app: FastAPI, deployment: Deployment) -> None:
        """Opens the administration's socket if there is to be one. Raises InvalidDeployment: it cannot be had."""
        from penstock.serve.admin import create_admin_app
        from penstock.serve.server import listen, url_of

        self.drain = asyncio.Event()
        self._keys: KeyRing = app.state.keys
        self._server = deployment.server
        self._certificate = _stamp(self._server)
        self._admin: FastAPI | None = None
        self._sock: socket.socket | None = None
        self.admin_url: str | None = None
        if deployment.server.admin_port is not None:
            self._sock = listen("127.0.0.1", deployment.server.admin_port, field="server.admin_port")
            self._admin, self.admin_url = create_admin_app(app, self.drain), url_of(self._sock)

    async def run(self, server: uvicorn.Server) -> None:
        """Until it is cancelled. `server` is the listener whose certificate may change."""
        from penstock.serve.server import Server as Listener
        from penstock.serve.server import settings

        admin = Listener(settings(self._admin)) if self._admin is not None else None
        now = asyncio.Event()
        loop = asyncio.get_running_loop()
        serving = asyncio.create_task(admin.serve([self._sock])) if admin is not None and self._sock else None
        loop.add_signal_handler(signal.SIGHUP, now.set)
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_EVERY_S):
                        await now.wait()
                now.clear()
                try:
                    self.look(server.config.ssl if server.config.loaded else None)
                except Exception:  # noqa: BLE001 - one look that fails must end neither the next ones nor the admin listener
                    _log.exception("the files could not be looked at; what was known stays")
        finally:
            loop.remove_signal_handler(signal.SIGHUP)
            if admin is not None and serving is not None:
                admin.should_exit = admin.force_exit = True
                await serving

    def look(self, context: ssl.SSLContext | None) -> None:
        """Take in what has changed. What cannot be used is told in the log, and the old goes on."""
        self._keys.refresh()
        if context is None or (stamp := _stamp(self._server)) == self._certificate:
            return
        self._certificate = stamp
        try:
            load(context, str(self._server.tls_certificate), self._server.tls_key)
            _log.info("the certificate has changed and is in use")
        except InvalidDeployment as error:
            _log.error("the certificate has changed and cannot be used: %s", error)


def _stamp(server: Server) -> tuple[int, ...]:
    found = []
    for file in (server.tls_certificate, server.tls_key):
        try:
            found.append(os.stat(file).st_mtime_ns if file is not None else 0)
        except OSError:
            found.append(0)  # it is being replaced
    return tuple(found)
