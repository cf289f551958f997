"""SERVING-CHECKLIST section 10: keys are stored hashed, scoped, revocable while the server runs, and never told."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import yaml
from fastapi import FastAPI

from penstock.deployment import Deployment
from penstock.errors import InvalidDeployment
from penstock.runtime.adapters import Adapter
from penstock.serve.auth import KeyRing, keys_of
from penstock.serve.errors import Refusal

from .conftest import Loop
from .scripted import ScriptedService, scripted_app


def entry(name: str, **more: Any) -> dict[str, Any]:
    """An entry for the key 'key-of-NAME'."""
    return {"name": name, "hash": f"sha256:{hashlib.sha256(f'key-of-{name}'.encode()).hexdigest()}", **more}


def asking(url: str, name: str = "") -> httpx.Client:
    headers = {"authorization": f"Bearer key-of-{name}"} if name else {}
    return httpx.Client(base_url=url, headers=headers, timeout=60)


@pytest.fixture
def serve(loop: Loop) -> Iterator[Any]:
    """Serve a deployment's `server` section; gives (service, app, url)."""
    running: list[Iterator[str]] = []

    def begin(server: dict[str, Any], policy: dict[str, Any] | None = None) -> tuple[ScriptedService, FastAPI, str]:
        service = ScriptedService(Deployment.parse({"server": server, "policy": policy or {}}))
        app = scripted_app(service)
        running.append(loop.serve(app))
        return service, app, next(running[-1])

    yield begin
    for one in running:
        one.close()  # type: ignore[attr-defined]


def test_a_key_opens_what_its_scopes_say_and_nothing_else(serve: Any) -> None:
    keys = [entry("talk"), entry("watch", scopes=["metrics"]), entry("all", scopes=["inference", "metrics", "admin"])]
    _, _, url = serve({"keys": keys})
    opened = {
        name: {
            path: client.request(method, path, json={"prompt": "hi"} if method == "POST" else None).status_code
            for method, path in (
                ("POST", "/v1/completions"), ("GET", "/v1/models"), ("GET", "/metrics"), ("GET", "/ready"),
                ("GET", "/health"),
            )
        }
        for name in ("talk", "watch", "all", "stranger", "")
        for client in [asking(url, name)]
    }  # fmt: skip
    paths = ("/v1/completions", "/v1/models", "/metrics", "/ready", "/health")
    assert opened["talk"] == dict(zip(paths, (200, 200, 403, 200, 200), strict=True))
    assert opened["watch"] == dict(zip(paths, (403, 403, 200, 200, 200), strict=True))
    assert set(opened["all"].values()) == {200}
    assert opened["stranger"] == opened[""] == dict(zip(paths, (401, 401, 401, 401, 200), strict=True))


def test_the_wrong_scope_is_a_permission_error_that_names_both_scopes(serve: Any) -> None:
    _, _, url = serve({"keys": [entry("watch", scopes=["metrics"])]})
    error = asking(url, "watch").get("/v1/models").json()["error"]
    assert error["type"] == "permission_error"
    assert error["code"] == "insufficient_scope"
    assert "metrics" in error["message"]
    assert "inference" in error["message"]


def test_the_tenant_weight_and_group_of_a_request_are_the_keys_and_not_what_the_client_says(serve: Any) -> None:
    keys = [entry("a", tenant="house", weight=3, sharing_group="family"), entry("b")]
    service, _, url = serve({"keys": keys}, {"order": "fair_share"})
    for name in ("a", "b"):
        asking(url, name).post("/v1/completions", json={"prompt": "hi", "tenant": "x", "user": "y", "weight": 9})
    first, second = service.calls
    assert (first.tenant, first.weight, first.prefix_group) == ("house", 3.0, "group:family")
    assert (second.tenant, second.weight, second.prefix_group) == ("b", 1.0, "")


