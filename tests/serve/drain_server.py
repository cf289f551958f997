"""A process for test_server.py: `server.run` over a scripted service that ends no request by itself. Prints its URL.

A prompt that begins with "f" floods its reader; any other gets one token. The drain timeout is over when its time is,
or when stdin ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from penstock.control.request import Request
from penstock.deployment import Deployment
from penstock.errors import Unavailable
from penstock.runtime.facts import Output
from penstock.serve.server import run
from serve.scripted import ScriptedService, scripted_app


class Draining(ScriptedService):
    """Ends its requests as the real one does: `drain` lets them run for the timeout, then fails them."""

    def __init__(self, deployment: Deployment) -> None:
        super().__init__(deployment)
        self.over = asyncio.Event()
        self.stopped = asyncio.Event()
        self.in_flight = 0

    async def drain(self, timeout_s: float) -> int:
        self.state = "draining"
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        loop.add_reader(sys.stdin.fileno(), ended.set)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(ended.wait(), timeout_s)
        loop.remove_reader(sys.stdin.fileno())
        cut_off, self.in_flight = self.in_flight, 0
        self.over.set()
        return cut_off

    async def close(self) -> None:
        self.state = "stopped"
        self.stopped.set()


async def main(drain_timeout_s: float) -> None:
    deployment = Deployment.parse({"server": {"port": 0, "drain_timeout": drain_timeout_s}})
    service = Draining(deployment)

    async def script(request: Request) -> AsyncIterator[Output]:
        if service.state != "ready":
            raise Unavailable("the server is shutting down", retry_after_s=1)
        service.in_flight += 1
        yield Output((97,))
        while request.prompt[0] == ord("f") and not service.over.is_set():
            yield Output((97,) * 100)
            await asyncio.sleep(0)
        await service.over.wait()
        raise Unavailable("the server is shutting down", retry_after_s=1)

    service.script = script
    app = scripted_app(service)
    cut_off = await run(
        app, service, deployment,  # type: ignore[arg-type]
        on_listening=lambda url: print(url, flush=True), on_draining=lambda: print("draining", flush=True),
    )  # fmt: skip
    print(f"cut off {cut_off}", flush=True)


asyncio.run(main(float(sys.argv[1])))
