"""HTTP itself: methods, heads that are too long or too slow, web pages of other origins, limits an operator sets."""

from __future__ import annotations

import asyncio
import gzip
import http.client
import json
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import httpx
import pytest
import uvloop

from penstock.deployment import Deployment
from penstock.observe.request_log import STRANGERS_LINES, STRANGERS_S, Strangers
from penstock.serve import http_protocol
from penstock.serve.http_protocol import MAX_HEAD_BYTES
from penstock.serve.server import Server, listen, settings, url_of

from .conftest import Loop, Scripted
from .scripted import ScriptedService, raising, scripted_app
from .sse import read_stream


@contextmanager
def standing_still(loop: Loop) -> Iterator[None]:
    """The server's event loop does: what is sent meanwhile is there when the connection is, on a busy machine too."""
    stands, go_on = threading.Event(), threading.Event()

    def stand() -> None:
        stands.set()
        go_on.wait(60)

    loop.loop.call_soon_threadsafe(stand)
    assert stands.wait(60)
    try:
        yield
    finally:
        go_on.set()


def raw(url: str, *parts: bytes, until_sent: Loop | None = None) -> bytes:
    """Everything the server says to these bytes until it hangs up. It sees nothing before the first part is there if
    `until_sent`, its loop, is given."""
    host, port = url.removeprefix("http://").split(":")
    heard = b""
    with ExitStack() as still:
        if until_sent is not None:
            still.enter_context(standing_still(until_sent))
        client = socket.create_connection((host, int(port)), timeout=60)
        try:
            for part in parts:
                client.sendall(part)
                still.close()
        except OSError:
            pass  # it hung up before it had heard all: what it said is still to be read
    with client:
        try:
            while part := client.recv(65536):
                heard += part
        except ConnectionResetError:
            pass
    return heard


def error_in(answer: bytes) -> dict[str, Any]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"\r\nx-request-id: " in head
    error: dict[str, Any] = json.loads(body)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def id_in(answer: bytes) -> str:
    head, _, _ = answer.partition(b"\r\n\r\n")
    (found,) = [line for line in head.split(b"\r\n") if line.startswith(b"x-request-id: ")]
    return found.removeprefix(b"x-request-id: ").decode()


def refusals(caplog: pytest.LogCaptureFixture) -> list[tuple[str, int, str]]:
    """Request id, status and code of each line about a refusal, in order."""
    seen = [vars(one) for one in caplog.records if one.name == "penstock.serve"]
    return [(one["request_id"], one["status"], one["outcome"]) for one in seen]


def test_head_is_get_without_its_body(scripted: Scripted) -> None:
    for path in ("/health", "/ready", "/v1/models", "/version"):
        head, get = scripted.http.head(path), scripted.http.get(path)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == get.headers["content-length"] == str(len(get.content))
        assert head.headers["x-request-id"]
    assert scripted.http.head("/v1/completions").status_code == 405


def test_options_says_what_a_path_allows_and_nothing_of_other_origins(scripted: Scripted) -> None:
    asked = {"origin": "https://evil.example", "access-control-request-method": "POST"}
    reply = scripted.http.options("/v1/completions", headers=asked)
    assert (reply.status_code, reply.headers["allow"]) == (204, "POST")
    assert not [name for name in reply.headers if name.startswith("access-control")]
    assert scripted.http.options("/nowhere").status_code == 404
    answered = scripted.http.post("/v1/completions", json={"prompt": "x"}, headers={"origin": "https://evil.example"})
    assert not [name for name in answered.headers if name.startswith("access-control")]


@pytest.mark.parametrize("path", ["/v1/completions", "/tokenize"])
def test_a_compressed_body_is_415_and_says_so(scripted: Scripted, path: str) -> None:
    body = gzip.compress(b'{"prompt": "x"}')
    reply = scripted.http.post(path, content=body, headers={"content-encoding": "gzip"})
    assert reply.status_code == 415
    assert reply.json()["error"]["code"] == "unsupported_content_encoding"
    assert "'gzip'" in reply.json()["error"]["message"]
    plain = scripted.http.post(path, content=b'{"prompt": "x"}', headers={"content-encoding": "identity"})
    assert plain.status_code == 200