def test_a_key_uses_and_sees_the_models_it_names(serve: Any) -> None:
    keys = [
        entry("all"), entry("base", models=["scripted"]), entry("sql", models=["sql", "later"], tenant="house"),
        entry("both", models=["scripted", "sql"], tenant="house"), entry("none", models=["later"]),
    ]  # fmt: skip
    service, _, url = serve({"keys": keys})
    service.adapters._loaded["a-1"] = Adapter("sql", "a-1", "/nowhere")

    def seen(name: str) -> list[str]:
        return [one["id"] for one in asking(url, name).get("/v1/models").json()["data"]]

    assert {name: seen(name) for name in ("all", "base", "sql", "both", "none")} == {
        "all": ["scripted", "sql"], "base": ["scripted"], "sql": ["sql"], "both": ["scripted", "sql"], "none": [],
    }  # fmt: skip
    turn = {"messages": [{"role": "user", "content": "hi"}]}
    posts: dict[str, dict[str, Any]] = {
        "/v1/completions": {"prompt": "hi"}, "/v1/chat/completions": turn, "/v1/responses": {"input": "hi"},
        "/v1/messages": turn | {"max_tokens": 9}, "/v1/messages/count_tokens": turn, "/tokenize": {"prompt": "hi"},
        "/detokenize": {"tokens": [1]}, "/v1/embeddings": {"input": "hi"},
    }  # fmt: skip
    for path, body in posts.items():
        for name, model in (("base", "sql"), ("sql", "scripted"), ("sql", None), ("none", "later"), ("none", None)):
            reply = asking(url, name).post(path, json=body | ({} if model is None else {"model": model}))
            error = reply.json()["error"]
            assert (reply.status_code, error["code"], error["param"]) == (404, "model_not_found", "model")
            assert error["type"] == "invalid_request_error"
            hidden = {"base": "sql", "sql": "scripted", "none": "scripted"}[name]
            assert hidden not in error["message"].replace(f"'{model}'", "")
    service.calls.clear()
    for name, model in (("base", None), ("sql", "sql"), ("both", "scripted"), ("both", "sql"), ("all", "sql")):
        body = posts["/v1/completions"] | ({} if model is None else {"model": model})
        assert asking(url, name).post("/v1/completions", json=body).status_code == 200
    assert [call.adapter for call in service.calls] == ["", "a-1", "", "a-1", "a-1"]
    assert asking(url, "base").get("/v1/models/scripted").json()["parent"] is None
    assert asking(url, "sql").get("/v1/models/sql").json()["parent"] == "scripted"
    assert asking(url, "base").get("/v1/models/sql").status_code == 404
    with pytest.raises(openai.NotFoundError, match="one of: scripted"):
        openai.OpenAI(base_url=f"{url}/v1", api_key="key-of-base", max_retries=0).models.retrieve("sql")


def test_an_adapter_named_in_another_format_is_the_one_that_answers(serve: Any) -> None:
    service, _, url = serve({"keys": [entry("all")]})
    service.adapters._loaded["a-1"] = Adapter("sql", "a-1", "/nowhere")
    client = asking(url, "all")
    turn = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 9}
    for path, body in (("/v1/responses", {"input": "hi"}), ("/v1/messages", turn), ("/v1/chat/completions", turn)):
        assert client.post(path, json=body | {"model": "sql"}).json()["model"] == "sql"
    assert [call.adapter for call in service.calls] == ["a-1"] * 3


def test_a_key_that_leaves_the_file_is_refused_and_a_new_one_comes_in_without_a_restart(
    serve: Any, tmp_path: Path
) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text(yaml.safe_dump({"keys": [entry("old")]}))
    _, app, url = serve({"key_file": str(file)})
    assert [asking(url, name).get("/v1/models").status_code for name in ("old", "new")] == [200, 401]
    file.write_text(yaml.safe_dump({"keys": [entry("new")]}))
    os.utime(file, ns=(1, 1))  # a change within one tick of the file system's clock
    app.state.keys.refresh()
    assert [asking(url, name).get("/v1/models").status_code for name in ("old", "new")] == [401, 200]


