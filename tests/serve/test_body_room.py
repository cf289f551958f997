"""Bodies under way are bounded together: what does not fit is 429, and room that a body took comes back."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from starlette.requests import ClientDisconnect

from penstock.deployment import Deployment
from penstock.errors import Overloaded
from penstock.serve.body import BodyRoom, read_body

from .conftest import Loop, Scripted
from .scripted import ScriptedService, scripted_app

SCOPE: dict[str, Any] = {"headers": []}


def body(*parts: bytes, then: Sequence[dict[str, Any]] = ()) -> Any:
    """A `receive` that gives `parts`, and `then` in place of the last of them if there is something."""
    messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts] + list(then)
    messages[-1]["more_body"] = False

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    return receive


def test_room_is_shared_and_comes_back_however_reading_ends() -> None:
    room = BodyRoom(10, lambda: 7.5)

    async def main() -> None:
        waiting: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        first = [{"type": "http.request", "body": b"1234567", "more_body": True}]

        async def slow() -> dict[str, Any]:
            return first.pop() if first else await waiting

        task = asyncio.create_task(read_body(SCOPE, slow, 100, room))
        await asyncio.sleep(0)
        assert room.held == 7
        with pytest.raises(Overloaded) as refused:
            await read_body(SCOPE, body(b"12", b"34"), 100, room)
        assert room.held == 7
        assert refused.value.retry_after_s == 7.5
        assert await read_body(SCOPE, body(b"12", b"3"), 100, room) == b"123"
        waiting.set_result({"type": "http.request", "body": b"8", "more_body": False})
        assert await task == b"12345678"
        with pytest.raises(ClientDisconnect):
            await read_body(SCOPE, body(b"12", then=[{"type": "http.disconnect"}]), 100, room)
        assert room.held == 0

    asyncio.run(main())


def test_a_server_whose_room_is_taken_says_when_to_come_back(loop: Loop) -> None:
    service = ScriptedService(Deployment())
    app = scripted_app(service)
    for url in loop.serve(app):
        client, room = Scripted(service, url), app.state.front.bodies
        assert client.complete().status_code == 200
        room.held = room.max_bytes
        reply = client.complete()
        assert (reply.status_code, reply.json()["error"]["code"]) == (429, "server_overloaded")
        assert reply.headers["retry-after-ms"] == str(round(1000 * service.retry_after_s))
        assert "Remedy: come back in" in reply.json()["error"]["message"]
        room.held = 0
        assert client.complete().status_code == 200
