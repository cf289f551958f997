"""Tokens on the short way: the same bytes as on the long one, no task woken, and nothing lost where it is closed."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from penstock.control.request import Request
from penstock.control.step import Finished
from penstock.deployment import Deployment
from penstock.runtime.facts import Output, TimeBounds
from penstock.runtime.stream import AtOnce, Stream
from penstock.serve.http_protocol import BoundedHttp, Chunks
from penstock.serve.server import Server, listen, settings

from .scripted import ScriptedService, scripted_app
from .sse import read_stream

TEXT = "Grüße, <b>\u2028 und mehr\nENDE."


class Stepping(ScriptedService):
    """Real streams, pushed by hand: one byte of TEXT per step to each. `short` False: nobody is offered a token."""

    def __init__(self, *, short: bool) -> None:
        super().__init__(Deployment())
        self.streams: dict[str, Stream] = {}
        self.short, self.outputs = short, 0

    async def generate(
        self, request: Request, bounds: TimeBounds | None = None, at_once: AtOnce | None = None
    ) -> AsyncIterator[Output]:
        stream = self.streams[request.id] = Stream(request, time.monotonic(), at_once if self.short else None)
        try:
            while True:
                output = await stream.next()
                self.outputs += 1
                yield output
                if output.finished is not None:
                    return
        finally:
            del self.streams[request.id]

    def step(self, number: int = 0, tokens: int = 0) -> None:
        for id, stream in list(self.streams.items()):
            at = len(stream.output)
            last = at + 1 == stream.request.max_tokens
            stream.push(TEXT.encode()[at % len(TEXT.encode())], None, time.monotonic(), last=last)
            if last:
                stream.finish(Finished(id, "length"))


async def exchange(service: Stepping, body: dict[str, Any], *, outputs: int = 0) -> bytes:
    """One request over a socket, a step whenever the loop comes round. The client reads from when its reader was woken
    more than `outputs` times, or the answer is made."""
    sock = listen("127.0.0.1", 0)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    server = Server(settings(scripted_app(service)))
    serving = asyncio.create_task(server.serve([sock]))
    port = sock.getsockname()[1]
    with socket.socket() as small:
        small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        small.setblocking(False)
        await asyncio.get_running_loop().sock_connect(small, ("127.0.0.1", port))
        data = json.dumps(body).encode()
        head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n"
        await asyncio.get_running_loop().sock_sendall(
            small, head + b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%s" % (len(data), data)
        )

        async def steps() -> None:
            while not service.streams:
                await asyncio.sleep(0.001)
            while service.streams:
                service.step()
                await asyncio.sleep(0.0005)

        stepping = asyncio.create_task(steps())
        while outputs and service.outputs <= outputs and not stepping.done():
            await asyncio.sleep(0.01)
        raw = bytearray()
        while some := await asyncio.get_running_loop().sock_recv(small, 65536):
            raw += some
        await stepping
    server.should_exit = True
    await serving
    return bytes(raw)


def body_of(raw: bytes) -> bytes:
    """Of an answer in chunks, each of which must have the length it says."""
    rest, body = raw.split(b"\r\n\r\n", 1)[1], b""
    while True:
        length, rest = rest.split(b"\r\n", 1)
        size = int(length, 16)
        body, after = body + rest[:size], rest[size:]
        assert after.startswith(b"\r\n")
        if not size:
            return body
        rest = after[2:]


def without_ids(body: bytes) -> list[Any]:
    events = [json.loads(line[6:]) for line in body.split(b"\n") if line.startswith(b"data: {")]
    return [{key: value for key, value in event.items() if key not in ("id", "created")} for event in events]


ASKED = {"messages": [{"role": "user", "content": "x"}], "stream": True, "max_tokens": len(TEXT.encode())}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"n": 3},
    {"stop": ["ENDE"]},
    {"stop": ["NEVER"], "stream_options": {"include_usage": True}},
    {"return_token_ids": True},
]


@pytest.mark.parametrize("more", OPTIONS, ids=lambda more: ",".join(more) or "plain")
def test_both_ways_write_the_same_events(more: dict[str, Any]) -> None:
    short, long = Stepping(short=True), Stepping(short=False)
    bodies = [body_of(asyncio.run(exchange(service, ASKED | more))) for service in (short, long)]
    assert without_ids(bodies[0]) == without_ids(bodies[1])
    n = more.get("n", 1)
    stream = read_stream(bodies[0], n=n, include_usage="stream_options" in more)
    expected = TEXT.partition("ENDE")[0] if more.get("stop") == ["ENDE"] else TEXT
    assert [read.text for read in stream.choices.values()] == [expected] * n
    assert short.outputs <= 4 * n < long.outputs  # the rest never woke a reader
    assert not short.streams


def test_a_client_that_does_not_read_for_a_while_gets_every_token() -> None:
    service = Stepping(short=True)
    asked = ASKED | {"max_tokens": 800}
    body = body_of(asyncio.run(exchange(service, asked, outputs=1)))
    whole = TEXT * 800
    assert read_stream(body, n=1).choices[0].text.encode() == whole.encode()[:800].decode("utf-8", "replace").encode()
    assert service.outputs > 2  # the way was closed meanwhile


def test_an_error_on_the_way_is_the_requests_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Chunks, data: bytes) -> None:
        raise ValueError("no")

    monkeypatch.setattr(Chunks, "write", fail)
    service = Stepping(short=True)
    raw = asyncio.run(exchange(service, ASKED))
    assert b"internal" in raw
    assert raw.endswith(b"0\r\n\r\n")
    assert not service.streams


def test_the_way_is_closed_where_a_write_would_wait_or_be_dropped() -> None:
    class Cycle:
        chunked_encoding: bool | None = None
        disconnected = response_complete = False

    class Flow:
        write_paused = False

    cycle, flow = Cycle(), Flow()
    chunks = Chunks(cycle, flow, asyncio.WriteTransport())  # type: ignore[arg-type]
    assert not chunks.open()  # the head has not left
    cycle.chunked_encoding = True
    assert chunks.open()
    for where, name in ((flow, "write_paused"), (cycle, "disconnected"), (cycle, "response_complete")):
        setattr(where, name, True)
        assert not chunks.open()
        setattr(where, name, False)
    assert issubclass(BoundedHttp, asyncio.Protocol)
