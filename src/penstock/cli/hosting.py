"""A model behind HTTP, put together from its rooms: `serve` runs it until a signal, `chat` in a thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TYPE_CHECKING

from penstock.deployment import Deployment
from penstock.errors import PenstockError
from penstock.runtime.service import OnPhase, Service

if TYPE_CHECKING:
    from fastapi import FastAPI


def app_for(service: Service, deployment: Deployment) -> FastAPI:
    """The app of a service that is ready, with the model's tokenizer and, if it has one, its chat template.

    Raises UnsupportedModel: the checkpoint's tokenizer or template cannot be used.
    """
    from penstock.runtime import ChatTemplate, load_tokenizer
    from penstock.serve.app import create_app

    tokenizer = load_tokenizer(service.info.path)
    return create_app(service, deployment, tokenizer=tokenizer, template=ChatTemplate.of(tokenizer))


@contextmanager
def in_background(deployment: Deployment, on_phase: OnPhase | None = None) -> Iterator[str]:
    """Serve in a thread of this process while the block runs; gives the URL. Raises as Service.start and `app_for`."""
    ready: Future[str] = Future()
    stop = threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(_serve(deployment, on_phase, ready, stop)), name="server")
    thread.start()
    try:
        yield ready.result()
    finally:
        stop.set()
        thread.join()


async def _serve(deployment: Deployment, on_phase: OnPhase | None, ready: Future[str], stop: threading.Event) -> None:
    from penstock.serve.server import Server, listen, settings, url_of

    service = None
    try:
        sock = listen(deployment.server.host, deployment.server.port)
        service = await Service.start(deployment, on_phase)
        server = Server(settings(app_for(service, deployment)))
    except (PenstockError, OSError) as error:
        if service is not None:
            await service.close()
        ready.set_exception(error)
        return
    serving = asyncio.create_task(server.serve([sock]))
    ready.set_result(url_of(sock))
    await asyncio.to_thread(stop.wait)
    server.should_exit = True
    await serving
    await service.close()
