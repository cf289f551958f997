"""A server without keys takes nothing that may change something from web pages of other origins: on either listener."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from .conftest import Loop
from .test_admin import KEYS, Both
from .test_keys import asking

EVIL = {"origin": "https://evil.example"}


@pytest.fixture(scope="module")
def open_server(loop: Loop) -> Iterator[Both]:
    servers = Both(loop, {"admin_port": 0, "cors_origins": ["https://app.example"]})
    yield servers
    servers.close()


@pytest.mark.parametrize(
    "headers",
    [EVIL, {"sec-fetch-site": "cross-site"}, {"origin": "null"}, {"origin": "http://localhost:1"}],
    ids=["origin", "cross-site", "null", "another port"],
)
def test_pages_of_others_change_nothing(open_server: Both, headers: dict[str, str]) -> None:
    calls, resets = len(open_server.service.calls), open_server.service.resets
    for url, path in (
        (open_server.admin_url, "/admin/drain"), (open_server.admin_url, "/admin/reset_prefix_cache"),
        (open_server.admin_url, "/v1/load_lora_adapter"), (open_server.url, "/v1/completions"),
        (open_server.url, "/tokenize"),
    ):  # fmt: skip
        for kind in ({}, {"content-type": "text/plain"}, {"content-type": "application/json"}):
            reply = httpx.post(url + path, content=b'{"prompt": "x"}', headers={**headers, **kind}, timeout=60)
            assert (reply.status_code, reply.json()["error"]["code"]) == (403, "foreign_origin"), (path, kind)
    assert not open_server.drain.is_set()
    assert (len(open_server.service.calls), open_server.service.resets) == (calls, resets)


def test_own_pages_named_origins_and_programs_may(open_server: Both) -> None:
    for headers in (
        {}, {"origin": open_server.url, "sec-fetch-site": "same-origin"}, {"sec-fetch-site": "none"},
        {"origin": "https://public.example", "sec-fetch-site": "same-origin"},
        {"origin": "https://app.example", "sec-fetch-site": "cross-site"},
    ):  # fmt: skip
        reply = httpx.post(f"{open_server.url}/v1/completions", json={"prompt": "x"}, headers=headers, timeout=60)
        assert reply.status_code == 200, headers
    assert httpx.get(f"{open_server.url}/v1/models", headers=EVIL, timeout=60).status_code == 200
    assert httpx.post(f"{open_server.admin_url}/admin/reset_prefix_cache", timeout=60).status_code == 202
    named = {"origin": "https://app.example"}
    assert httpx.post(f"{open_server.admin_url}/admin/reset_prefix_cache", headers=named, timeout=60).status_code == 403


def test_with_a_key_the_key_decides(loop: Loop) -> None:
    servers = Both(loop, {"keys": KEYS, "admin_port": 0})
    try:
        talk = asking(servers.url, "talk")
        assert talk.post("/v1/completions", json={"prompt": "x"}, headers=EVIL).status_code == 200
    finally:
        servers.close()
