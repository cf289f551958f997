"""A server with both listeners over a scripted service, in its own process: python upkeep_server.py SERVER_JSON."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from penstock.deployment import Deployment
from penstock.serve.server import run
from penstock.serve.upkeep import Upkeep
from tests.serve.scripted import ScriptedService, scripted_app


class Ending(ScriptedService):
    """Ends as the real one does."""

    def __init__(self, deployment: Deployment) -> None:
        super().__init__(deployment)
        self.stopped = asyncio.Event()

    async def drain(self, timeout_s: float) -> int:
        self.state = "draining"
        return 0

    async def close(self) -> None:
        self.stopped.set()


async def main(server: dict[str, object]) -> None:
    deployment = Deployment.parse({"server": {"port": 0, **server}})
    service = Ending(deployment)
    app = scripted_app(service)
    upkeep = Upkeep(app, deployment)
    await run(
        app, service, deployment, upkeep=upkeep,  # type: ignore[arg-type]
        on_listening=lambda url: print(url, upkeep.admin_url, flush=True),
        on_draining=lambda: print("draining", flush=True),
    )  # fmt: skip
    print("ended", flush=True)


asyncio.run(main(json.loads(sys.argv[1])))
