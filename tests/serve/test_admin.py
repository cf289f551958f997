"""The second listener, and the walk over the routes of both: each needs a key with its scope, /health apart."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from penstock.deployment import Deployment
from penstock.serve.admin import create_admin_app

from .conftest import Loop
from .scripted import ScriptedService, scripted_app
from .test_keys import asking, entry
from .test_lifecycle import api_routes

KEYS = [entry("talk"), entry("watch", scopes=["metrics"]), entry("boss", scopes=["admin"])]
PAGE = {
    "/", "/dashboard/style.css", "/dashboard/app.js", "/dashboard/api.js", "/dashboard/chat.js", "/dashboard/chart.js",
    "/dashboard/format.js", "/dashboard/live.js", "/dashboard/icon.svg",
}  # fmt: skip
"""Files that are the same on every server and tell nothing of this one; what the page shows it asks for with a key."""
OPEN = {"/health", *PAGE}
SCOPES = {"talk": "inference", "watch": "metrics", "boss": "admin"}


class Both:
    """A server with both listeners."""

    def __init__(self, loop: Loop, server: dict[str, Any]) -> None:
        self.service = ScriptedService(Deployment.parse({"server": server}))
        self.drain = asyncio.Event()
        self.app = scripted_app(self.service)
        self.admin = create_admin_app(self.app, self.drain)
        self.running = [loop.serve(self.app), loop.serve(self.admin)]
        self.url, self.admin_url = (next(one) for one in self.running)

    def close(self) -> None:
        for one in self.running:
            one.close()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def both(loop: Loop) -> Iterator[Both]:
    servers = Both(loop, {"keys": KEYS, "admin_port": 0})
    yield servers
    servers.close()


def test_no_route_of_either_listener_is_open_but_health_and_none_opens_to_a_wrong_scope(both: Both) -> None:
    """Walks what the apps themselves list, so a route that somebody adds is looked at without being named here."""
    seen = 0
    for app, url, scopes in ((both.app, both.url, {"inference", "metrics"}), (both.admin, both.admin_url, {"admin"})):
        for route in api_routes(list(app.routes)):
            for method in sorted(route.methods or ()):
                path = route.path.replace("{name:path}", "scripted")
                seen += 1
                for key in ("", "stranger"):
                    status = asking(url, key).request(method, path).status_code
                    if path in OPEN:
                        assert status in (200, 405), (method, path, status)
                    else:
                        assert status == 401, f"{method} {path} answers {status} without a key"
                if path in OPEN or path == "/ready":
                    continue
                refused = {name for name in SCOPES if asking(url, name).request(method, path).status_code == 403}
                opened = {SCOPES[name] for name in SCOPES.keys() - refused}
                assert len(opened) == 1, f"{method} {path} opens to {opened}"
                assert opened <= scopes, f"{method} {path} opens to {opened}"
    both.drain.clear()
    assert seen >= 12


def test_status_tells_worker_queue_and_keys_but_no_hashes(both: Both) -> None:
    both.service.admission.admit("one", 7, now=0.0)
    reply = asking(both.admin_url, "boss").get("/admin/status").json()
    both.service.admission.gone("one", now=0.0)
    assert reply["state"] == "ready"
    assert reply["worker"]["restarts"] == 0
    assert reply["queue"]["requests"] == 1
    assert reply["queue"]["prompt_tokens"] == 7
    assert reply["queue"]["tenants"] == {}, "the scripted queue knows one line only"
    assert reply["keys"] == ["boss", "talk", "watch"]
    assert "sha256" not in str(reply)


def test_drain_asks_for_the_end_as_a_signal_does(both: Both) -> None:
    assert asking(both.admin_url, "boss").post("/admin/drain").status_code == 202
    assert both.drain.is_set()
    both.drain.clear()


def test_the_cache_is_reset_in_the_worker(both: Both) -> None:
    asked = both.service.resets
    assert asking(both.admin_url, "boss").post("/admin/reset_prefix_cache").status_code == 202
    assert both.service.resets == asked + 1


def test_keys_are_read_again_when_asked(both: Both) -> None:
    assert asking(both.admin_url, "boss").post("/admin/reload_keys").json() == {"keys": 3}


def test_without_keys_the_administration_answers_loopback_names_only(loop: Loop) -> None:
    servers = Both(loop, {"admin_port": 0})
    try:
        for url, path in ((servers.url, "/v1/models"), (servers.admin_url, "/admin/status")):
            assert httpx.get(url + path, timeout=60).status_code == 200
            for host, status in (
                ("evil.example.com", 403), ("localhost.evil.example.com", 403), ("a b", 400), ("", 400), ("a@b", 400),
            ):  # fmt: skip
                assert httpx.get(url + path, headers={"host": host}, timeout=60).status_code == status, (url, host)
    finally:
        servers.close()


def test_also_with_keys_the_administration_answers_no_foreign_host(both: Both) -> None:
    client = asking(both.admin_url, "boss")
    assert client.get("/admin/status", headers={"host": "evil.example.com"}).status_code == 403
