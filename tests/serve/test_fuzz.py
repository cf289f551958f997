"""Whatever a body holds, it is answered with success or a refusal in the one error shape; never 5xx, never silence."""

from __future__ import annotations

import json
from typing import Any

import httpx
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .conftest import Scripted
from .strategies import CHAT, COMPLETION, values

FUZZ = settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def check(reply: httpx.Response) -> None:
    assert reply.status_code < 500, reply.text
    if reply.status_code != 200:
        error = reply.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert reply.status_code in (400, 404)
    elif reply.headers["content-type"].startswith("text/event-stream"):
        assert reply.content.endswith(b"data: [DONE]\n\n")
    else:
        assert reply.json()["usage"]["total_tokens"] > 0


def post(scripted: Scripted, path: str, body: Any) -> httpx.Response:
    raw = json.dumps(body).encode()  # ASCII: lone surrogates and NaN go out the way sloppy clients send them
    return scripted.http.post(path, content=raw, headers={"content-type": "application/json"})


@FUZZ
@given(body=CHAT)
def test_no_chat_body_breaks_the_server(scripted: Scripted, body: dict[str, Any]) -> None:
    check(post(scripted, "/v1/chat/completions", body))


@FUZZ
@given(body=COMPLETION)
def test_no_completion_body_breaks_the_server(scripted: Scripted, body: dict[str, Any]) -> None:
    check(post(scripted, "/v1/completions", body))


@FUZZ
@given(raw=st.binary(max_size=200) | values.map(lambda value: json.dumps(value).encode()))
def test_no_bytes_break_the_server(scripted: Scripted, raw: bytes) -> None:
    reply = scripted.http.post("/v1/completions", content=raw, headers={"content-type": "application/json"})
    check(reply)
