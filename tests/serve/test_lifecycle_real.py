"""Clients over HTTP and the real engine: a worker that dies or stops, clients that vanish, requests that fail."""

from __future__ import annotations

import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from penstock.control.request import Request, Sampling
from penstock.errors import RequestFailed

from .conftest import Real
from .sse import read_stream

BODIES: list[tuple[str, dict[str, Any]]] = [
    ("/v1/completions", {"prompt": "The river", "temperature": 0, "max_tokens": 60, "stream": True}),
    ("/v1/completions", {"prompt": "The river", "temperature": 0.9, "seed": 4, "n": 3, "stream": True, "logprobs": 2}),
    ("/v1/completions", {"prompt": ["A mill", "A wheel"], "temperature": 1, "seed": 5, "n": 2, "max_tokens": 50}),
    ("/v1/completions", {"prompt": "Water", "temperature": 1, "seed": 6, "stop": ["e ", "."], "min_tokens": 9}),
    (
        "/v1/chat/completions",
        {"temperature": 0.7, "seed": 7, "frequency_penalty": 0.5, "logprobs": True, "stream": True},
    ),
    ("/v1/chat/completions", {"temperature": 0.8, "seed": 8, "top_k": 30, "repetition_penalty": 1.1}),
]
COMMON = {"ignore_eos": True, "return_token_ids": True}
CHAT = {"messages": [{"role": "user", "content": "Tell me about stones."}]}


def ask(real: Real, path: str, body: dict[str, Any]) -> list[tuple[Any, ...]]:
    """Of each choice: text, token ids, finish reason."""
    body = {"max_tokens": 48, **COMMON, **(CHAT if "chat" in path else {}), **body}
    reply = httpx.post(f"{real.url}{path}", json=body, timeout=200)
    assert reply.status_code == 200, reply.text
    if body.get("stream"):
        stream = read_stream(reply.content, n=body.get("n", 1), chat="chat" in path)
        assert stream.error is None
        choices = [stream.choices[index] for index in range(body.get("n", 1))]
        return [(one.text, one.token_ids, one.finish_reason) for one in choices]
    return [
        (one["message"]["content"] if "chat" in path else one["text"], one["token_ids"], one["finish_reason"])
        for one in sorted(reply.json()["choices"], key=lambda one: int(one["index"]))
    ]


def all_at_once(real: Real) -> list[Any]:
    with ThreadPoolExecutor(len(BODIES)) as pool:
        return list(pool.map(lambda one: ask(real, *one), BODIES))


def idle(real: Real) -> None:
    """Nothing runs, waits or holds a block."""
    for _ in range(6000):
        now = real.service.statistics
        if now.total_blocks and not (real.service.in_flight or now.running or now.waiting):
            break
        time.sleep(0.01)
    assert (now.running, now.waiting, now.held_blocks) == (0, 0, 0)
    assert now.free_blocks + now.cached_blocks == now.total_blocks
    assert real.service.admission.requests == 0


