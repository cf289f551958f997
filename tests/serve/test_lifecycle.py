"""Clients that leave, probes, keys: who gets in, what stops, and what the outside is told."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator

import httpx
import pytest
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute

from penstock.control.request import Request
from penstock.control.statistics import Statistics
from penstock.deployment import Deployment
from penstock.runtime.admission import Admission
from penstock.runtime.facts import Output
from penstock.serve.dashboard.routes import PAGES

from .conftest import Loop, Scripted
from .scripted import Script, ScriptedService, scripted_app
from .sse import read_stream


async def endless(request: Request) -> AsyncIterator[Output]:
    while True:
        yield Output((97,))
        await asyncio.sleep(0.001)


async def silent(request: Request) -> AsyncIterator[Output]:
    yield Output(())
    await asyncio.Event().wait()


@pytest.mark.parametrize("n", [1, 4])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("script", [endless, silent])
def test_a_client_that_leaves_cancels_all_its_sequences(
    scripted: Scripted, n: int, stream: bool, script: Script
) -> None:
    scripted.service.script = script
    host, port = scripted.url.removeprefix("http://").split(":")
    body = b'{"prompt":"x","max_tokens":4000,"n":%d,"stream":%s}' % (n, b"true" if stream else b"false")
    with socket.create_connection((host, int(port))) as client:
        client.sendall(
            b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n%s" % (len(body), body)
        )
        assert scripted.service.someone_runs.wait(60)
    assert scripted.service.all_left.wait(60)
    assert sorted(scripted.service.cancelled) == sorted(one.id for one in scripted.service.calls)
    assert len(scripted.service.calls) == n


def test_a_client_that_reads_late_gets_every_token_in_order(scripted: Scripted) -> None:
    async def script(request: Request) -> AsyncIterator[Output]:
        for number in range(request.max_tokens):
            yield Output((number % 256,), finished="length" if number == request.max_tokens - 1 else None)

    scripted.service.script = script
    body = {"prompt": "x", "max_tokens": 4000, "stream": True, "return_token_ids": True}
    with scripted.http.stream("POST", "/v1/completions", json=body) as reply:
        assert httpx.get(f"{scripted.url}/health", timeout=60).status_code == 200, "the others are served meanwhile"
        raw = b"".join(reply.iter_raw())
    stream = read_stream(raw, chat=False)
    assert stream.choices[0].token_ids == [number % 256 for number in range(4000)]


def test_a_sequence_that_fails_ends_the_others_of_its_request(scripted: Scripted) -> None:
    async def script(request: Request) -> AsyncIterator[Output]:
        if request.id.endswith("-2"):
            raise RuntimeError("only this one")
        async for output in endless(request):
            yield output

    scripted.service.script = script
    assert scripted.complete(n=4, max_tokens=4000).status_code == 500
    assert scripted.service.running == 0


def test_choices_that_do_not_fit_together_are_refused_before_any_is_computed(scripted: Scripted) -> None:
    scripted.service.admission = Admission(max_requests=4, max_prompt_tokens=1000)
    refused = scripted.complete(prompt=["a", "b", "c"], n=2)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "n")
    refused = scripted.complete(prompt=["a"] * 5)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "prompt")
    scripted.service.admission.admit("waits", 1, now=0.0)
    refused = scripted.complete(n=4)
    assert refused.status_code == 429
    assert float(refused.headers["retry-after"]) >= 1
    assert scripted.service.calls == []
    scripted.service.admission.gone("waits", now=0.0)
    assert len(scripted.complete(n=4).json()["choices"]) == 4
    assert scripted.service.admission.requests == 0
    assert "penstock_requests_in_flight 0.0" in scripted.http.get("/metrics").text


def test_health_is_about_progress_and_ready_is_about_traffic(scripted: Scripted) -> None:
    def status(path: str) -> int:
        return scripted.http.get(path).status_code

    assert (status("/health"), status("/ready")) == (200, 200)
    for state in ("starting", "restarting", "draining"):
        scripted.service.state = state
        assert (status("/health"), status("/ready")) == (200, 503)
        assert scripted.http.get("/ready").json()["status"] == state
    scripted.service.state, scripted.service.stalled_s = "ready", 121.0
    assert (status("/health"), status("/ready")) == (503, 200)
    assert {"retry-after", "retry-after-ms"} <= scripted.http.get("/health").headers.keys()
    scripted.service.state, scripted.service.stalled_s = "restarting", 121.0
    assert status("/health") == 200, "a restart is not a dead step loop"
    scripted.service.state = "stopped"
    assert status("/health") == 503


def test_ready_asks_the_queue_and_not_the_worker_whether_there_is_room(scripted: Scripted) -> None:
    before, scripted.service.statistics = scripted.service.statistics, Statistics(waiting=10**6)
    scripted.service.admission = Admission(max_requests=1, max_prompt_tokens=10)
    assert scripted.http.get("/ready").json()["status"] == "ready"
    scripted.service.admission.admit("one", 1, now=0.0)
    reply = scripted.http.get("/ready")
    assert (reply.status_code, reply.json()["status"]) == (503, "saturated")
    scripted.service.admission.gone("one", now=1.0)
    assert scripted.http.get("/ready").status_code == 200
    scripted.service.statistics = before


def test_ready_tells_restarts(scripted: Scripted) -> None:
    scripted.service.restarts = 2
    assert scripted.http.get("/ready").json()["restarts"] == 2
    scripted.service.restarts = 0


@pytest.fixture(scope="module")
def locked(loop: Loop) -> Iterator[Scripted]:
    deployment = Deployment.parse({"server": {"api_keys": ["one", "two", "schlüssel"]}})
    service = ScriptedService(deployment)
    app = scripted_app(service)
    for url in loop.serve(app):
        yield Scripted(service, url)


def api_routes(routes: list[BaseRoute]) -> Iterator[APIRoute]:
    """All routes, also those of routers that were included."""
    for route in routes:
        if isinstance(route, APIRoute):
            yield route
        else:
            inner = getattr(route, "original_router", route)
            found = list(api_routes(list(getattr(inner, "routes", []))))
            assert found, f"a route this walk cannot look into: {route!r}"
            yield from found


def test_every_route_but_health_needs_a_key(locked: Scripted) -> None:
    service = locked.service
    app = scripted_app(service)
    seen = set()
    for route in api_routes(list(app.routes)):
        for method in sorted(route.methods or ()):
            path = route.path.replace("{name:path}", "scripted")
            seen.add((method, path))
            for headers in (
                {},
                {"authorization": "Bearer wrong"},
                {"authorization": "Basic one"},
                {"authorization": "one"},
            ):
                reply = locked.http.request(method, path, headers=headers)
                if path == "/health" or path in PAGES:
                    assert reply.status_code == 200
                    continue
                assert reply.status_code == 401, (method, path)
                error = reply.json()["error"]
                assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")
                assert reply.headers["www-authenticate"] == "Bearer"
                assert "wrong" not in reply.text
    assert {("POST", "/v1/chat/completions"), ("GET", "/metrics"), ("GET", "/ready"), ("GET", "/health")} <= seen


def test_a_key_opens_and_is_the_tenant(locked: Scripted) -> None:
    for key in ("one", "two", "one"):
        reply = httpx.post(
            f"{locked.url}/v1/completions",
            json={"prompt": "x", "user": "root"},
            headers={"authorization": f"Bearer {key}"},
            timeout=60,
        )
        assert reply.status_code == 200
    umlaut = {b"authorization": "Bearer schlüssel".encode()}
    assert locked.http.get("/ready", headers=umlaut).status_code == 200
    one, two, again = (call.tenant for call in locked.service.calls[-3:])
    assert one == again != two
    assert (one, two) == ("api-key-1", "api-key-2"), "by their places, and by nothing of the keys"
