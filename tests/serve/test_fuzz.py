"""Whatever a body holds, it is answered with success or a refusal in the one error shape; never 5xx, never silence."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.deployment import Deployment
from penstock.runtime import wire
from penstock.runtime.adapters import Adapters
from penstock.serve.admin import create_admin_app

from .conftest import Loop, Scripted
from .scripted import ScriptedService, scripted_app
from .strategies import ADMIN_BY_PATH, BY_PATH, END, RAW, encoded
from .test_lifecycle import api_routes

FUZZ = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def check(reply: httpx.Response) -> None:
    assert reply.status_code < 500, reply.text
    if reply.headers["content-type"].startswith("text/plain"):
        assert (reply.status_code, reply.text[:8]) == (200, "Success:")
    elif reply.status_code not in (200, 202):
        error = reply.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert reply.status_code in (400, 404)
    elif reply.headers["content-type"].startswith("text/event-stream"):
        last = reply.content[:-2].rpartition(b"\n\n")[2]
        assert last.startswith((b"data: [DONE]", b"event: message_stop", b"event: response."))
    else:
        assert isinstance(reply.json(), dict)


def post(scripted: Scripted, path: str, raw: bytes) -> httpx.Response:
    return scripted.http.post(path, content=raw, headers={"content-type": "application/json"})


@pytest.mark.parametrize("path", BY_PATH)
@FUZZ
@given(data=st.data())
def test_no_body_breaks_the_server(scripted: Scripted, path: str, data: st.DataObject) -> None:
    check(post(scripted, path, encoded(data.draw(BY_PATH[path]))))


@FUZZ
@given(raw=RAW)
def test_no_bytes_break_the_server(scripted: Scripted, raw: bytes) -> None:
    check(post(scripted, "/v1/completions", raw))


class Administered(ScriptedService):
    """A service whose worker loads every other adapter it is told to."""

    def __init__(self, directory: Path) -> None:
        super().__init__(
            Deployment.parse({"model": {"adapter_directory": str(directory)}, "server": {"admin_port": 0}})
        )
        self.adapters = Adapters(self.deployment.model, self._told, self._unused)
        self.loads = 0

    def _told(self, message: wire.ToWorker) -> None:
        match message:
            case wire.LoadAdapter(name):
                self.loads += 1
                answer: wire.AboutAdapters = wire.AdapterLoaded(name, 4, 1000, "abcdef0123")
                if self.loads % 2:
                    answer = wire.AdapterRefused(name, "lora_path", "x", "it has no weights", "another directory")
            case wire.UnloadAdapter(name):
                answer = wire.AdapterGone(name)
            case _:
                raise AssertionError(message)
        asyncio.get_running_loop().call_soon(self.adapters.received, answer)


@pytest.fixture(scope="module")
def administration(loop: Loop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    directory = tmp_path_factory.mktemp("adapters")
    (directory / "one").mkdir()
    admin = create_admin_app(scripted_app(Administered(directory)), asyncio.Event())
    for url in loop.serve(admin):
        with httpx.Client(base_url=url, timeout=60) as client:
            yield client


@pytest.mark.parametrize("path", ADMIN_BY_PATH | END)
@FUZZ
@given(data=st.data())
def test_no_body_breaks_the_administration(administration: httpx.Client, path: str, data: st.DataObject) -> None:
    raw = data.draw((ADMIN_BY_PATH | END)[path].map(encoded) | RAW)
    check(administration.post(path, content=raw, headers={"content-type": "application/json"}))


def test_the_fuzzed_names_and_paths_do_load_and_unload(administration: httpx.Client) -> None:
    """Else the bodies above would all be refused at the door."""
    statuses = {
        administration.post("/v1/load_lora_adapter", json={"lora_name": f"n{number}", "lora_path": "one"}).status_code
        for number in range(2)
    }
    assert statuses == {200, 400}


def test_every_route_that_takes_a_body_is_fuzzed(scripted: Scripted) -> None:
    app = scripted_app(scripted.service)
    for one, fuzzed in ((app, BY_PATH), (create_admin_app(app, asyncio.Event()), ADMIN_BY_PATH | END)):
        posts = {route.path for route in api_routes(list(one.routes)) if "POST" in (route.methods or ())}
        assert posts == fuzzed.keys()