@pytest.mark.parametrize("deed", [signal.SIGKILL, signal.SIGSTOP])
def test_clients_see_a_pause_and_the_answers_of_an_undisturbed_run(
    real: Real, deed: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    if deed is signal.SIGSTOP:
        monkeypatch.setattr("penstock.runtime.supervisor.QUIET_S", 0.5)
        monkeypatch.setattr("penstock.runtime.supervisor.POLL_S", 0.1)
    undisturbed = all_at_once(real)
    steps: list[int] = []
    # A step that was stopped takes seconds, and the next stop must be found as fast all the same.
    strikes = [5, 30] if deed is signal.SIGKILL else [5, 12, 20, 30]
    killed: list[int] = []

    def strike(report: Any) -> None:
        steps.append(report.number)
        pid = real.service.worker_pid
        # What a worker said before it was killed may be heard after that.
        if strikes and len(steps) >= strikes[0] and pid is not None and pid not in killed:
            strikes.pop(0)
            os.kill(pid, deed)
            if deed is signal.SIGKILL:
                killed.append(pid)

    before = real.service.restarts
    real.service.on_step.append(strike)
    try:
        assert all_at_once(real) == undisturbed
    finally:
        real.service.on_step.remove(strike)
    assert strikes == []
    if deed is signal.SIGKILL:
        while real.service.restarts < before + 2:  # the second may have had nothing left to do
            time.sleep(0.01)
        assert real.service.restarts == before + 2
    idle(real)


def open_post(real: Real, body: bytes, *, announced: int | None = None) -> socket.socket:
    host, port = real.url.removeprefix("http://").split(":")
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect((host, int(port)))
    client.sendall(
        b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n%s" % (announced or len(body), body)
    )
    return client


def test_clients_that_vanish_while_they_wait_to_be_admitted_leave_nothing(real: Real) -> None:
    idle(real)
    before = real.service.statistics
    assert real.service.worker_pid is not None
    os.kill(real.service.worker_pid, signal.SIGSTOP)  # whoever comes now waits
    try:
        clients = [
            open_post(real, b'{"prompt": "gone", "n": %d, "max_tokens": 500, "ignore_eos": true}' % n) for n in (1, 4)
        ]
        while real.service.in_flight < 5:
            time.sleep(0.005)
        for client in clients:
            client.close()
        while real.service.in_flight:
            time.sleep(0.005)
        assert real.service.admission.requests == 0
    finally:
        os.kill(real.service.worker_pid, signal.SIGCONT)
    again = httpx.post(f"{real.url}/v1/completions", json={"prompt": "here", "max_tokens": 2}, timeout=60)
    assert again.status_code == 200
    idle(real)
    now = real.service.statistics
    assert (now.submitted - before.submitted, now.cancelled - before.cancelled) == (6, 5)
    assert now.decode_tokens - before.decode_tokens < 500, "the five that left were not computed to their end"


def test_half_a_body_is_no_request(real: Real) -> None:
    idle(real)
    before = real.service.statistics.submitted
    with open_post(real, b'{"prompt": "half', announced=4000):
        assert httpx.get(f"{real.url}/health", timeout=30).status_code == 200
    assert (
        httpx.post(f"{real.url}/v1/completions", json={"prompt": "x", "max_tokens": 1}, timeout=60).status_code == 200
    )
    idle(real)
    assert real.service.statistics.submitted - before == 1


def test_a_client_that_never_reads_holds_up_nobody_and_no_block(real: Real) -> None:
    flood = b'{"prompt": "x", "n": 4, "max_tokens": 600, "ignore_eos": true, "stream": true, "return_token_ids": true}'
    with open_post(real, flood):
        while not real.service.in_flight:
            time.sleep(0.005)
        answers = [ask(real, *BODIES[0]), ask(real, *BODIES[0])]
        assert answers[0] == answers[1]
    idle(real)


def test_a_request_that_cannot_be_sampled_fails_alone(real: Real) -> None:
    """Every token is a stop token, and none may come yet."""
    expected = ask(real, *BODIES[1])
    banned = Sampling(temperature=1.0, stop_ids=tuple(range(real.service.info.vocab_size)), min_tokens=4)
    with ThreadPoolExecutor(1) as pool:
        beside = pool.submit(ask, real, *BODIES[1])
        with pytest.raises(RequestFailed, match="no token is left"):
            real.outputs(Request(id="banned", prompt=(5, 6, 7), max_tokens=8, sampling=banned))
        assert beside.result(60) == expected
    idle(real)


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [{"role": "assistant", "content": None}]},
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        {"messages": [{"role": "tool", "content": "x"}]},
        {**CHAT, "chat_template_kwargs": {"messages": 1}},
        {**CHAT, "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": 5}}}},
        {**CHAT, "logit_bias": {"99999999": 1}},
        {**CHAT, "max_tokens": 10**9},
    ],
)
def test_a_request_that_is_refused_is_a_400_of_its_own(real: Real, body: dict[str, Any]) -> None:
    reply = httpx.post(f"{real.url}/v1/chat/completions", json=body, timeout=60)
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]["message"]
    assert httpx.get(f"{real.url}/health", timeout=30).status_code == 200
    idle(real)
