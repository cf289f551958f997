"""Whoever is not served now is told what is the matter, how much there is of how much, and what to do."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from typing import Any

import pytest

from penstock.control.request import Request
from penstock.deployment import Deployment, Key
from penstock.errors import Overloaded, PenstockError, Unavailable
from penstock.runtime import grammar_check
from penstock.runtime.admission import NO_BOUNDS, Admission
from penstock.runtime.facts import TimeBounds
from penstock.runtime.grammar_check import GrammarCheck, GrammarJob
from penstock.runtime.launch import Fresh
from penstock.runtime.service import Service
from penstock.serve.body import BodyRoom
from penstock.serve.errors import wire
from penstock.serve.offload import Offload
from penstock.serve.quota import Quota

from .conftest import Scripted


def queue(bounds: TimeBounds) -> PenstockError:
    books = Admission(max_requests=3, max_prompt_tokens=90)
    for number in range(3):
        books.admit(f"a{number}", 30, float(number))
        books.started(f"a{number}", number + 0.5)
    books.stepped(0.05, 3.0)
    for number in range(3 if bounds is NO_BOUNDS else 1):
        books.admit(f"b{number}", 30, 3.0)
    with pytest.raises(Overloaded) as refused:
        books.admit("late", 30, 3.0, bounds=bounds)
    return refused.value


def tokenizer() -> PenstockError:
    with pytest.raises(Overloaded) as refused:
        asyncio.run(Offload(max_pending=0).run(str, characters=10**6, field="prompt"))
    return refused.value


def grammars() -> PenstockError:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(grammar_check, "MAX_WAITING", 0)
        with pytest.raises(Overloaded) as refused:
            asyncio.run(GrammarCheck().check(GrammarJob(field="x", grammar="start: /a/")))
    return refused.value


def bodies() -> PenstockError:
    with pytest.raises(Overloaded) as refused:
        BodyRoom(100, lambda: 2.0).take(101)
    return refused.value


def limit() -> PenstockError:
    books = Quota(lambda tenant: Key(name="t", hash="sha256:" + "0" * 64, requests_per_minute=1), lambda: 0.0)
    one = Request(id="1", prompt=(1,), max_tokens=1, tenant="t")
    for _ in range(2):
        try:
            with books.hold((one,), 1000, lambda: 0):
                pass
        except Overloaded as refused:
            return refused
    raise AssertionError("nothing was refused")


def service(state: Any) -> PenstockError:
    async def body() -> Unavailable:
        one = Service(Deployment(), None, Fresh(("true",)))
        if state == "draining":
            await one.drain(0.0)
        else:
            one._supervisor.state = state
        return one.unavailable()

    return asyncio.run(body())


REFUSALS = {
    "queue": (queue(NO_BOUNDS), 429, r"3 of 3 requests and 90 of 90 prompt tokens wait"),
    "first token": (queue(TimeBounds(ttft_s=0.001)), 429, r"about \d+ ms, and 1 ms were asked .* or ask for a longer"),
    "deadline": (queue(TimeBounds(deadline_s=0.001)), 429, r"about \d+ ms, and 1 ms were asked .* or ask for a longer"),
    "tokens": (queue(TimeBounds(tpot_s=0.001)), 429, r"takes 50 ms now, and at most 1 ms .* or ask for slower"),
    "tokenizer": (tokenizer(), 429, r"0 prompts wait to be tokenised, and 0 may"),
    "grammars": (grammars(), 429, r"0 grammars wait to be checked, 0 of them yours; 0 may, and of one key 32"),
    "bodies": (bodies(), 429, r"0 bytes of requests are being read, and 100 may; this one has 101"),
    "limit": (limit(), 429, r"your limit requests_per_minute: .*1"),
    "draining": (service("draining"), 503, r"takes no new requests.* or ask another replica"),
    "restarting": (service("restarting"), 503, r"the last was ready after [\d.]+ s"),
    "starting": (service("starting"), 503, r"the model is starting"),
    "stopped": (service("stopped"), 503, r"start it again"),
}


@pytest.mark.parametrize(("error", "status", "numbers"), REFUSALS.values(), ids=REFUSALS)
def test_a_refusal_says_what_is_there_what_may_be_and_what_to_do(
    error: PenstockError, status: int, numbers: str
) -> None:
    answer = wire(error, "mine")
    message = str(answer.body)
    assert answer.status == status
    assert re.search(numbers, message), message
    assert message.count("Remedy: ") == 1
    headers = dict(answer.headers)
    assert 1 <= int(headers[b"retry-after"]) <= 60
    assert 1 <= int(headers[b"retry-after-ms"]) <= 1000 * int(headers[b"retry-after"])
    if b"start it again" not in answer.body:
        assert re.search(r"Remedy: come back in \d+\.\d\d s", message)


def texts(error: dict[str, Any]) -> Iterator[str]:
    assert set(error) == {"message", "type", "param", "code"}
    yield from (error["message"], error["code"])


@pytest.mark.parametrize("state", ["starting", "restarting", "draining", "stopped", "saturated"])
def test_not_ready_is_told_as_a_refusal_is(scripted: Scripted, state: Any) -> None:
    if state == "saturated":
        scripted.service.admission = Admission(max_requests=1, max_prompt_tokens=10)
        scripted.service.admission.admit("one", 1, now=0.0)
    else:
        scripted.service.state = state
    reply = scripted.http.get("/ready")
    assert (reply.status_code, reply.json()["status"]) == (503, state)
    message, code = texts(reply.json()["error"])
    assert "Remedy: come back in" in message
    assert code == "service_unavailable"
    assert int(reply.headers["retry-after"]) >= 1
    assert reply.headers["content-type"] == "application/json"


@pytest.mark.parametrize("state", ["ready", "stopped"])
def test_unhealthy_is_told_as_a_refusal_is(scripted: Scripted, state: Any) -> None:
    scripted.service.state, scripted.service.stalled_s = state, 130.0
    reply = scripted.http.get("/health")
    assert (reply.status_code, reply.json()["status"]) == (503, "stalled" if state == "ready" else "stopped")
    message, _ = texts(reply.json()["error"])
    assert "Remedy: come back in" in message
    assert state == "stopped" or "for 130.0 s; 120 s may pass" in message
    assert int(reply.headers["retry-after"]) >= 1


def test_a_deadline_that_passed_while_the_body_was_read_says_how_long_that_took(scripted: Scripted) -> None:
    reply = scripted.http.post("/v1/completions", json={"prompt": "x"}, headers={"x-request-deadline-ms": "0.001"})
    assert reply.status_code == 408
    message, code = texts(reply.json()["error"])
    assert re.search(r"deadline of 0\.001 ms .* took \d+ ms\. Remedy: come back in .* or a longer deadline", message)
    assert code == "deadline_passed"
    assert int(reply.headers["retry-after"]) >= 1
