"""`penstock serve --server.log-format json`: every line of stderr is JSON, the worker's too, and idle is silent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

import httpx


def test_every_line_is_json_from_start_to_end_and_an_idle_server_writes_none() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PENSTOCK_SERVER")}
    process = subprocess.Popen(
        [sys.executable, "-m", "penstock", "serve", "--server.port", "0", "--server.log-format", "json"],
        stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    raw: list[str] = []
    started = threading.Event()

    def read() -> None:
        assert process.stderr is not None
        for line in process.stderr:
            raw.append(line)
            if '"curl ' in line:  # the last line of a start
                started.set()
        started.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        assert started.wait(200)
        said = [json.loads(line)["message"] for line in raw]
        url = next(message for message in said if message.startswith("ready http://")).split()[1]
        assert any(message.startswith("load weights") for message in said)
        for _ in range(3):
            assert (
                httpx.get(f"{url}/health", timeout=60).status_code
                == httpx.get(f"{url}/metrics", timeout=60).status_code
                == 200
            )
            time.sleep(0.2)
        assert len(raw) == len(said)
        body = {"prompt": "secret words", "max_tokens": 3, "ignore_eos": True}
        answer = httpx.post(f"{url}/v1/completions", json=body, headers={"x-request-id": "one"}, timeout=60)
        assert answer.status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        reader.join(10)
    lines = [json.loads(line) for line in raw]
    (line,) = (line for line in lines if line.get("request_id") == "one")
    assert (line["output_tokens"], line["outcome"], line["level"]) == (3, "length", "info")
    assert lines[-1]["message"] == "stopped"
    assert "secret" not in "".join(raw)
    assert not any("\x1b" in line["message"] for line in lines)
