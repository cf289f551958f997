"""A model behind HTTP, put together from its rooms: `serve` runs it until a signal, `chat` in a thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from penstock.deployment import Deployment
from penstock.runtime.reading import OnRead
from penstock.runtime.service import OnPhase, Service

if TYPE_CHECKING:
    from fastapi import FastAPI

    from penstock.runtime import ChatTemplate, Tokenizer


@dataclass(frozen=True, slots=True)
class TextSide:
    """What turns the model's tokens into text, and conversations into tokens if the checkpoint has a template."""

    tokenizer: Tokenizer
    template: ChatTemplate | None


def text_side_of(deployment: Deployment) -> TextSide:
    """Loads in a fraction of a second what the front end needs of the checkpoint: to be called before the wait for the
    weights, so that a checkpoint without it is refused at once.

    Raises:
        InvalidDeployment: the model is not there, or has no tokenizer.json.
        UnsupportedModel: its tokenizer or template cannot be used.
    """
    from penstock.catalog import resolve_model
    from penstock.runtime import ChatTemplate, load_tokenizer

    tokenizer = load_tokenizer(str(resolve_model(deployment.model.path)))
    return TextSide(tokenizer, ChatTemplate.of(tokenizer))


def app_for(service: Service, deployment: Deployment, text: TextSide) -> FastAPI:
    """The app of a service that is ready."""
    from penstock.serve.app import create_app

    return create_app(service, deployment, tokenizer=text.tokenizer, template=text.template)


@contextmanager
def in_background(
    deployment: Deployment, on_phase: OnPhase | None = None, on_read: OnRead | None = None
) -> Iterator[str]:
    """Serve in a thread of this process while the block runs; gives the URL. Raises what kept it from starting."""
    ready: Future[str] = Future()
    stop = threading.Event()

    def run() -> None:
        try:
            asyncio.run(_serve(deployment, on_phase, on_read, ready, stop))
        except BaseException as error:
            if ready.done():
                raise
            ready.set_exception(error)  # whatever it is: the caller waits for this or the URL

    thread = threading.Thread(target=run, name="server")
    thread.start()
    try:
        yield ready.result()
    finally:
        stop.set()
        thread.join()


async def _serve(
    deployment: Deployment, on_phase: OnPhase | None, on_read: OnRead | None, ready: Future[str], stop: threading.Event
) -> None:
    from penstock.serve.server import Server, listen, settings, url_of

    service = None
    try:
        sock = listen(deployment.server.host, deployment.server.port)
        text = text_side_of(deployment)
        service = await Service.start(deployment, on_phase, on_read)
        server = Server(settings(app_for(service, deployment, text)))
    except BaseException:
        if service is not None:
            await service.close()
        raise
    serving = asyncio.create_task(server.serve([sock]))
    ready.set_result(url_of(sock))
    await asyncio.to_thread(stop.wait)
    server.should_exit = True
    await serving
    await service.close()