def test_a_key_file_that_breaks_is_told_and_changes_nothing(
    serve: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text(yaml.safe_dump({"keys": [entry("old")]}))
    _, app, url = serve({"key_file": str(file)})
    with caplog.at_level(logging.ERROR):
        for broken in ("keys: [", "keys: [{name: x, hash: hunter2hunter2}]", yaml.safe_dump([entry("x")])):
            file.write_text(broken)
            app.state.keys.refresh()
            assert asking(url, "old").get("/v1/models").status_code == 200
        file.unlink()
        app.state.keys.refresh()
    assert asking(url, "old").get("/v1/models").status_code == 200
    assert caplog.text.count("is not used") == 4
    assert "hunter2" not in caplog.text


def test_a_plain_key_is_called_by_its_place_and_tells_nothing_of_its_hash() -> None:
    server = {"api_keys": ["one", "two"], "keys": [entry("api-key-3")]}
    ring = KeyRing(Deployment.parse({"server": server}).server)
    assert ring.names() == ["api-key-1", "api-key-2", "api-key-3"]
    server["api_keys"] = ["one", "two", "three"]
    with pytest.raises(InvalidDeployment, match="api-key-3"):
        KeyRing(Deployment.parse({"server": server}).server)


@pytest.mark.parametrize("text", ["keys:\n- name: a\n  tenant: 2026-13-45\n", "[" * 1000])
def test_what_the_reader_of_yaml_trips_over_is_a_broken_key_file_too(serve: Any, tmp_path: Path, text: str) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text(yaml.safe_dump({"keys": [entry("a")]}))
    _, app, url = serve({"key_file": str(file)})
    file.write_text(text)
    with pytest.raises(InvalidDeployment):
        app.state.keys.reload()
    app.state.keys.refresh()
    assert asking(url, "a").get("/v1/models").status_code == 200
    file.write_text(yaml.safe_dump({"keys": [entry("b")]}))
    app.state.keys.refresh()
    assert asking(url, "b").get("/v1/models").status_code == 200


def test_an_empty_key_file_locks_everybody_out_and_not_in(serve: Any, tmp_path: Path) -> None:
    file = tmp_path / "keys.yaml"
    file.write_text("")
    _, _, url = serve({"key_file": str(file)})
    assert asking(url).get("/v1/models").status_code == 401


def test_keys_are_in_no_log_no_error_and_no_memory_of_the_ring(serve: Any, caplog: pytest.LogCaptureFixture) -> None:
    _, app, url = serve({"api_keys": ["hunter2-plain"], "keys": [entry("talk")]})
    with caplog.at_level(logging.DEBUG):
        told = [
            httpx.post(
                f"{url}/v1/completions", json={"prompt": "hi"}, headers={"authorization": f"Bearer {key}"}, timeout=60
            ).text
            for key in ("hunter2-plain", "hunter2-wrong", "key-of-talk", "key-of-nobody")
        ]
        told.append(httpx.get(f"{url}/metrics", headers={"authorization": "Bearer hunter2-plain"}, timeout=60).text)
    everything = caplog.text + "".join(told) + repr(vars(app.state.keys)["_keys"])
    assert "hunter2" not in everything
    assert "key-of" not in everything


@pytest.mark.parametrize(
    ("server", "field"),
    [
        ({"keys": [{"name": "a", "hash": "hunter2"}]}, "server.keys.0.hash"),
        ({"keys": [{"name": "a b", "hash": "sha256:" + "0" * 64}]}, "server.keys.0.name"),
        ({"keys": [entry("a", scopes=[])]}, "server.keys.0.scopes"),
        ({"keys": [entry("a", scopes=["root"])]}, "server.keys.0.scopes.0"),
        ({"keys": [entry("a"), entry("a")]}, "server.keys"),
        ({"keys": [entry("a"), entry("a") | {"name": "b"}]}, "server.keys"),
        ({"keys": [entry("a", tenant="t"), entry("b", tenant="t", kv_share=0.5)]}, "server.keys.kv_share"),
        ({"keys": [entry("a", weight=2)]}, "server.keys.weight"),
        ({"keys": [entry("a")], "admin_port": 0}, "server.admin_port"),
        ({"api_keys": ["a"], "admin_port": 0}, "server.admin_port"),
        ({"tls_certificate": "cert.pem"}, "server.tls_key"),
        ({"tls_key": "key.pem"}, "server.tls_certificate"),
    ],
)
def test_entries_that_contradict_each_other_or_the_deployment_are_refused(server: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidDeployment) as refused:
        Deployment.parse({"server": server})
    assert refused.value.field == field
    assert "hunter2" not in str(refused.value)


def test_a_public_address_with_hashed_keys_or_a_key_file_is_no_public_address_without_a_key() -> None:
    for server in ({"keys": [entry("a")]}, {"key_file": "keys.yaml"}):
        assert Deployment.parse({"server": {"host": "0.0.0.0", **server}}).server.locked


def test_a_key_file_that_is_not_there_keeps_the_server_from_starting(tmp_path: Path) -> None:
    with pytest.raises(InvalidDeployment, match="key_file"):
        keys_of(Deployment.parse({"server": {"key_file": str(tmp_path / "none.yaml")}}))


def test_anthropics_header_is_a_key_too(serve: Any) -> None:
    _, _, url = serve({"keys": [entry("talk")]})
    for key, status in (("key-of-talk", 200), ("key-of-nobody", 401)):
        assert httpx.get(f"{url}/v1/models", headers={"x-api-key": key}, timeout=60).status_code == status


def test_every_key_is_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many keys there are and whichever is right, all are compared, each by the library made for it."""
    import hmac

    from starlette.requests import Request

    ring = KeyRing(Deployment.parse({"server": {"keys": [entry(name) for name in "abc"]}}).server)
    compared: list[int] = []
    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append(len(a)) or real(a, b))
    for name in ("a", "c", "nobody"):
        compared.clear()
        headers = [(b"authorization", f"Bearer key-of-{name}".encode())]
        with pytest.raises(Refusal) if name == "nobody" else nullcontext():
            ring._known(Request({"type": "http", "headers": headers}))
        assert compared == [32, 32, 32]
