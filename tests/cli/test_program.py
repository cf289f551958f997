"""The program as a whole: verbs, exit codes, a server from start to SIGTERM, a chat through a pipe."""

from __future__ import annotations

import json
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
import pytest

from penstock.catalog import resolve_model

from .conftest import Run
from .program import children, environment, penstock


@dataclass
class Serving:
    """`penstock serve` as a child; its stderr is read along."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)
    ready: threading.Event = field(default_factory=threading.Event)

    def read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.lines.append(line)
            if line.startswith("curl "):
                self.ready.set()
        self.ready.set()

    @property
    def log(self) -> str:
        return "".join(self.lines)

    @property
    def url(self) -> str:
        found = re.search(r"ready (http://\S+)", self.log)
        assert found, self.log
        return found[1]

    def end(self) -> int:
        code = self.process.wait(timeout=60)
        self.reader.join(timeout=10)
        return code

    reader: threading.Thread = field(default_factory=threading.Thread)


def start(*arguments: str) -> Serving:
    command = [sys.executable, "-m", "penstock", "serve", "--server.port", "0", *arguments]
    serving = Serving(subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True))
    serving.reader = threading.Thread(target=serving.read, daemon=True)
    serving.reader.start()
    assert serving.ready.wait(200)
    return serving


@pytest.fixture(scope="module")
def server() -> Iterator[Serving]:
    serving = start()
    yield serving
    serving.process.kill()
    serving.process.wait()


@pytest.fixture(scope="module")
def public() -> Iterator[Serving]:
    """Open to every address. The last of its tests ends it."""
    serving = start("--server.host", "0.0.0.0", "--server.allow-public-without-key", "true")
    yield serving
    serving.process.kill()
    serving.process.wait()


def test_the_help_lists_all_verbs_and_loads_none_of_them() -> None:
    code = (
        "import sys\nfrom penstock.cli import VERBS, main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert not end.code\n"
        "heavy = {'torch', 'numpy', 'fastapi', 'uvicorn', 'pydantic', 'httpx', 'tokenizers'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    for verb in ("serve", "chat", "bench", "version"):
        assert verb in done.stdout


def test_an_unknown_verb_is_a_usage_error() -> None:
    assert "serv" in penstock("serv", expect=2).stderr


def test_version_prints_what_it_runs_on() -> None:
    facts = json.loads(penstock("version", "--json").stdout)
    assert facts["python"].startswith("3.")
    assert facts["torch"][0].isdigit()


def test_a_model_that_is_not_there_is_an_error_with_the_models_that_are() -> None:
    done = penstock("serve", "/no/such/model", "--server.port", "0", expect=2)
    assert "model.path" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_in_use_is_an_error_with_a_remedy() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = penstock("serve", "--server.port", str(taken.getsockname()[1]), expect=2)
    assert "server.port" in done.stderr
    assert "Remedy" in done.stderr
    assert "Traceback" not in done.stderr


def edited_model(directory: Path, *, without: str = "", **settings: object) -> Path:
    """The model in the box with a file left out, or keys of tokenizer_config.json changed; None takes one out."""
    for file in resolve_model("millrace").iterdir():
        if file.name == "tokenizer_config.json":
            kept = {**json.loads(file.read_text()), **settings}
            (directory / file.name).write_text(json.dumps({k: v for k, v in kept.items() if v is not None}))
        elif file.name != without:
            (directory / file.name).symlink_to(file)
    return directory


def test_a_checkpoint_without_tokenizer_is_refused_before_its_weights_are_loaded(tmp_path: Path) -> None:
    model = edited_model(tmp_path, without="tokenizer.json")
    done = penstock("serve", str(model), "--server.port", "0", expect=2)
    assert "tokenizer.json" in done.stderr
    assert "load weights" not in done.stderr
    assert "Traceback" not in done.stderr


def test_without_a_chat_template_the_printed_curl_is_for_completions_and_is_answered(tmp_path: Path) -> None:
    serving = start(str(edited_model(tmp_path, chat_template=None)))
    words = shlex.split(serving.lines[-1])
    answer = httpx.post(words[1], json=json.loads(words[-1]), timeout=30)
    serving.process.send_signal(signal.SIGTERM)
    assert serving.end() == 0
    assert words[1] == f"{serving.url}/v1/completions"
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["text"]


def test_the_start_log_accounts_for_each_phase_and_ends_with_the_url_and_a_curl(server: Serving) -> None:
    phases = dict(re.findall(r"^(\w[\w ]*?) +(\d+\.\d{3}) s  ", server.log, re.MULTILINE))
    assert {
        "start",
        "check",
        "resolve",
        "import torch",
        "load weights",
        "size KV",
        "warm up",
        "listen",
    } <= phases.keys()
    started = re.search(r"started in ([\d.]+) s", server.log)
    assert started is not None
    seconds = [float(one) for one in re.findall(r"^\w[\w ]*? +(\d+\.\d{3}) s  ", server.log, re.MULTILINE)]
    assert abs(sum(seconds) - float(started[1])) < 0.1, "one after the other they are the whole time"
    assert re.search(r"ready http://\S+ .*context [\d,]+ tokens, KV [\d,]+ tokens", server.log)
    assert server.log.splitlines()[-1].startswith("curl http://")
    assert "\x1b" not in server.log


def test_while_the_model_loads_clients_are_told_so_and_none_is_refused_or_lost(tmp_path: Path, port: int) -> None:
    slow = (
        "import asyncio, os, sys\nfrom penstock.cli import main\nfrom penstock.runtime.service import Service\n"
        "start = Service.start\n"
        "async def later(*arguments):\n    while not os.path.exists(sys.argv[2]):\n        await asyncio.sleep(0.01)\n"
        "    return await start(*arguments)\n"
        "Service.start = later\nmain(['serve', '--server.port', sys.argv[1]])"
    )
    may_load = tmp_path / "may load"
    process = subprocess.Popen(
        [sys.executable, "-c", slow, str(port), str(may_load)], env=environment(), stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 120
        while socket.socket().connect_ex(("127.0.0.1", port)):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            assert client.get("/health").json() == {"status": "alive", "state": "starting"}
            refused = client.post("/v1/completions", json={"prompt": "x" * 100_000}, headers={"x-request-id": "mine"})
            assert refused.status_code == 503
            assert refused.json()["error"]["type"] == "service_unavailable_error"
            assert "the model is starting. Remedy: come back in" in refused.json()["error"]["message"]
            assert {"retry-after", "retry-after-ms"} <= refused.headers.keys()
            assert refused.headers["x-request-id"] == "mine"
            assert client.get("/ready").json()["status"] == "starting"
        may_load.touch()
        last = httpx.Response(503)
        while last.status_code != 200:  # a new connection each; one that is refused or lost raises
            assert time.monotonic() < deadline
            time.sleep(0.05)
            last = httpx.get(f"http://127.0.0.1:{port}/ready", timeout=30)
        assert last.json()["status"] == "ready"
        assert httpx.post(f"http://127.0.0.1:{port}/v1/completions", json={"prompt": "x"}, timeout=30).is_success
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


def test_sigterm_while_the_model_loads_ends_with_exit_code_0_a_line_and_no_worker() -> None:
    stuck = (
        "import sys\nfrom penstock.cli import main\nimport penstock.runtime.service as service\n"
        "from penstock.runtime.launch import Fresh\n"
        "service.launcher_for = lambda command: Fresh((sys.executable, '-c', 'import time; time.sleep(600)'))\n"
        "main(['serve', '--server.port', '0'])"
    )
    process = subprocess.Popen([sys.executable, "-c", stuck], env=environment(), stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        told = ""
        while "front end" not in told:
            line = process.stderr.readline()
            assert line, told
            told += line
        workers = children(process.pid)
        assert workers, "it starts before the HTTP side is loaded, to load the model meanwhile"
        process.send_signal(signal.SIGTERM)
        told += process.stderr.read()
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()
        process.wait()
    assert told.splitlines()[-1] == "stopped before the model was loaded"
    assert "Traceback" not in told
    assert not any(psutil.pid_exists(worker) for worker in workers)


def test_a_server_that_is_open_says_so_at_start(server: Serving, public: Serving) -> None:
    assert "open: no key is set, so every program on this machine may use it" in server.log
    assert "open to everyone who can reach this address: no key is set" in public.log


def test_the_checkpoint_that_is_served_is_named_by_the_hash_that_inspect_and_doctor_show(
    server: Serving, run: Run
) -> None:
    found = re.search(r"checkpoint ([0-9a-f]{12}), (fp_[0-9a-f]{12})", server.log)
    assert found is not None
    asked = httpx.post(f"{server.url}/v1/completions", json={"prompt": "x", "max_tokens": 1}, timeout=30).json()
    assert asked["system_fingerprint"] == found[2]
    assert json.loads(run("inspect", "model", "millrace", "--json")[1])["checkpoint"] == found[1]
    assert found[1] in run("inspect", "model", "millrace")[1]
    findings = json.loads(run("doctor", "--json")[1])["findings"]
    (shown,) = (one["value"] for one in findings if (one["subject"], one["name"]) == ("model", "checkpoint"))
    assert shown == f"{found[1]}, answers carry {found[2]}"


def test_an_idle_server_with_the_model_in_the_box_stays_below_700_megabytes(server: Serving) -> None:
    front_end = psutil.Process(server.process.pid)
    processes = [front_end, *front_end.children(recursive=True)]
    assert len(processes) == 3  # the worker is a fork of one that holds no more than it shares
    assert sum(process.memory_full_info().pss for process in processes) < 700e6


def test_the_printed_curl_body_is_answered(server: Serving) -> None:
    curl = next(line for line in server.lines if line.startswith("curl "))
    body = json.loads(curl[curl.index("{") : curl.rindex("}") + 1])
    answer = httpx.post(f"{server.url}/v1/chat/completions", json={**body, "max_completion_tokens": 8}, timeout=30)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"]


def test_chat_works_through_a_pipe_and_keeps_answers_and_figures_apart(server: Serving) -> None:
    done = penstock(
        "chat", "--url", server.url, "--temperature", "0", "--max-tokens", "12", stdin="Hello\n/reset\nHello\n/exit\n"
    )
    first, second = done.stdout.splitlines()
    assert first == second
    assert done.stderr.count("first token after") == 2
    assert "started over" in done.stderr


def test_chat_starts_a_server_of_its_own_when_none_is_given() -> None:
    done = penstock("chat", "--temperature", "0", "--max-tokens", "12", stdin="Hello\n")
    assert done.stdout.strip()
    assert "tokens/s" in done.stderr


def test_ctrl_c_ends_with_130_and_no_traceback(server: Serving) -> None:
    command = [sys.executable, "-m", "penstock", "chat", "--url", server.url]
    process = subprocess.Popen(
        command, env=environment(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("Hello\n")
    process.stdin.flush()
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors


def test_chat_remembers_the_turns_before(server: Serving) -> None:
    done = penstock("chat", "--url", server.url, "--temperature", "0", "--max-tokens", "12", stdin="Hello\nHello\n")
    assert len(done.stdout.splitlines()) == 2
    assert "prompt tokens cached" in done.stderr  # the second prompt begins with the first


def test_chat_with_a_server_that_is_not_there_is_one_line_and_exit_code_1() -> None:
    done = penstock("chat", "--url", "http://127.0.0.1:9", stdin="Hello\n", expect=1)
    assert done.stderr.startswith("error: no answer from http://127.0.0.1:9")


def test_sigterm_lets_a_running_stream_finish_and_ends_with_exit_code_0(public: Serving) -> None:
    body = {"prompt": "Hello", "max_tokens": 300, "stream": True, "ignore_eos": True, "temperature": 0}
    url = public.url.replace("0.0.0.0", "127.0.0.1")
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as response:
        lines = response.iter_lines()
        assert next(lines).startswith("data: ")
        public.process.send_signal(signal.SIGTERM)
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert public.end() == 0
    assert "stopping" in public.log
    assert "Traceback" not in public.log
