"""A tiny OpenAI-compatible server with scripted answers, on a loopback port, for tests of the load generator.

What happens is a function of the request: `script(number, body)` returns a list of pieces, or a status to refuse with.
A dict is one event, a string the data of one, bytes are written as they are. `hold` is awaited before an answer begins.
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

Piece = dict[str, Any] | bytes | str
Hold = Callable[["ScriptedServer", dict[str, Any]], Awaitable[None]]
Script = Callable[[int, dict[str, Any]], "list[Piece] | int"]


def text(word: str = " a", finish: str | None = None) -> dict[str, Any]:
    return {"id": "c", "choices": [{"index": 0, "text": word, "finish_reason": finish}], "usage": None}


def usage(prompt: int, completion: int, cached: int = 0) -> dict[str, Any]:
    details = {"cached_tokens": cached}
    counts = {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}
    return {"id": "c", "choices": [], "usage": counts | {"prompt_tokens_details": details}}


def prompt_length(body: dict[str, Any]) -> int:
    prompt = body.get("prompt") or body["messages"][0]["content"]
    return len(prompt.split()) + 7 if isinstance(prompt, str) else len(prompt)


def well_behaved(number: int, body: dict[str, Any]) -> list[Piece] | int:
    """As many one-token events as asked for, then finish, usage and [DONE]."""
    count = body["max_tokens"]
    return [*(text() for _ in range(count)), text("", "length"), usage(prompt_length(body), count), "[DONE]"]


class ScriptedServer:
    """An ASGI application; `bodies` are the streaming requests seen, in order."""

    def __init__(self, script: Script, *, takes_ids: bool = True, hold: Hold | None = None) -> None:
        self._script, self._takes_ids, self._hold = script, takes_ids, hold
        self.bodies: list[dict[str, Any]] = []
        self.disconnects = 0

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        if scope["path"].startswith("/wrong"):
            await _json(send, 404, {"error": {"message": "no such path"}})
            return
        if scope["path"] == "/v1/models":
            card = {"id": "scripted", "max_model_len": 4096, "vocab_size": 5000}
            await _json(send, 200, {"object": "list", "data": [card]})
            return
        body = json.loads((await _body(receive)).decode())
        if isinstance(body.get("prompt"), list) and not self._takes_ids:
            await _json(send, 400, {"error": {"message": "text only"}})
        elif not body.get("stream"):
            await _json(send, 200, {"choices": [{"text": "a"}], "usage": usage(prompt_length(body), 1)["usage"]})
        else:
            self.bodies.append(body)
            await self._stream(body, receive, send)

    async def _stream(self, body: dict[str, Any], receive: Any, send: Any) -> None:
        pieces = self._script(len(self.bodies) - 1, body)
        if self._hold is not None:
            await self._hold(self, body)
        if isinstance(pieces, int):
            extra = [(b"retry-after", b"3"), (b"retry-after-ms", b"20")]
            await _json(send, pieces, {"error": {"message": "full", "type": "rate_limit_error"}}, extra)
            return
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        gone = asyncio.ensure_future(receive())
        async for chunk in _chunks(pieces):
            if gone.done():
                self.disconnects += 1
                return
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        gone.cancel()
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _chunks(pieces: list[Piece]) -> AsyncIterator[bytes]:
    for piece in pieces:
        if isinstance(piece, bytes):
            yield piece
        else:
            yield b"data: " + (piece if isinstance(piece, str) else json.dumps(piece)).encode() + b"\n\n"
        await asyncio.sleep(0)


async def _body(receive: Any) -> bytes:
    data = b""
    while True:
        message = await receive()
        data += message.get("body", b"")
        if not message.get("more_body"):
            return data


async def _json(send: Any, status: int, data: Any, headers: list[tuple[bytes, bytes]] | None = None) -> None:
    all_headers = [(b"content-type", b"application/json"), *(headers or [])]
    await send({"type": "http.response.start", "status": status, "headers": all_headers})
    await send({"type": "http.response.body", "body": json.dumps(data).encode()})


@contextmanager
def serving(
    script: Script = well_behaved, *, takes_ids: bool = True, hold: Hold | None = None
) -> Iterator[tuple[str, ScriptedServer]]:
    """(url, server), in a thread of its own."""
    app = ScriptedServer(script, takes_ids=takes_ids, hold=hold)
    started = threading.Event()

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            started.set()

    server = Server(uvicorn.Config(app, port=0, log_level="error", lifespan="off", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert started.wait(60)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}", app
    finally:
        server.should_exit = True
        thread.join(10)
