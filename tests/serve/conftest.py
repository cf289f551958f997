"""A real uvicorn server on a loopback port, in a thread of its own, over a scripted service or a real one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import httpx
import openai
import pytest
from starlette.types import ASGIApp

from penstock.control.request import Request
from penstock.deployment import Deployment
from penstock.runtime import ChatTemplate, Tokenizer, load_tokenizer
from penstock.runtime.facts import Output
from penstock.runtime.service import Service
from penstock.serve.app import create_app
from penstock.serve.server import Server, listen, settings, url_of

from .scripted import INFO, ScriptedService, byte_tokenizer, say, scripted_app

if TYPE_CHECKING:
    from .calling import Model

Result = TypeVar("Result")


class Loop:
    """An event loop in a thread."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()

    def run(self, work: Coroutine[Any, Any, Result]) -> Result:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(200)

    def serve(self, app: ASGIApp) -> Iterator[str]:
        """The URL of `app`, until the iterator is closed."""
        sock = listen("127.0.0.1", 0)
        server = Server(settings(app))
        serving = asyncio.run_coroutine_threadsafe(server.serve([sock]), self.loop)
        try:
            yield url_of(sock)
        finally:
            server.should_exit = True
            serving.result(30)


class Scripted:
    """What a test holds: the service to script and clients to ask with."""

    def __init__(self, service: ScriptedService, url: str) -> None:
        self.service, self.url = service, url
        self.http = httpx.Client(base_url=url, timeout=60)
        self.openai = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)

    def complete(self, **body: Any) -> httpx.Response:
        return self.http.post("/v1/completions", json={"prompt": "hi", **body})

    def chat(self, **body: Any) -> httpx.Response:
        return self.http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "hi"}], **body})


class Real:
    """The running service and clients for it."""

    def __init__(self, service: Service, tokenizer: Tokenizer, url: str, loop: Loop) -> None:
        self.service, self.tokenizer, self.url, self.loop = service, tokenizer, url, loop
        self.openai = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=200)
        self.http = httpx.Client(base_url=url, timeout=200)

    def outputs(self, request: Request) -> list[int]:
        """Tokens of a request that does not come over HTTP."""

        async def collect() -> list[int]:
            outputs: AsyncIterator[Output] = self.service.generate(request)
            return [token async for output in outputs for token in output.tokens]

        return self.loop.run(collect())


@pytest.fixture(scope="module")
def real(loop: Loop) -> Iterator[Real]:
    deployment = Deployment.parse(
        {
            "hardware": {"threads": 1}, "memory": {"kv_bytes": "32MiB"},
            "server": {"queue": {"max_requests": 40}, "tool_parser": "hermes"},
        }
    )  # fmt: skip
    service = loop.run(Service.start(deployment))
    tokenizer = load_tokenizer(service.info.path)
    app = create_app(service, deployment, tokenizer=tokenizer, template=ChatTemplate.of(tokenizer))
    try:
        for url in loop.serve(app):
            yield Real(service, tokenizer, url, loop)
    finally:
        loop.run(service.close())


@pytest.fixture(scope="session")
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.loop.call_soon_threadsafe(loop.loop.stop)
    loop.thread.join(10)


@pytest.fixture(scope="session")
def _scripted(loop: Loop) -> Iterator[Scripted]:
    deployment = Deployment()
    service = ScriptedService(deployment)
    app = scripted_app(service)
    for url in loop.serve(app):
        yield Scripted(service, url)


@pytest.fixture(scope="session")
def _model(loop: Loop) -> Iterator[Model]:
    from .calling import HERMES, SPECIAL, Model

    deployment = Deployment()
    tokenizer = byte_tokenizer(special=SPECIAL, template=HERMES)
    service = ScriptedService(deployment, replace(INFO, vocab_size=300))
    app = create_app(service, deployment, tokenizer=tokenizer, template=ChatTemplate.of(tokenizer))  # type: ignore[arg-type]
    for url in loop.serve(app):
        yield Model(service, url, tokenizer)


@pytest.fixture
def model(_model: Model) -> Model:
    """A scripted model that calls tools and thinks."""
    _model.service.calls = []
    return _model


@pytest.fixture
def scripted(_scripted: Scripted) -> Scripted:
    """The shared server, with a fresh script."""
    service = _scripted.service
    service.script = say("hello")
    service.state, service.stalled_s = "ready", 0.0
    service.calls, service.cancelled = [], []
    service.admission = ScriptedService(service.deployment).admission
    service.someone_left.clear()
    service.someone_runs.clear()
    return _scripted


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record-wire", action="store_true", help="write tests/goldens/wire anew")
