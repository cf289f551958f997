"""A terminal that closes, Ctrl-C, or a manager of services signals every process of a server at once: the end, and what
a hang-up means, are for the front end to say."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from penstock.runtime.service import Service
from penstock.testing import expected_output

from .test_service import VOCABULARY, request, run, tokens

Make = Callable[..., Any]


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
def test_neither_the_worker_nor_what_it_is_forked_from_ends(
    deployment: Make, worker: Make, number: signal.Signals
) -> None:
    async def body() -> None:
        service = await Service.start(deployment(), command=worker(step_s=0.02))
        running = asyncio.create_task(tokens(service, request(max_tokens=20)))
        await asyncio.sleep(0.1)
        pid = service.worker_pid
        assert pid is not None
        with open(f"/proc/{pid}/stat", encoding="ascii") as stat:
            parent = int(stat.read().rpartition(")")[2].split()[1])
        assert parent != os.getpid(), "a fork server of its own, which is signalled too"
        for one in (parent, pid):
            os.kill(one, number)
        assert await running == expected_output(request(max_tokens=20), VOCABULARY)
        assert (service.worker_pid, service.restarts) == (pid, 0)
        await service.close()

    run(body())
