"""`penstock serve` where something around it is wrong: a full disk under its log, a reader that left, a lost file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from .program import environment, penstock

COMMAND = (sys.executable, "-m", "penstock", "serve", "--server.port")


def until_ready(process: subprocess.Popen[bytes], url: str) -> None:
    end = time.monotonic() + 200
    while time.monotonic() < end:
        assert process.poll() is None, "it has ended"
        try:
            if httpx.get(f"{url}/ready", timeout=60).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    pytest.fail("it is not ready")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is always full")
def test_a_log_that_cannot_be_written_ends_no_server_and_no_answer(port: int) -> None:
    url = f"http://127.0.0.1:{port}"
    with open("/dev/full", "wb", buffering=0) as full:
        process = subprocess.Popen([*COMMAND, str(port)], env=environment(), stderr=full)
    try:
        until_ready(process, url)
        body = {"prompt": "hello", "max_tokens": 4, "ignore_eos": True}
        for _ in range(2):
            assert httpx.post(f"{url}/v1/completions", json=body, timeout=60).json()["usage"]["completion_tokens"] == 4
        body |= {"max_tokens": 200, "stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as running:
            parts = running.iter_raw()
            first = next(parts)
            process.send_signal(signal.SIGTERM)
            assert (first + b"".join(parts)).rstrip().endswith(b"data: [DONE]")
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


def test_a_reader_of_the_log_that_goes_takes_no_server_with_it(port: int) -> None:
    url = f"http://127.0.0.1:{port}"
    reader, writer = os.pipe()
    process = subprocess.Popen([*COMMAND, str(port)], env=environment(), stderr=writer)
    os.close(writer)
    try:
        os.read(reader, 1)
        os.close(reader)
        until_ready(process, url)
        assert httpx.post(f"{url}/v1/completions", json={"prompt": "a", "max_tokens": 1}, timeout=60).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--server.tls-certificate", "/no/cert.pem", "--server.tls-key", "/no/key.pem"), "server.tls_certificate"),
        (("--server.key-file", "/no/keys.yaml"), "server.key_file"),
        (("--server.host", "192.0.2.1", "--server.api-keys", "hunter2"), "server.host"),
    ],
)
def test_what_is_not_there_is_one_line_with_a_remedy_before_the_model_is_loaded(
    flags: tuple[str, ...], named: str
) -> None:
    done = penstock("serve", "--server.port", "0", *flags, expect=2)
    *phases, last = done.stderr.splitlines()
    assert last.startswith(f"error: {named} = ")
    assert "Remedy:" in last
    assert not any(line.startswith("load weights") for line in phases)
    assert "hunter2" not in done.stderr


@pytest.mark.parametrize("given", ["", " ", ","])
def test_a_key_that_is_empty_is_no_way_to_open_a_server(given: str) -> None:
    flag = penstock("serve", "--dry-run", "--server.api-keys", given, expect=2)
    variable = penstock("serve", "--dry-run", expect=2, PENSTOCK_SERVER__API_KEYS=given)
    for done, name in ((flag, "--server.api-keys"), (variable, "PENSTOCK_SERVER__API_KEYS")):
        assert done.stderr.startswith(f"error: {name} = {given!r}: it holds no key")


def test_a_recording_that_cannot_be_written_is_one_line_and_no_traceback_of_the_worker() -> None:
    done = penstock("serve", "--server.port", "0", "--server.record", "/no/such/run.jsonl", expect=2)
    assert done.stderr.splitlines()[-1].startswith("error: record = '/no/such/run.jsonl': it cannot be written")
    assert "Traceback" not in done.stderr


def test_a_collectors_password_is_not_printed() -> None:
    done = penstock("serve", "--dry-run", "--server.trace-endpoint", "http://me:hunter2@collector:4318/v1/traces")
    assert "trace_endpoint: http://<hidden>@collector:4318/v1/traces" in done.stdout
    assert "hunter2" not in done.stdout + done.stderr
