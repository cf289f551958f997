"""A light HTTP client for streamed answers: the load generator often shares its cores with the server it measures.

asyncio's own transport under httptools' parser, one request at a time per connection, connections kept alive and
bounded. Server-sent events are cut into lines as they arrive and only the fields that count are decoded, typed, by
msgspec. `benchmarks/generator_cost.py` measures what one token event costs here and through httpx.

    Client.send(path, body) -> Answer       never raises for what the network or the server does: it is in the Answer
"""

from __future__ import annotations

import asyncio
import ssl
from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Final, cast
from urllib.parse import urlsplit

import httptools
import msgspec

from penstock.errors import BadInput

_BODY_LIMIT: Final = 1 << 20
_IDLE_LIMIT_S: Final = 2.0
"""An idle connection older than this is not used again: servers close theirs after 5 s, and a race would look like a
failed request."""


class _Delta(msgspec.Struct):
    content: str | None = None
    reasoning_content: str | None = None
    """Thoughts, as SGLang and the first vLLMs to have them name them; later ones say `reasoning`."""
    reasoning: str | None = None
    tool_calls: Any = None

    @property
    def carries_token(self) -> bool:
        return bool(self.content or self.reasoning_content or self.reasoning or self.tool_calls is not None)


class _Choice(msgspec.Struct):
    text: str | None = None
    delta: _Delta | None = None
    token_ids: list[int] | None = None
    finish_reason: str | None = None


class _Details(msgspec.Struct):
    cached_tokens: int | None = 0


class Usage(msgspec.Struct):
    """The server's own count of tokens."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompt_tokens_details: _Details | None = None

    @property
    def cached_tokens(self) -> int:
        details = self.prompt_tokens_details
        return (details.cached_tokens or 0) if details is not None else 0


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: Usage | None = None
    error: Any = None


_decode: Final = msgspec.json.Decoder(_Event).decode


@dataclass(slots=True)
class Answer:
    """What came back, and when; times are `time.perf_counter` seconds."""

    asked_s: float
    """When the caller asked; sent_s - asked_s is what the generator itself lost."""
    sent_s: float = 0.0
    end_s: float = 0.0
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    token_s: array[float] = field(default_factory=lambda: array("d"))
    usage: Usage | None = None
    finish: str | None = None
    done: bool = False
    """[DONE] was seen."""
    error: str = ""
    cut: bool = False
    """The client closed it on purpose."""
    body: bytes = b""
    """What is not an event stream."""

    @property
    def retry_after_s(self) -> float | None:
        """Seconds the server asked to wait, retry-after-ms first; None when it did not say."""
        for name, scale in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
            try:
                return float(self.headers[name]) * scale
            except (KeyError, ValueError):
                continue  # absent, or an HTTP date: the next form may be there
        return None


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go. `prefix` is the path of the base URL, usually empty or /v1's parent."""

    host: str
    port: int
    prefix: str
    tls: bool
    api_key: str | None = None

    @classmethod
    def parse(cls, url: str, api_key: str | None = None) -> Target:
        """From http://host:port, with or without a trailing /v1. Raises BadInput."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            parts, port = urlsplit(""), None
            why = str(error)
        else:
            why = "it is not an http or https URL"
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise BadInput(field="url", value=url, why=why, remedy="such as http://127.0.0.1:8000")
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            raise BadInput(
                field="api-key", value="(hidden)", why="it holds characters that no header may",
                remedy="printable ASCII",
            )  # fmt: skip
        tls = parts.scheme == "https"
        prefix = parts.path.rstrip("/").removesuffix("/v1")
        return cls(parts.hostname, port or (443 if tls else 80), prefix, tls, api_key)

    def head(self, method: str, path: str, length: int) -> bytes:
        """The request head."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        key = f"Authorization: Bearer {self.api_key}\r\n" if self.api_key else ""
        content = f"Content-Type: application/json\r\nContent-Length: {length}\r\n" if method == "POST" else ""
        return (
            f"{method} {self.prefix}{path} HTTP/1.1\r\nHost: {host}:{self.port}\r\nAccept: */*\r\n"
            f"User-Agent: penstock-bench\r\n{key}{content}\r\n"
        ).encode("ascii")


