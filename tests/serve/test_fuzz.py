"""Whatever a body holds, it is answered with success or a refusal in the one error shape; never 5xx, never silence."""

from __future__ import annotations

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .conftest import Scripted
from .strategies import BY_PATH, RAW, encoded

FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def check(reply: httpx.Response) -> None:
    assert reply.status_code < 500, reply.text
    if reply.status_code != 200:
        error = reply.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert reply.status_code in (400, 404)
    elif reply.headers["content-type"].startswith("text/event-stream"):
        last = reply.content[:-2].rpartition(b"\n\n")[2]
        assert last.startswith((b"data: [DONE]", b"event: message_stop", b"event: response."))
    else:
        assert isinstance(reply.json(), dict)


def post(scripted: Scripted, path: str, raw: bytes) -> httpx.Response:
    return scripted.http.post(path, content=raw, headers={"content-type": "application/json"})


@pytest.mark.parametrize("path", BY_PATH)
@FUZZ
@given(data=st.data())
def test_no_body_breaks_the_server(scripted: Scripted, path: str, data: st.DataObject) -> None:
    check(post(scripted, path, encoded(data.draw(BY_PATH[path]))))


@FUZZ
@given(raw=RAW)
def test_no_bytes_break_the_server(scripted: Scripted, raw: bytes) -> None:
    check(post(scripted, "/v1/completions", raw))
