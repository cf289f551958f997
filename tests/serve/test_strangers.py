"""What an auditor sends: requests whose length two readers could see differently, headers that claim to come from a
proxy, names made up to fill a monitoring system, and a flood of nonsense."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator

import httpx
import pytest

from penstock.deployment import Deployment

from .conftest import Loop, Scripted
from .scripted import ScriptedService, scripted_app
from .test_http import raw

BODY = json.dumps({"prompt": "x", "max_tokens": 1}).encode()
POST = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
LENGTH = b"content-length: %d\r\n" % len(BODY)
CHUNKED = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
NEXT = b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"


@pytest.fixture(scope="module")
def scripted(loop: Loop) -> Iterator[Scripted]:
    """One of its own: lines about strangers are bounded per server and minute, and other tests count them."""
    service = ScriptedService(Deployment())
    for url in loop.serve(scripted_app(service)):
        yield Scripted(service, url)


@pytest.mark.parametrize(
    "request_",
    [
        POST + b"transfer-encoding: chunked\r\n" + LENGTH + b"\r\n" + CHUNKED,
        POST + LENGTH + b"transfer-encoding: chunked\r\n\r\n" + CHUNKED,
        POST + LENGTH + b"content-length: 3\r\n\r\n" + BODY,
        POST + b"content-length: +%d\r\n\r\n" % len(BODY) + BODY,
        POST + b"content-length: -1\r\n\r\n" + BODY,
        POST + b"content-length: 99999999999999999999999\r\n\r\n" + BODY,
        POST + b"content-length: %d, %d\r\n\r\n" % (len(BODY), len(BODY)) + BODY,
        POST + b"transfer-encoding: chunked, identity\r\n\r\n" + CHUNKED,
        POST + b"transfer-encoding: xchunked\r\n\r\n" + CHUNKED,
        POST + b"transfer-encoding : chunked\r\n\r\n" + CHUNKED,
        POST + b"transfer-encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
        POST + b"transfer-encoding: chunked\r\n\r\n-1\r\n",
        POST + b"transfer-encoding: chunked\r\n\r\n" + CHUNKED.replace(b"}\r\n", b"}xx\r\n", 1),
        POST + b"x: a\0b\r\n" + LENGTH + b"\r\n" + BODY,
        POST + b"x: a\rb\r\n" + LENGTH + b"\r\n" + BODY,
        POST + b"x: a\r\n folded\r\n" + LENGTH + b"\r\n" + BODY,
    ],
)
def test_a_request_whose_end_is_in_doubt_is_refused_and_nothing_after_it_is_answered(
    scripted: Scripted, request_: bytes
) -> None:
    calls = len(scripted.service.calls)
    answer = raw(scripted.url, request_ + NEXT)
    assert answer.startswith(b"HTTP/1.1 400 "), answer[:200]
    assert answer.count(b"\r\nx-request-id: ") == 1
    assert len(scripted.service.calls) == calls


def test_a_body_that_was_compressed_on_its_way_is_not_taken_for_one_that_was_not(scripted: Scripted) -> None:
    calls = len(scripted.service.calls)
    answer = raw(scripted.url, POST + b"transfer-encoding: gzip, chunked\r\nconnection: close\r\n\r\n" + CHUNKED)
    assert answer.startswith(b"HTTP/1.1 400 "), answer[:200]
    assert b"chunked alone" in answer
    assert len(scripted.service.calls) == calls


def test_requests_that_come_at_once_are_answered_each_and_in_order(scripted: Scripted) -> None:
    ask = b"GET /nothing/%d HTTP/1.1\r\nhost: localhost\r\n\r\n"
    answer = raw(scripted.url, b"".join(ask % number for number in range(40)) + POST + LENGTH + b"\r\n" + BODY + NEXT)
    assert answer.count(b"HTTP/1.1 404 ") == 40
    places = [answer.index(b"/nothing/%d'" % number) for number in range(40)]
    assert places == sorted(places)
    assert answer.count(b"HTTP/1.1 200 ") == 2


def test_what_a_proxy_would_say_of_the_client_is_not_believed(scripted: Scripted) -> None:
    claims = {
        "x-forwarded-for": "127.0.0.1", "x-real-ip": "127.0.0.1", "x-forwarded-host": "localhost",
        "x-forwarded-proto": "https", "forwarded": "for=127.0.0.1;host=localhost", "x-original-url": "/metrics",
        "x-rewrite-url": "/metrics", "x-http-method-override": "GET",
    }  # fmt: skip
    assert scripted.http.get("/health", headers={"host": "evil.example", **claims}).status_code == 403
    assert scripted.http.get("/health", headers=claims).json()["status"] == "alive"
    assert scripted.http.post("/v1/models", headers=claims).status_code == 405


@pytest.fixture(scope="module")
def locked(loop: Loop) -> Iterator[str]:
    yield from loop.serve(scripted_app(ScriptedService(Deployment.parse({"server": {"api_keys": ["one"]}}))))


@pytest.mark.parametrize(
    "target", ["//metrics", "/metrics/", "/METRICS", "/metrics;a=b", "/./metrics", "/health/../metrics",
               "/%6detrics", "/metrics%00", "/health%2f..%2fmetrics", "http://x/metrics", "/metrics?key=one",
               "/metrics?api_key=one&authorization=Bearer%20one"]
)  # fmt: skip
def test_no_spelling_of_a_path_leads_past_the_key(locked: str, target: str) -> None:
    head = f"GET {target} HTTP/1.1\r\nhost: localhost\r\nx-original-url: /health\r\nconnection: close\r\n\r\n"
    answer = raw(locked, head.encode())
    assert answer.startswith((b"HTTP/1.1 401 ", b"HTTP/1.1 404 ", b"HTTP/1.1 400 ")), answer[:200]
    assert b"penstock_" not in answer


def test_a_slash_too_many_leads_nowhere_else(locked: str) -> None:
    """A redirect would name the Host that the client sent, and http behind a proxy that speaks TLS."""
    for path in (b"/metrics/", b"/v1/chat/completions/", b"/v1/models/", b"/health/"):
        answer = raw(locked, b"POST " + path + b" HTTP/1.1\r\nhost: evil.example\r\nconnection: close\r\n\r\n")
        assert answer.startswith((b"HTTP/1.1 403 ", b"HTTP/1.1 404 ", b"HTTP/1.1 405 ", b"HTTP/1.1 401 ")), answer[:200]
        assert b"\r\nlocation:" not in answer.lower()


def test_names_that_clients_make_up_become_no_label(scripted: Scripted) -> None:
    for number in range(40):
        name = f"madeup{number}"
        scripted.http.get(f"/{name}")
        scripted.http.get(f"/v1/models/{name}")
        scripted.http.request(f"MADEUP{number}", "/v1/models")
        scripted.http.post("/v1/completions", json={"model": name, "prompt": "x", "user": name})
        scripted.http.post(
            "/v1/completions", headers={"x-request-id": name, "user-agent": name},
            json={"prompt": "x", "max_tokens": 1, "user": name, "metadata": {"k": name}, "cache_salt": name},
        )  # fmt: skip
    assert "madeup" not in scripted.http.get("/metrics").text.lower()


def test_nonsense_floods_no_log(scripted: Scripted, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        for _ in range(130):
            assert raw(scripted.url, b"\x16\x03\x01\x02\x00nonsense\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    assert len(caplog.records) <= 101
    for _ in range(3):
        offer = {"connection": "upgrade", "upgrade": "websocket", "sec-websocket-version": "13"}
        assert httpx.get(f"{scripted.url}/health", headers=offer, timeout=60).status_code == 200
    assert not [one for one in caplog.records if one.name.startswith("uvicorn")]
