"""SERVING-CHECKLIST section 4 on the wire, byte by byte, for both endpoints."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import AsyncIterator

import pytest

from penstock.control.request import Request
from penstock.errors import RequestFailed
from penstock.runtime.facts import Output
from penstock.serve import answer

from .conftest import Scripted
from .scripted import raising, say
from .sse import check_usage, events, read_stream


@pytest.mark.parametrize("include_usage", [False, True])
@pytest.mark.parametrize("extra", [{}, {"return_token_ids": True}], ids=["plain", "ids"])
def test_a_chat_stream_keeps_every_rule(scripted: Scripted, include_usage: bool, extra: dict[str, object]) -> None:
    if include_usage:
        extra = extra | {"stream_options": {"include_usage": True}}
    reply = scripted.chat(stream=True, **extra)
    assert reply.headers["content-type"].startswith("text/event-stream")
    stream = read_stream(reply.content, include_usage=include_usage)
    assert stream.choices[0].text == "hello"
    assert stream.choices[0].finish_reason == "stop"
    if include_usage:
        assert stream.usage is not None
        assert stream.usage["completion_tokens"] == 6
        assert stream.usage["prompt_tokens_details"] == {"cached_tokens": 3}
    if "return_token_ids" in extra:
        assert stream.choices[0].token_ids == [*b"hello", 256]
        assert bytes(stream.chunks[0]["prompt_token_ids"]) == b"user: hi\nassistant: "


@pytest.mark.parametrize("include_usage", [False, True])
def test_a_completion_stream_keeps_every_rule(scripted: Scripted, include_usage: bool) -> None:
    options = {"stream_options": {"include_usage": True}} if include_usage else {}
    reply = scripted.complete(stream=True, return_token_ids=True, **options)
    stream = read_stream(reply.content, chat=False, include_usage=include_usage)
    assert stream.choices[0].text == "hello"
    assert stream.choices[0].token_ids == [*b"hello", 256]
    assert stream.chunks[0]["choices"][0]["prompt_token_ids"] == [*b"hi"]


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
@pytest.mark.parametrize("extra", [{}, {"logprobs": 1, "return_token_ids": True}, {"stop": "zebra"}])
def test_each_chunk_tells_the_usage_so_far_where_that_is_asked_for(
    scripted: Scripted, path: str, extra: dict[str, object]
) -> None:
    text = 'hi "usage":null}\n\n'
    scripted.service.script = say(text)
    chat = "chat" in path
    body = {"messages": [{"role": "user", "content": "hi"}]} if chat else {"prompt": "hi", "max_tokens": 50}
    if chat and "logprobs" in extra:
        extra = extra | {"logprobs": True}
    options = {"include_usage": True, "continuous_usage_stats": True}
    reply = scripted.http.post(path, json={**body, **extra, "stream": True, "stream_options": options})
    payloads, _ = events(reply.content)
    assert payloads.pop() == "[DONE]"
    *chunks, last = [json.loads(payload) for payload in payloads]
    counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
    assert counts == sorted(counts)
    assert counts[0] == 1
    assert counts[-1] == last["usage"]["completion_tokens"] == len(text) + 1
    assert last["choices"] == []
    for chunk in chunks:
        check_usage(chunk["usage"])
    said = [
        chunk["choices"][0]["delta"].get("content", "") if chat else chunk["choices"][0]["text"] for chunk in chunks
    ]
    assert "".join(said) == text
    options = {"continuous_usage_stats": True}
    reply = scripted.http.post(path, json={**body, "stream": True, "stream_options": options})
    assert read_stream(reply.content, chat=chat).choices[0].text == text


def test_n_and_list_prompts_are_interleaved_with_index_i_n_plus_j(scripted: Scripted) -> None:
    async def script(request: Request) -> AsyncIterator[Output]:
        async for output in say(f"{bytes(request.prompt).decode()}{request.sampling.seed}")(request):
            yield output

    scripted.service.script = script
    reply = scripted.complete(prompt=["a", "b", [99]], n=2, seed=5, stream=True, stream_options={"include_usage": True})
    stream = read_stream(reply.content, n=6, chat=False, include_usage=True)
    assert [stream.choices[index].text for index in range(6)] == ["a5", "a6", "b5", "b6", "c5", "c6"]
    assert stream.usage is not None
    assert stream.usage["prompt_tokens"] == 3
    first_of = [chunk["choices"][0]["index"] for chunk in stream.chunks[:6]]
    assert sorted(first_of) == list(range(6)), "choices take turns"


def test_text_that_may_become_a_stop_string_is_held_back_and_the_stop_string_never_shows(scripted: Scripted) -> None:
    scripted.service.script = say("one ENough END two")
    stream = read_stream(scripted.chat(stream=True, stop=["END", "nothing"]).content)
    read = stream.choices[0]
    assert read.text == "one ENough "
    assert (read.finish_reason, read.stop_reason) == ("stop", "END")
    assert not any(piece.endswith(("E", "EN")) for piece in read.pieces)
    assert scripted.service.someone_left.wait(30), "the request is closed at the match"


def test_a_multi_byte_character_is_never_cut(scripted: Scripted) -> None:
    scripted.service.script = say("aß漢😀\u2028z")
    stream = read_stream(scripted.chat(stream=True).content)
    assert [piece for piece in stream.choices[0].pieces if piece] == ["a", "ß", "漢", "😀", "\u2028", "z"]


def test_an_error_after_the_first_byte_is_one_event_and_the_end(scripted: Scripted) -> None:
    scripted.service.script = raising(RequestFailed("the worker lost it"), after=b"he")
    reply = scripted.chat(stream=True)
    assert reply.status_code == 200
    stream = read_stream(reply.content)
    assert stream.choices[0].text == "he"
    assert stream.error is not None
    assert stream.error["type"] == "server_error"
    assert "the worker lost it" in stream.error["message"]


def test_an_error_before_the_first_byte_has_its_own_status(scripted: Scripted) -> None:
    scripted.service.script = raising(RequestFailed("no"))
    reply = scripted.chat(stream=True)
    assert reply.status_code == 500
    assert reply.json()["error"]["type"] == "server_error"


def test_silence_is_filled_with_comments_and_the_stream_stays_valid(
    scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer, "PING_S", 0.01)
    go_on = threading.Event()

    async def script(request: Request) -> AsyncIterator[Output]:
        yield Output((104,))
        await asyncio.to_thread(go_on.wait, 10)
        yield Output((105,), finished="length")

    scripted.service.script = script
    raw = b""
    with scripted.http.stream("POST", "/v1/completions", json={"prompt": "x", "stream": True}) as reply:
        for part in reply.iter_raw():
            raw += part
            if b": ping" in raw:
                go_on.set()
    stream = read_stream(raw, chat=False)
    assert stream.choices[0].text == "hi"
    assert stream.comments >= 1


def test_who_does_not_read_is_hung_up_and_the_work_ends(scripted: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answer, "PING_S", 0.05)
    monkeypatch.setattr(answer, "SEND_S", 0.3)

    async def script(request: Request) -> AsyncIterator[Output]:
        while True:
            await asyncio.sleep(0)
            yield Output((104,) * 4096)

    scripted.service.script = script
    scripted.service.all_left.clear()
    body = b'{"prompt": "x", "stream": true, "return_token_ids": true}'  # ids fill the socket's buffers sooner
    host, port = scripted.url.removeprefix("http://").split(":")
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect((host, int(port)))
        head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        client.sendall(head + b"content-length: %d\r\n\r\n" % len(body) + body)
        assert scripted.service.someone_runs.wait(60)
        assert scripted.service.all_left.wait(60)
        client.settimeout(60)
        with contextlib.suppress(ConnectionResetError):
            while client.recv(1 << 20):
                pass
