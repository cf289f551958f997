"""One answer over ASGI, streamed or whole, that stops working as soon as nobody listens.

The work runs in the task that the server made for the request, and is cancelled when the client leaves (watch.py).
Nothing is sent before the first token, so that a refusal still has a status of its own. After the first byte an error
can only be an event in the stream.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from time import monotonic
from typing import Final, Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from penstock.serve.choice import Choice, Piece
from penstock.serve.errors import wire
from penstock.serve.express import Collected
from penstock.serve.generation import Generation
from penstock.serve.telling import tell
from penstock.serve.watch import Watch

PING_S: Final = 15.0
"""Silence after which a comment line is sent: proxies close connections that say nothing."""
SEND_S: Final = 120.0
"""That one piece may wait for a client that reads slowly or not at all; then it has left."""
INLINE_LOGPROBS: Final = 500
"""Entries, likeliest ones included, that are written on the event loop; a client may ask for a million."""

_STREAM_HEADERS: Final = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)


class Chunks(Protocol):
    """The short way to the socket, where the server around the app has one (http_protocol.py)."""

    def open(self) -> bool:
        """Whether a piece of a begun body can be written now."""

    def write(self, data: bytes) -> None:
        """Write it."""


class Format(Protocol):
    """An endpoint's wire format: each method gives bytes that are ready to be sent."""

    def opening(self, choice: Choice) -> bytes:
        """What precedes a choice's first piece."""

    def piece(self, choice: Choice, piece: Piece) -> bytes:
        """One event; empty if the piece shows nothing."""

    def around(self, choice: Choice) -> tuple[bytes, bytes] | None:
        """What a piece's event has before and after the JSON of its text; None: more than the text is shown."""

    def closing(self, choice: Choice) -> bytes:
        """The event with the finish reason."""

    def ending(self, generation: Generation) -> bytes:
        """After the last choice: the usage, if asked for, and [DONE]."""

    def whole(self, generation: Generation) -> bytes:
        """Everything as one JSON body."""


