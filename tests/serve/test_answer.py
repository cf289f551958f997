"""Writes and pauses, seen from below: the app is called as a server calls it, and every message it sends is kept."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import pytest

from penstock.control.request import Request
from penstock.deployment import Deployment
from penstock.runtime.facts import Output

from .scripted import ScriptedService, scripted_app
from .sse import read_stream

Message = dict[str, Any]


class Steps:
    """All sequences get one token per `step`, together."""

    def __init__(self) -> None:
        self.queues: list[asyncio.Queue[Output]] = []

    async def script(self, request: Request) -> AsyncIterator[Output]:
        mine: asyncio.Queue[Output] = asyncio.Queue()
        self.queues.append(mine)
        while True:
            output = await mine.get()
            yield output
            if output.finished is not None:
                return

    async def step(self, byte: int, *, last: bool = False) -> None:
        for queue in self.queues:
            queue.put_nowait(Output((byte,), finished="length" if last else None))
        for _ in range(20):
            await asyncio.sleep(0)


async def call(body: Message, steps: Steps, sent: list[Message], gone: asyncio.Event) -> None:
    service = ScriptedService(Deployment())
    service.script = steps.script
    app = scripted_app(service)
    waiting: list[Message] = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

    async def receive() -> Message:
        if waiting:
            return waiting.pop()
        await gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http", "method": "POST", "path": "/v1/completions", "raw_path": b"/v1/completions",
        "query_string": b"", "headers": [(b"host", b"localhost")], "http_version": "1.1", "scheme": "http",
        "asgi": {"version": "3.0"},
    }  # fmt: skip
    await app(scope, receive, send)
    assert service.running == 0


def test_all_tokens_of_a_step_leave_in_one_write_and_nothing_leaves_before_the_first() -> None:
    async def main() -> list[Message]:
        steps = Steps()
        sent: list[Message] = []
        body = {"prompt": ["a", "b"], "n": 2, "stream": True, "max_tokens": 3}
        answer = asyncio.create_task(call(body, steps, sent, asyncio.Event()))
        while len(steps.queues) < 4:
            await asyncio.sleep(0)
        assert sent == []
        await steps.step(97)
        assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
        await steps.step(98)
        assert len(sent) == 3
        await steps.step(99, last=True)
        await answer
        return sent

    sent = asyncio.run(main())
    bodies = [message["body"] for message in sent[1:]]
    assert [body.count(b"data: ") for body in bodies[:2]] == [4, 4]
    stream = read_stream(b"".join(bodies), n=4, chat=False)
    assert [read.text for read in stream.choices.values()] == ["abc"] * 4
    assert not sent[-1].get("more_body", False)


def test_a_client_that_leaves_before_the_first_token_gets_nothing_and_everything_ends() -> None:
    async def main() -> list[Message]:
        steps, gone = Steps(), asyncio.Event()
        sent: list[Message] = []
        answer = asyncio.create_task(call({"prompt": "a", "n": 3}, steps, sent, gone))
        while len(steps.queues) < 3:
            await asyncio.sleep(0)
        gone.set()
        await answer
        return sent

    assert asyncio.run(main()) == []


def test_one_log_line_per_request_with_ids_and_lengths_and_without_the_prompt(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        steps = Steps()
        sent: list[Message] = []
        answer = asyncio.create_task(call({"prompt": "secret words", "max_tokens": 1}, steps, sent, asyncio.Event()))
        while not steps.queues:
            await asyncio.sleep(0)
        await steps.step(97, last=True)
        await answer

    with caplog.at_level(logging.INFO, logger="penstock.serve"):
        asyncio.run(main())
    (record,) = (record for record in caplog.records if record.name == "penstock.serve")
    assert "prompt_tokens=12 output_tokens=1" in record.getMessage()
    assert "outcome=length" in record.getMessage()
    assert "secret" not in record.getMessage()