@pytest.mark.parametrize("host", [b"", b"host: localhost\r\n"])
def test_an_http_1_0_client_gets_no_chunks_and_the_end_of_the_connection(scripted: Scripted, host: bytes) -> None:
    def answer_to(body: bytes) -> tuple[bytes, bytes]:
        start = b"POST /v1/completions HTTP/1.0\r\nconnection: keep-alive\r\n" + host
        answer = raw(scripted.url, start + b"content-length: %d\r\n\r\n" % len(body) + body)
        head, _, rest = answer.partition(b"\r\n\r\n")
        assert b"transfer-encoding" not in head.lower()
        return head, rest

    head, rest = answer_to(b'{"prompt": "x", "stream": true, "n": 2}')
    assert b"200 OK" in head
    assert b"content-length" not in head
    assert b"connection: close" in head
    assert [choice.text for choice in read_stream(rest, n=2, chat=False).choices.values()] == ["hello", "hello"]
    head, rest = answer_to(b'{"prompt": "x"}')
    assert b"content-length: %d" % len(rest) in head
    assert json.loads(rest)["choices"][0]["text"] == "hello"
    head, rest = answer_to(b'{"prompt": ""}')
    assert b" 400 " in head
    assert json.loads(rest)["error"]["param"] == "prompt"