class Answer(Response):
    """Runs a generation and writes it. Subclasses Response so that FastAPI hands it the connection."""

    def __init__(self, generation: Generation, form: Format, *, stream: bool, tenant: str) -> None:
        super().__init__()
        self._chunks: Chunks | None = None
        self._generation, self._form, self._stream, self._tenant = generation, form, stream, tenant
        self._events: list[bytes | Callable[[], bytes]] = []
        """To be sent: what is made already, and what is to be made in a thread."""
        self._late = False
        """Something in `_events` is to be made, or is being made: what follows is not made before it."""
        self._started = self._ended = self._failed = False
        self._wrote_at = monotonic()
        self._sending = False
        """Since `_wrote_at`, and not done yet."""
        self._ping: asyncio.Task[None] | None = None

    def init_headers(self, headers: Mapping[str, str] | None = None) -> None:
        """None: `__call__` writes its own."""
        self.raw_headers = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._send = scope["penstock.send"]
        self._chunks = scope.get("penstock.chunks")
        began = monotonic()
        outcome = "cancelled"
        try:
            outcome = await self._work(Watch(scope, receive, PING_S, self._look), scope["request_id"])
        finally:
            tell(
                scope, self._generation, tenant=self._tenant, stream=self._stream, began=began, outcome=outcome,
                failed=self._failed,
            )  # fmt: skip

    async def _work(self, watch: Watch, request_id: str) -> str:
        """All of it. Returns how it ended, in a word: finish reasons, or what kept it from them."""
        try:
            try:
                await (self._streamed() if self._stream else self._whole())
            finally:
                watch.stop()
                if self._ping is not None:
                    self._ping.cancel()
            return ",".join(sorted({choice.finish_reason or "" for choice in self._generation.choices}))
        except asyncio.CancelledError:
            if not watch.take_back():
                raise
        except Exception as error:  # noqa: BLE001 - whatever it is, the client hears of it
            try:
                async with asyncio.timeout(SEND_S):
                    return await self._conclude(error, request_id)
            except TimeoutError:
                watch.slow = True
        if not watch.slow:
            return "cancelled"
        await watch.hang_up()
        return "slow_reader"

    def _look(self) -> bool:
        """Fill a stream that is silent (watch.Look)."""
        silent_s = monotonic() - self._wrote_at
        if self._sending:
            return silent_s < SEND_S
        if self._stream and silent_s >= PING_S and not self._ended:
            self._ping = asyncio.create_task(self._write(b": ping\n\n"))
        return True

    def open(self) -> bool:
        """The head and the first piece have left, and nothing waits to be written (express.Way)."""
        return self._started and not (self._sending or self._late) and self._chunks is not None and self._chunks.open()

    def leave(self) -> None:
        """What was emitted goes to the socket (express.Way)."""
        if self._events and self._chunks is not None:
            self._wrote_at = monotonic()
            self._chunks.write(_made(self._events))
            self._events.clear()

    def around(self, choice: Choice) -> tuple[bytes, bytes] | None:
        """As the format says (express.Way)."""
        return self._form.around(choice)

    def write(self, event: bytes, now: float) -> None:
        """One event to the socket (express.Way)."""
        self._wrote_at = now
        if self._chunks is not None:
            self._chunks.write(event)

    async def _streamed(self) -> None:
        await self._generation.run(self._emit, self._flush, self)
        rest = await self._take()
        await self._write(rest + self._form.ending(self._generation), more=False)

    async def _whole(self) -> None:
        await self._generation.run(_nothing, _pause, Collected())
        if _is_long(self._generation.choices):
            body = await asyncio.to_thread(self._form.whole, self._generation)
        else:
            body = self._form.whole(self._generation)
        self._wrote_at, self._sending = monotonic(), True
        await _send_json(self._send, 200, ((b"content-type", b"application/json"),), body)

    def _emit(self, choice: Choice, piece: Piece) -> None:
        if self._late or _is_large(choice, piece):
            self._late = True
            first, last = not choice.opened, choice.finish_reason is not None
            self._events.append(partial(self._events_of, choice, piece, first=first, last=last))
            choice.opened = True
            return
        if not choice.opened:
            choice.opened = True
            self._events.append(self._form.opening(choice))
        event = self._form.piece(choice, piece)
        if event:
            self._events.append(event)
        if choice.finish_reason is not None:
            self._events.append(self._form.closing(choice))

    def _events_of(self, choice: Choice, piece: Piece, *, first: bool, last: bool) -> bytes:
        opening = self._form.opening(choice) if first else b""
        shown = self._form.piece(choice, piece)
        return opening + shown + (self._form.closing(choice) if last else b"")

    async def _take(self) -> bytes:
        """What is to be sent now, made in a thread where that takes long. Sequences may emit meanwhile."""
        events, self._events = self._events, []
        if not self._late:
            return _made(events)
        data = await asyncio.to_thread(_made, events)
        self._late = bool(self._events)
        return data

    async def _flush(self) -> None:
        if self._events:
            data = await self._take()
            if self._started:
                self._wrote_at, self._sending = monotonic(), True
                await self._send({"type": "http.response.body", "body": data, "more_body": True})
                self._sending = False
            else:
                await self._write(data)

    async def _write(self, data: bytes, *, more: bool = True) -> None:
        # Flags before the first await: the work and the pings both write, and may have to wait for a slow client.
        self._wrote_at, self._ended, self._sending = monotonic(), not more, True
        if not self._started:
            self._started = True
            await self._send({"type": "http.response.start", "status": 200, "headers": list(_STREAM_HEADERS)})
        await self._send({"type": "http.response.body", "body": data, "more_body": more})
        self._sending = False

    async def _conclude(self, error: Exception, request_id: str) -> str:
        """Tell the client of an error, in the form that is still possible. Returns its code."""
        self._failed = True
        answer = wire(error, request_id)
        self._generation.metrics.failed(answer.reason, answer.status)
        if not self._started:
            await _send_json(self._send, answer.status, answer.headers, answer.body)
        else:
            named = getattr(self._form, "error_event", None)
            last = b"data: " + answer.body + b"\n\n" if named is None else named(answer.body)
            await self._write(await self._take() + last, more=False)
        return answer.reason


def _made(events: Sequence[bytes | Callable[[], bytes]]) -> bytes:
    if len(events) == 1 and isinstance(events[0], bytes):
        return events[0]
    return b"".join([one if isinstance(one, bytes) else one() for one in events])


def _is_large(choice: Choice, piece: Piece) -> bool:
    """Whether a piece, with what opens its choice, has too many log-probabilities to be written on the event loop."""
    scored = None if choice.opened else choice.prompt_logprobs
    if scored is not None and scored.chosen and len(scored.chosen) * (1 + len(scored.top[0])) > INLINE_LOGPROBS:
        return True
    return bool(piece.logprobs) and len(piece.logprobs) * (1 + len(piece.logprobs[0].top)) > INLINE_LOGPROBS


def _is_long(choices: Sequence[Choice]) -> bool:
    """Whether a whole answer has too many log-probabilities to be written on the event loop."""
    if any(choice.prompt_logprobs is not None for choice in choices):
        return True
    return sum(1 + len(one.top) for choice in choices for one in choice.logprobs) > INLINE_LOGPROBS


async def _send_json(send: Send, status: int, headers: tuple[tuple[bytes, bytes], ...], body: bytes) -> None:
    length = (b"content-length", b"%d" % len(body))
    await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
    await send({"type": "http.response.body", "body": body})


def _nothing(choice: Choice, piece: Piece) -> None:
    return


async def _pause() -> None:
    return