class _Connection(asyncio.Protocol):
    """One connection; `start` begins an exchange, `finished` resolves when it is over, whatever the reason."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.reusable = False
        self.idle_since = 0.0
        self.finished: asyncio.Future[None] | None = None
        self._answer = Answer(0.0)
        self._streaming = False
        self._rest = b""
        self._now = 0.0
        self._cut_after: int | None = None

    def start(self, data: bytes, answer: Answer, cut_after: int | None) -> asyncio.Future[None]:
        self._parser = httptools.HttpResponseParser(self)
        self._answer, self._cut_after = answer, cut_after
        self._rest, self._streaming, self.reusable = b"", False, False
        self.finished = asyncio.get_running_loop().create_future()
        if self.transport is None or self.transport.is_closing():
            self._over("connection lost before sending")
        else:
            answer.sent_s = perf_counter()
            self.transport.write(data)
        return self.finished

    def stop(self, reason: str = "", *, cut: bool = False) -> None:
        """Close now. `cut`: the client wanted it."""
        if self.finished is not None and not self.finished.done():
            self._answer.cut = cut
            self._over(reason)
        if self.transport is not None:
            self.transport.abort()

    def _over(self, error: str = "") -> None:
        if self.finished is not None and not self.finished.done():
            self._answer.end_s = perf_counter()
            self._answer.error = self._answer.error or error
            self.finished.set_result(None)

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but inheritance

    def data_received(self, data: bytes) -> None:
        self._now = perf_counter()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            self.stop(f"not HTTP: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        self.reusable = False
        self._over("connection lost" + (f": {exc}" if exc else ""))

    # httptools callbacks

    def on_header(self, name: bytes, value: bytes) -> None:
        self._answer.headers[name.decode("latin-1").lower()] = value.decode("latin-1")

    def on_headers_complete(self) -> None:
        self._answer.status = self._parser.get_status_code()
        content = self._answer.headers.get("content-type", "")
        self._streaming = self._answer.status == 200 and content.startswith("text/event-stream")

    def on_body(self, data: bytes) -> None:
        if not self._streaming:
            if len(self._answer.body) < _BODY_LIMIT:
                self._answer.body += data
            return
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        for line in lines:
            if line.startswith(b"data:"):
                self._event(line[5:].strip())

    def on_message_complete(self) -> None:
        self.reusable = self._parser.should_keep_alive()
        self._over()

    def _event(self, payload: bytes) -> None:
        answer = self._answer
        if answer.cut:
            return  # it came along, and nobody was there to read it
        if payload == b"[DONE]":
            answer.done = True
            return
        try:
            event = _decode(payload)
        except msgspec.MsgspecError as error:
            answer.error = answer.error or f"unreadable event: {error}"
            return
        if event.error is not None:
            answer.error = answer.error or f"error in the stream: {_message(event.error)}"
        if event.usage is not None:
            answer.usage = event.usage
        # One event is one moment: several choices or tokens in it are not several gaps.
        carries_token = False
        for choice in event.choices:
            if choice.finish_reason is not None:
                answer.finish = choice.finish_reason
            delta = choice.delta
            carries_token = carries_token or bool(
                choice.text or choice.token_ids or (delta is not None and delta.carries_token)
            )
        if carries_token:
            answer.token_s.append(self._now)
            if self._cut_after is not None and len(answer.token_s) >= self._cut_after:
                self.stop(cut=True)


class Client:
    """A pool of connections to one server.

    At most `max_connections` are open; a request that must wait for one waits visibly, between `asked_s` and `sent_s`.
    """

    def __init__(self, target: Target, *, max_connections: int = 900, timeout_s: float = 600.0) -> None:
        self.target, self._timeout_s = target, timeout_s
        self._slots = asyncio.Semaphore(max_connections)
        self._idle: list[_Connection] = []
        self._busy: set[_Connection] = set()
        self._cuts = 0
        """Times that everything was cut."""
        self._tls = ssl.create_default_context() if target.tls else None

    async def send(
        self, path: str, body: bytes | None = None, *, asked_s: float | None = None, cut_after: int | None = None
    ) -> Answer:
        """POST `body` (GET without one) and return when the answer is over.

        Args:
            asked_s: when it should have left; default now.
            cut_after: close the connection at this many token events, as a user who leaves does.
        """
        answer = Answer(perf_counter() if asked_s is None else asked_s)
        data = self.target.head("GET" if body is None else "POST", path, len(body or b"")) + (body or b"")
        cuts = self._cuts
        async with self._slots:
            try:
                connection = await asyncio.wait_for(self._connect(), self._timeout_s)
            except (OSError, TimeoutError) as error:
                answer.sent_s = answer.end_s = perf_counter()
                answer.error = f"cannot connect: {error}" if str(error) else "cannot connect: timed out"
                return answer
            if self._cuts != cuts:  # while it waited to be sent
                answer.sent_s = answer.end_s = perf_counter()
                answer.cut = True
                self._give_back(connection)
                return answer
            self._busy.add(connection)
            deadline = asyncio.get_running_loop().call_later(
                self._timeout_s, connection.stop, f"timeout after {self._timeout_s:g} s"
            )
            try:
                await connection.start(data, answer, cut_after)
            finally:
                deadline.cancel()
                self._busy.discard(connection)
                self._give_back(connection)
        return answer

    async def _connect(self) -> _Connection:
        now = perf_counter()
        while self._idle:
            connection = self._idle.pop()
            alive = connection.transport is not None and not connection.transport.is_closing()
            if connection.reusable and alive and now - connection.idle_since < _IDLE_LIMIT_S:
                return connection
            connection.stop()
        loop = asyncio.get_running_loop()
        _, fresh = await loop.create_connection(_Connection, self.target.host, self.target.port, ssl=self._tls)
        return fresh

    def _give_back(self, connection: _Connection) -> None:
        if connection.reusable and connection.finished is not None and connection.finished.done():
            connection.idle_since = perf_counter()
            self._idle.append(connection)
        else:
            connection.stop()

    def cut_all(self) -> None:
        """Close every exchange that is under way, as cut by the client; what still waits to be sent never is."""
        self._cuts += 1
        for connection in tuple(self._busy):
            connection.stop(cut=True)

    def close(self) -> None:
        """Close everything; the client can be used again."""
        self.cut_all()
        for connection in self._idle:
            connection.stop()
        self._idle.clear()


def error_message(body: bytes) -> str:
    """The message of an OpenAI-style error body, or its first characters."""
    try:
        data: Any = msgspec.json.decode(body)
    except msgspec.MsgspecError:
        return body[:200].decode("utf-8", "replace")
    return _message(data)


def _message(data: Any) -> str:
    for key in ("error", "message", "detail"):
        if isinstance(data, dict) and key in data:
            data = data[key]
    return str(data)[:300]


def run_async(main: Callable[[], Any]) -> Any:
    """asyncio.run on uvloop where it is installed: it halves the cost of a token event."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main())
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main())
