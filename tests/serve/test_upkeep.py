"""What an operator changes while a server runs: keys in their file, the certificate, and its end."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import yaml

from penstock.deployment import Deployment
from penstock.errors import InvalidDeployment
from penstock.serve import upkeep as upkeep_module
from penstock.serve.server import listen
from penstock.serve.upkeep import Upkeep

from .scripted import ScriptedService, scripted_app
from .test_keys import entry

Start = Callable[..., tuple["subprocess.Popen[str]", str, str]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start upkeep_server.py with a `server` section; gives the process and both URLs."""
    started: list[subprocess.Popen[str]] = []

    def begin(**server: Any) -> tuple[subprocess.Popen[str], str, str]:
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("upkeep_server.py")), json.dumps(server)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        started.append(process)
        assert process.stdout is not None
        url, _, admin = process.stdout.readline().strip().partition(" ")
        assert url.startswith("http"), process.stderr.read() if process.stderr else ""
        return process, url, admin

    yield begin
    for process in started:
        process.kill()
        process.wait()


def status(url: str, name: str, **more: Any) -> int:
    headers = {"authorization": f"Bearer key-of-{name}"}
    return httpx.get(f"{url}/v1/models", headers=headers, timeout=60, **more).status_code


def until(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.05)
    return False


def test_a_key_is_revoked_by_its_file_alone_and_by_sighup_and_by_the_administration(
    start: Start, tmp_path: Path
) -> None:
    file = tmp_path / "keys.yaml"

    def write(*names: str) -> None:
        keys = [entry(name) for name in names] + [entry("boss", scopes=["admin"])]
        file.write_text(yaml.safe_dump({"keys": keys}))

    write("a", "b", "c")
    process, url, admin = start(key_file=str(file), admin_port=0)
    assert {status(url, name) for name in "abc"} == {200}
    write("b", "c")
    assert until(lambda: status(url, "a") == 401), "within a second or so, nobody asked"
    write("c")
    process.send_signal(signal.SIGHUP)
    assert until(lambda: status(url, "b") == 401)
    write()
    reply = httpx.post(f"{admin}/admin/reload_keys", headers={"authorization": "Bearer key-of-boss"}, timeout=60)
    assert reply.json() == {"keys": 1}
    assert status(url, "c") == 401
    assert process.poll() is None


def test_the_administration_ends_the_server_as_a_signal_does(start: Start) -> None:
    process, url, admin = start(admin_port=0)
    assert httpx.get(f"{url}/v1/models", timeout=60).status_code == 200
    assert httpx.post(f"{admin}/admin/drain", timeout=60).status_code == 202
    assert process.wait(60) == 0
    assert process.stdout is not None
    assert process.stdout.read().split() == ["draining", "ended"]
    assert process.stderr is not None
    assert "Traceback" not in process.stderr.read()


def certificate(folder: Path, name: str) -> None:
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days",
            "2", "-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
            "-keyout", str(folder / "key.pem"), "-out", str(folder / "cert.pem"),
        ],
        check=True, capture_output=True,
    )  # fmt: skip


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_tls_serves_and_takes_a_new_certificate_without_a_restart(start: Start, tmp_path: Path) -> None:
    certificate(tmp_path, "first")
    files = {"tls_certificate": str(tmp_path / "cert.pem"), "tls_key": str(tmp_path / "key.pem")}
    process, url, _ = start(**files)
    assert url.startswith("https://")
    assert httpx.get(
        f"{url}/health", verify=ssl.create_default_context(cafile=files["tls_certificate"]), timeout=60
    ).json()
    port = int(url.rpartition(":")[2])
    old = ssl.get_server_certificate(("127.0.0.1", port))
    (tmp_path / "other").mkdir()
    certificate(tmp_path / "other", "other")
    for unusable in ("broken", (tmp_path / "other" / "cert.pem").read_text()):
        (tmp_path / "cert.pem").write_text(unusable)
        process.send_signal(signal.SIGHUP)
        time.sleep(0.2)
        assert ssl.get_server_certificate(("127.0.0.1", port)) == old, "what cannot be used changes nothing"
    certificate(tmp_path, "second")
    assert until(lambda: ssl.get_server_certificate(("127.0.0.1", port)) != old)
    assert httpx.get(
        f"{url}/health", verify=ssl.create_default_context(cafile=files["tls_certificate"]), timeout=60
    ).json()


def test_an_administration_port_in_use_is_named_before_the_server_runs() -> None:
    with listen("127.0.0.1", 0) as taken:
        deployment = Deployment.parse({"server": {"admin_port": taken.getsockname()[1]}})
        app = scripted_app(ScriptedService(deployment))
        with pytest.raises(InvalidDeployment) as refused:
            Upkeep(app, deployment)
    assert refused.value.field == "server.admin_port"


def test_a_look_that_fails_is_told_and_the_next_one_comes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    deployment = Deployment()
    upkeep = Upkeep(scripted_app(ScriptedService(deployment)), deployment)
    looks = []

    def look(context: object) -> None:
        looks.append(context)
        raise RuntimeError("no such thing")

    monkeypatch.setattr(upkeep, "look", look)
    monkeypatch.setattr(upkeep_module, "LOOK_EVERY_S", 0.01)

    async def main() -> None:
        running = asyncio.create_task(upkeep.run(SimpleNamespace(config=SimpleNamespace(loaded=False))))  # type: ignore[arg-type]
        while len(looks) < 3 and not running.done():
            await asyncio.sleep(0.01)
        running.cancel()
        await asyncio.wait({running})
        assert running.cancelled()

    asyncio.run(main())
    assert len(looks) >= 3
    assert "could not be looked at" in caplog.text