@pytest.mark.parametrize("factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_streams_are_neither_delayed_nor_compressed(
    monkeypatch: pytest.MonkeyPatch, factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    seen: list[int] = []
    made = http_protocol.BoundedHttp.connection_made

    def connection_made(self: http_protocol.BoundedHttp, transport: asyncio.Transport) -> None:
        seen.append(transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
        made(self, transport)

    monkeypatch.setattr(http_protocol.BoundedHttp, "connection_made", connection_made)

    async def main() -> httpx.Response:
        sock = listen("127.0.0.1", 0)
        server = Server(settings(scripted_app(ScriptedService(Deployment()))))
        serving = asyncio.create_task(server.serve([sock]))
        async with httpx.AsyncClient(headers={"accept-encoding": "gzip, br, zstd"}) as client:
            reply = await client.post(f"{url_of(sock)}/v1/completions", json={"prompt": "x", "stream": True})
        server.should_exit = True
        await serving
        return reply

    with asyncio.Runner(loop_factory=factory) as runner:
        reply = runner.run(main())
    assert "content-encoding" not in reply.headers
    assert reply.headers["cache-control"] == "no-cache"
    assert seen
    assert all(seen)


def test_an_offer_of_http_2_is_passed_over(scripted: Scripted, caplog: pytest.LogCaptureFixture) -> None:
    """As Java's client makes it with its first request: the body is read, and the connection goes on."""
    caplog.set_level(logging.WARNING)
    body = b'{"prompt": "x"}'
    start = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n" % len(body)
    offer = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAEAAEAAAAIAAAABAAMAAABk\r\n"
    host, port = scripted.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as client:
        close = offer.replace(b"Upgrade,", b"Upgrade, close,")
        for pieces in ((start + offer, b"\r\n" + body), (start + b"\r\n" + body,), (start + close + b"\r\n", body)):
            for piece in pieces:
                client.sendall(piece)
            answer = http.client.HTTPResponse(client)
            answer.begin()
            assert answer.status == 200
            assert json.loads(answer.read())["choices"][0]["text"] == "hello"
        assert client.recv(1) == b"", "it was asked to close"
    many = (start + offer + b"\r\n" + body) * 300 + start + close + b"\r\n" + body
    assert raw(scripted.url, many).count(b'"hello"') == 301
    assert not [one for one in caplog.records if one.levelno >= logging.WARNING]


def test_named_origins_may_call_from_a_browser_and_others_may_not(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    deployment = Deployment.parse({"server": {"cors_origins": ["https://app.example"]}})
    service = ScriptedService(deployment)
    for url in loop.serve(scripted_app(service)):
        http = Scripted(service, url).http
        asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization"}
        reply = http.options("/v1/completions", headers=asked | {"origin": "https://app.example"})
        assert reply.status_code == 200
        assert reply.headers["access-control-allow-origin"] == "https://app.example"
        assert "authorization" in reply.headers["access-control-allow-headers"]
        assert reply.headers["x-request-id"]
        refused = http.options("/v1/completions", headers=asked | {"origin": "https://evil.example"})
        assert refused.status_code == 400
        assert "access-control-allow-origin" not in refused.headers
        for body in ({"prompt": "x"}, {"prompt": "x", "stream": True}, {"prompt": ""}):
            reply = http.post("/v1/completions", json=body, headers={"origin": "https://app.example"})
            assert reply.headers["access-control-allow-origin"] == "https://app.example"
            exposed = reply.headers["access-control-expose-headers"]
            assert {"retry-after-ms", "x-ratelimit-remaining-tokens"} <= set(exposed.split(", "))
            other = http.post("/v1/completions", json=body, headers={"origin": "https://evil.example"})
            assert "access-control-allow-origin" not in other.headers
        service.script = raising(KeyError("a bug"))
        reply = http.post("/v1/completions", json={"prompt": "x"}, headers={"origin": "https://app.example"})
        assert (reply.status_code, reply.headers["access-control-allow-origin"]) == (500, "https://app.example")
        monkeypatch.setattr("penstock.serve.front.make_sampling", None)
        reply = http.post("/v1/completions", json={"prompt": "x"}, headers={"origin": "https://app.example"})
        assert (reply.status_code, reply.headers["access-control-allow-origin"]) == (500, "https://app.example")


def test_headers_without_end_are_cut_off_before_they_are_kept(scripted: Scripted) -> None:
    start = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nx-long: "
    answer = raw(scripted.url, start, *[b"a" * 65536] * (MAX_HEAD_BYTES // 65536 + 8))
    # The bytes it did not read may reset the connection before the answer is heard; it must hang up in any case.
    if answer:
        assert answer.startswith(b"HTTP/1.1 431 ")
        assert error_in(answer)["code"] == "headers_too_large"
    assert scripted.http.get("/health").status_code == 200


def test_a_slow_head_is_408_and_a_silent_connection_is_closed(
    scripted: Scripted, loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http_protocol, "HEAD_TIMEOUT_S", 0.2)
    answer = raw(scripted.url, b"POST /v1/completions HTTP/1.1\r\nhost: local", until_sent=loop)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert error_in(answer)["code"] == "request_timeout"
    assert raw(scripted.url) == b""


@pytest.mark.parametrize("known", [b"mine-1", b"not safe", b""])
def test_what_is_refused_before_the_app_is_in_the_log_under_the_id_of_its_answer(
    scripted: Scripted, loop: Loop, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, known: bytes
) -> None:
    caplog.set_level(logging.INFO, logger="penstock.serve")
    monkeypatch.setattr(http_protocol, "MAX_HEAD_BYTES", 2000)
    own = b"x-request-id: %b\r\n" % known if known else b""
    start = b"POST /v1/completions HTTP/1.1\r\n" + own + b"host: localhost\r\n"
    chunked = start + b"transfer-encoding: chunked\r\n\r\n5\r\n{    \r\n0\r\n"
    for sent, slow, status, code in (
        (start, "HEAD_TIMEOUT_S", 408, "request_timeout"),
        (start + b"x-long: " + b"a" * 4000, "", 431, "headers_too_large"),
        (start + b"content-length: 9\r\n\r\n{", "BODY_TIMEOUT_S", 408, "request_timeout"),
        (start + b"no colon\r\n\r\n", "", 400, "invalid_http"),
        (chunked + b"x-one: 1\r\n\r\n", "", 400, "invalid_http"),
    ):
        caplog.clear()
        with monkeypatch.context() as limited:
            if slow:
                limited.setattr(http_protocol, slow, 0.2)
            answer = raw(scripted.url, sent, until_sent=loop)
        assert answer.startswith(b"HTTP/1.1 %d " % status), answer
        assert refusals(caplog) == [(id_in(answer), status, code)]
        assert (id_in(answer) == known.decode()) == (known == b"mine-1")


def test_what_is_refused_before_the_app_is_counted_as_an_error_and_an_answer(scripted: Scripted) -> None:
    def counts() -> tuple[float, float, float]:
        text = scripted.http.get("/metrics").text
        samples = {one.partition(" ")[0]: float(one.rpartition(" ")[2]) for one in text.splitlines() if one[:1] != "#"}
        rejected = sum(value for name, value in samples.items() if name.startswith("penstock_rejections_total"))
        errors = samples.get('penstock_errors_total{code="invalid_http"}', 0)
        return errors, samples.get('penstock_http_responses_total{route="none",status="400"}', 0), rejected

    errors, answers, rejected = counts()
    for _ in range(3):
        assert raw(scripted.url, b"\x16\x03\x01").startswith(b"HTTP/1.1 400 ")
    assert counts() == (errors + 3, answers + 3, rejected)


def test_refusals_of_strangers_flood_no_log(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="penstock.serve")
    now = 5.0
    monkeypatch.setattr("penstock.observe.request_log.time.monotonic", lambda: now)
    strangers = Strangers()
    for number in range(STRANGERS_LINES + 50):
        strangers.write(f"id-{number}", 400, "invalid_http")
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == STRANGERS_LINES + 1
    assert "no more of these for 60 s" in lines[-1]
    now += STRANGERS_S
    strangers.write("later", 400, "invalid_http")
    assert "request_id=later" in caplog.records[-1].getMessage()


def test_what_follows_an_answer_has_an_id_of_its_own(scripted: Scripted, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="penstock.serve")
    host, port = scripted.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as client:
        client.sendall(b"GET /version HTTP/1.1\r\nhost: localhost\r\nx-request-id: mine-1\r\n\r\n")
        first = client.recv(65536)
        while not first.endswith(b"}"):
            first += client.recv(65536)
        client.sendall(b"\x16\x03\x01")
        second = b""
        while part := client.recv(65536):
            second += part
    assert id_in(first) == "mine-1" != id_in(second)
    assert refusals(caplog) == [(id_in(second), 400, "invalid_http")]


def test_a_body_may_take_longer_than_a_head(scripted: Scripted, loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "HEAD_TIMEOUT_S", 0.2)
    big = b'{"prompt": "x", "nonsense": "' + b"y" * (MAX_HEAD_BYTES * 2) + b'"}'
    head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
    answer = raw(scripted.url, head % len(big), big[:100_000], big[100_000:], until_sent=loop)
    assert answer.startswith(b"HTTP/1.1 200 "), answer[:500]


CHUNKED = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    "after",
    [b"x-one: 1\r\n" * 2, b"x-long: " + b"a" * (MAX_HEAD_BYTES + 2**20), b"5;" + b"a" * (MAX_HEAD_BYTES + 2**20)],
)
def test_trailers_and_endless_chunk_heads_are_not_kept(scripted: Scripted, after: bytes) -> None:
    last = b"" if after.startswith(b"5") else b"0\r\n"
    answer = raw(scripted.url, CHUNKED + b"5\r\n{    \r\n" + last, after)
    if answer:  # what it did not read may reset the connection first
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert error_in(answer)["code"] == "invalid_http"


def test_trailers_after_an_answer_only_end_the_connection(scripted: Scripted) -> None:
    head = CHUNKED.replace(b"/v1/completions", b"/nowhere")
    host, port = scripted.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=60) as client:
        client.sendall(head + b"0\r\n")
        heard = client.recv(65536)
        while b"not_found" not in heard:
            heard += client.recv(65536)
        client.sendall(b"x-one: 1\r\nx-two: 2\r\n")
        while part := client.recv(65536):
            heard += part
    assert heard.startswith(b"HTTP/1.1 404 ")
    assert b"HTTP/1.1 400" not in heard


def test_a_body_in_small_chunks_is_no_long_head(scripted: Scripted) -> None:
    text = b'{"prompt": "x", "nonsense": "' + b"y" * 120_000 + b'"}'
    chunks = b"".join(b"2\r\n" + text[at : at + 2] + b"\r\n" for at in range(0, len(text) & ~1, 2))
    rest = b"1\r\n" + text[-1:] + b"\r\n" if len(text) & 1 else b""
    head = CHUNKED.replace(b"transfer-", b"connection: close\r\ntransfer-")
    assert raw(scripted.url, head, chunks, rest, b"0\r\n\r\n").startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("path", [b"/v1/completions", b"/nowhere"])
def test_a_body_that_does_not_end_is_hung_up(scripted: Scripted, monkeypatch: pytest.MonkeyPatch, path: bytes) -> None:
    monkeypatch.setattr(http_protocol, "BODY_TIMEOUT_S", 0.3)
    answer = raw(scripted.url, b"POST %s HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n{" % path)
    assert answer.startswith(b"HTTP/1.1 404 " if path == b"/nowhere" else b"HTTP/1.1 408 ")
    assert answer.count(b"HTTP/1.1 4") == 1


@pytest.mark.parametrize("sent", [b"\x16\x03\x01\x02\x00\x01\x00", b"GET\r\n\r\n", b"POST / HTTP/9.9\r\n\r\n"])
def test_what_is_no_http_is_400_in_the_one_shape(scripted: Scripted, sent: bytes) -> None:
    answer = raw(scripted.url, sent)
    assert answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")
    assert error_in(answer)["code"] == "invalid_http"


def test_an_operator_may_move_the_limits(loop: Loop) -> None:
    limits = {
        "n": 2, "prompts": 3, "messages": 2, "stop_strings": 1, "stop_characters": 4, "stop_tokens": 1,
        "logit_bias": 1, "top_logprobs": 2, "logprobs": 7, "metadata_pairs": 0, "header_bytes": 1024,
    }  # fmt: skip
    service = ScriptedService(Deployment.parse({"server": {"limits": limits}}))
    message = {"role": "user", "content": "x"}
    for url in loop.serve(scripted_app(service)):
        client = Scripted(service, url)
        for good, bad, param in (
            ({"n": 2}, {"n": 3}, "n"),
            ({"prompt": ["a"] * 3}, {"prompt": ["a"] * 4}, "prompt"),
            ({"stop": "abcd"}, {"stop": "abcde"}, "stop"),
            ({"stop": ["a"]}, {"stop": ["a", "b"]}, "stop"),
            ({"stop_token_ids": [1]}, {"stop_token_ids": [1, 2]}, "stop_token_ids"),
            ({"logit_bias": {"1": 1}}, {"logit_bias": {"1": 1, "2": 1}}, "logit_bias"),
            ({"prompt_logprobs": 2}, {"prompt_logprobs": 3}, "prompt_logprobs"),
            ({"logprobs": 7}, {"logprobs": 8}, "logprobs"),
            ({"metadata": {}}, {"metadata": {"a": "b"}}, "metadata"),
        ):
            assert client.complete(**good).status_code == 200, good
            error = client.complete(**bad).json()["error"]
            assert error["param"] == param
            assert "server.limits." in error["message"]
        assert client.chat(messages=[message] * 2).status_code == 200
        assert client.chat(messages=[message] * 3).json()["error"]["param"] == "messages"
        assert client.chat(logprobs=True, top_logprobs=2).status_code == 200
        assert client.chat(logprobs=True, top_logprobs=3).json()["error"]["param"] == "top_logprobs"
        assert client.http.get("/version", headers={"x-long": "a" * 1024}).status_code == 431
