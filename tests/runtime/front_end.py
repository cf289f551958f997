"""A front end in its own process, so that a test can stop it: python front_end.py COMMAND_JSON DEPLOYMENT_JSON

Runs four requests at once in a worker started by COMMAND and prints JSON lines: {"worker": PID} once each of them has a
token, and at the end {"tokens": {ID: [...]}, "restarts": N, "said": [what was logged as a warning or worse]}.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys

from penstock.control.request import Request, Sampling
from penstock.deployment import Deployment
from penstock.runtime.service import Service

said: list[str] = []


class Noted(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        said.append(record.getMessage())


async def main(command: list[str], deployment: dict[str, object]) -> None:
    logging.getLogger("penstock").addHandler(Noted(logging.WARNING))
    service = await Service.start(Deployment.load(None, deployment), command=command)
    begun = [asyncio.Event() for _ in range(4)]

    async def tokens(number: int) -> list[int]:
        request = Request(
            id=str(number), prompt=(1 + number, 2), max_tokens=60, sampling=Sampling(temperature=0.0)
        )  # fmt: skip
        found: list[int] = []
        async for output in service.generate(request):
            found += output.tokens
            begun[number].set()
        return found

    running = [asyncio.create_task(tokens(number)) for number in range(4)]
    for one in begun:
        await one.wait()
    print(json.dumps({"worker": service.worker_pid}), flush=True)
    found = await asyncio.gather(*running)
    print(json.dumps({"tokens": found, "restarts": service.restarts, "said": said}), flush=True)
    await service.close()


asyncio.run(main(json.loads(sys.argv[1]), json.loads(sys.argv[2])))
