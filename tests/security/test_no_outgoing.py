"""No request makes the server open a connection (SERVING-CHECKLIST section 10): the whole front end under a guard.

One process may be started: the one that checks schemas and grammars within a time limit, which reads its input only.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

SERVER = '''
import asyncio, socket, sys

def refuse(event, arguments):
    """sys.addaudithook: sees every connect, send and look-up of this process, whatever library makes it."""
    checker = event == "subprocess.Popen" and "penstock.engine.guide.checker" in str(arguments)
    watched = ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname",
               "subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "ctypes.dlopen")
    if armed and not checker and event in watched:
        print("OUTGOING", event, arguments[1:] if event.startswith("socket.") else arguments, flush=True)
        raise PermissionError(event)

armed = False
sys.addaudithook(refuse)
sys.path.insert(0, sys.argv[1])
from tests.serve.scripted import ScriptedService, scripted_app
from penstock.deployment import Deployment
from penstock.serve.server import run

async def main():
    global armed
    deployment = Deployment.parse({"server": {"port": 0}})
    service = ScriptedService(deployment)
    service.stopped = asyncio.Event()
    async def drain(seconds):
        return 0
    async def close():
        service.stopped.set()
    service.drain, service.close = drain, close
    def listening(url):
        global armed
        armed = True
        print(url, flush=True)
    await run(scripted_app(service), service, deployment, on_listening=listening)

asyncio.run(main())
'''

ELSEWHERE = "http://127.0.0.1:9/secret"
BODIES = [
    {"messages": [{"role": "user", "content": ELSEWHERE}]},
    {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": ELSEWHERE}}]}]},
    {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": ELSEWHERE}}]}]},
    {"messages": [{"role": "user", "content": "x"}], "metadata": {"callback": ELSEWHERE}, "webhook": ELSEWHERE},
    {"messages": [{"role": "user", "content": "x"}], "chat_template": "{% include '" + ELSEWHERE + "' %}"},
    {"messages": [{"role": "user", "content": "x"}], "response_format": {
        "type": "json_schema", "json_schema": {"name": "s", "schema": {"$ref": ELSEWHERE}}}},
    {"messages": [{"role": "user", "content": "x"}], "tools": [
        {"type": "function", "function": {"name": "f", "parameters": {"$ref": ELSEWHERE, "$schema": ELSEWHERE}}}]},
    {"model": ELSEWHERE, "messages": [{"role": "user", "content": "x"}]},
    {"prompt": ELSEWHERE, "user": ELSEWHERE, "stream": True},
]  # fmt: skip


@pytest.fixture(scope="module")
def guarded() -> object:
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(ROOT)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    assert url.startswith("http"), process.stderr.read() if process.stderr else ""
    yield process, url
    process.kill()
    process.wait()


def test_whatever_a_body_names_nobody_is_called(guarded: tuple[subprocess.Popen[str], str]) -> None:
    import httpx

    process, url = guarded
    for body in BODIES:
        for path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings"):
            reply = httpx.post(url + path, json=body, headers={"referer": ELSEWHERE, "origin": ELSEWHERE}, timeout=60)
            assert reply.status_code < 500, (path, json.dumps(body), reply.text)
    for path in ("/v1/models", "/metrics", "/ready", "/health", f"/v1/models/{ELSEWHERE}"):
        assert httpx.get(url + path, timeout=60).status_code < 500
    process.terminate()
    output, _ = process.communicate(timeout=30)
    assert "OUTGOING" not in output, output


def test_the_guard_sees_a_connection() -> None:
    armed = SERVER.split("sys.path.insert")[0].replace("armed = False", "armed = True")
    done = subprocess.run(
        [sys.executable, "-c", f"{armed}\nsocket.create_connection(('127.0.0.1', 9))"],
        capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert "OUTGOING" in done.stdout
    assert "PermissionError" in done.stderr
