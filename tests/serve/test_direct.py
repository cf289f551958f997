"""A request that goes past the router is answered as the router answers it."""

from __future__ import annotations

import json
import re
from hashlib import sha256
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from penstock.deployment import Deployment
from penstock.serve.direct import Direct

from .scripted import ScriptedService, scripted_app

KEY = "a-key-of-this-test"
MADE = re.compile(rb'"(id|item_id|request_id|created|created_at|completed_at)": ?("[^"]*"|\d+)')
"""Parts of a body that differ from one answer to the next."""
ASKED: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5},
    "/v1/completions": {"prompt": "hi", "max_tokens": 5},
    "/v1/responses": {"input": "hi", "max_output_tokens": 5},
    "/v1/messages": {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 5},
}
CHANGED: dict[str, dict[str, Any]] = {
    "answer": {},
    "stream": {"stream": True},
    "not a number": {"temperature": "hot"},
    "another model": {"model": "nobody"},
}
RAW = {"cut": b'{"messages": [', "nothing": b"", "no object": b"[1]", "not UTF-8": b'{"prompt": "\xff"}'}


def app_of(*, direct: bool) -> FastAPI:
    """Both kinds of app have the same routes."""
    deployment = Deployment.parse(
        {"server": {"keys": [{"name": "one", "hash": "sha256:" + sha256(KEY.encode()).hexdigest()}]}}
    )
    app = scripted_app(ScriptedService(deployment))
    if not direct:
        before = len(app.user_middleware)
        app.user_middleware = [one for one in app.user_middleware if one.cls is not Direct]
        assert len(app.user_middleware) == before - 1
    return app


@pytest.mark.parametrize("path", ASKED)
@pytest.mark.parametrize("body", [*CHANGED, *RAW])
def test_the_router_says_the_same(path: str, body: str) -> None:
    asked = [({"authorization": f"Bearer {KEY}"}, path), ({}, path), ({"authorization": "Bearer wrong"}, path)]
    content = RAW[body] if body in RAW else json.dumps(ASKED[path] | CHANGED[body]).encode()
    answers: list[list[Any]] = []
    for direct in (True, False):
        with TestClient(app_of(direct=direct), base_url="http://127.0.0.1") as client:
            found = [client.post(where, content=content, headers=headers) for headers, where in asked]
        answers.append([(one.status_code, _lasting(dict(one.headers)), MADE.sub(b"", one.content)) for one in found])
    assert answers[0] == answers[1]
    statuses = [status for status, _, _ in answers[0]]
    assert statuses[1:] == [401, 401]
    assert (statuses[0] == 200) == (body in ("answer", "stream"))


def _lasting(headers: dict[str, str]) -> dict[str, str]:
    """Without what is measured, made anew, or long as these are."""
    return {
        name: value for name, value in headers.items()
        if name not in ("x-request-id", "request-id", "date", "content-length", "server-timing") and "-ms" not in name
    }  # fmt: skip
