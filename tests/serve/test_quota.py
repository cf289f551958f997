"""Limits of a tenant: what is refused, what is told, and that a deadline of the client's is kept or told."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from penstock.control.request import Request
from penstock.deployment import Deployment, Key
from penstock.errors import DeadlinePassed, InvalidRequest, Overloaded, Unavailable
from penstock.runtime.facts import Output
from penstock.serve.quota import Quota

from .conftest import Loop
from .scripted import ScriptedService, raising, say, scripted_app
from .test_keys import asking, entry


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def request(number: int = 0, prompt: int = 10, max_tokens: int = 10) -> Request:
    return Request(id=str(number), prompt=(1,) * prompt, max_tokens=max_tokens, tenant="t")


def quota(**limits: Any) -> tuple[Quota, Clock]:
    clock = Clock()
    key = Key(name="t", hash="sha256:" + "0" * 64, **limits)
    return Quota(lambda tenant: key, clock), clock


def once(books: Quota, *requests: Request, made: int = 0, capacity: int = 1000) -> None:
    with books.hold(requests or (request(),), capacity, lambda: made):
        pass


def test_requests_per_minute_are_a_bucket_that_fills_steadily_and_the_time_told_is_when_it_has_one() -> None:
    books, clock = quota(requests_per_minute=6)
    for _ in range(6):
        once(books)
    with pytest.raises(Overloaded) as refused:
        once(books)
    assert refused.value.code == "rate_limit_exceeded"
    assert refused.value.retry_after_s == pytest.approx(10.0)
    assert refused.value.details == {
        "reason": "requests_per_minute", "own_usage": 6, "own_limit": 6, "retry_after_ms": 10_000
    }  # fmt: skip
    clock.now += 10.0
    once(books)


def test_tokens_per_minute_count_prompts_at_once_and_answers_when_they_are_made() -> None:
    books, clock = quota(tokens_per_minute=60)
    once(books, request(prompt=20), made=60)
    with pytest.raises(Overloaded, match="tokens_per_minute") as refused:
        once(books, request(prompt=10))
    assert refused.value.retry_after_s == pytest.approx(30.0), "20 over the limit, and 10 are needed"
    clock.now += 30.0
    once(books, request(prompt=10))


def test_a_prompt_larger_than_a_minutes_worth_waits_for_a_full_bucket_and_not_for_ever() -> None:
    books, clock = quota(tokens_per_minute=60)
    once(books, request(prompt=500))
    clock.now += 400.0
    with pytest.raises(Overloaded):
        once(books, request(prompt=1))
    clock.now += 100.0
    once(books, request(prompt=1))


def test_what_the_queue_refuses_costs_nothing() -> None:
    books, _ = quota(requests_per_minute=1, tokens_per_minute=10)
    for _ in range(5):
        with pytest.raises(Overloaded, match="full"), books.hold((request(),), 1000, lambda: 0):
            raise Overloaded("full", retry_after_s=1.0)
    once(books)


@pytest.mark.parametrize(
    "error", [Unavailable("away", retry_after_s=1), DeadlinePassed("late", retry_after_s=1)], ids=["503", "408"]
)
def test_what_fails_before_its_first_token_costs_nothing(error: Exception) -> None:
    books, _ = quota(requests_per_minute=2, tokens_per_minute=30)
    for _ in range(5):
        with pytest.raises(type(error)), books.hold((request(),), 1000, lambda: 0):
            raise error
    with pytest.raises(type(error)), books.hold((request(),), 1000, lambda: 1):
        raise error
    with pytest.raises(Overloaded, match="11 of 30 tokens"):
        once(books, request(0, 20))
    once(books)


def test_refusals_do_not_shorten_the_time_that_a_place_is_said_to_take() -> None:
    books, clock = quota(max_concurrent=1)

    def told() -> float:
        with books.hold((request(),), 1000, lambda: 1):
            with pytest.raises(Overloaded) as refused:
                once(books)
            clock.now += 8.0
        return refused.value.retry_after_s

    told()
    before = told()
    for _ in range(20):
        with pytest.raises(Unavailable), books.hold((request(),), 1000, lambda: 0):
            raise Unavailable("away", retry_after_s=1)
    assert told() > before


def test_counting_and_reading_tokens_counts_as_requests_and_bounds_the_text(
    limited: tuple[ScriptedService, FastAPI, str],
) -> None:
    client = asking(limited[2], "a")
    assert client.post("/tokenize", json={"prompt": "hi"}).status_code == 200
    assert client.post("/detokenize", json={"tokens": [104]}).status_code == 200
    for path, body in (("/tokenize", {"prompt": "hi"}), ("/detokenize", {"tokens": [104]})):
        reply = client.post(path, json=body)
        assert (reply.status_code, reply.json()["error"]["code"]) == (429, "rate_limit_exceeded")
    reply = asking(limited[2], "b").post("/tokenize", json={"prompt": "x" * 100_000})
    assert (reply.status_code, reply.json()["error"]["code"]) == (400, "context_length_exceeded")


def test_requests_at_the_same_time_are_bounded_and_freed_however_they_end() -> None:
    books, _ = quota(max_concurrent=2)
    with (
        books.hold((request(1), request(2)), 1000, lambda: 0),
        pytest.raises(Overloaded, match="max_concurrent: 2 of 2"),
    ):
        once(books)
    with pytest.raises(ZeroDivisionError), books.hold((request(1), request(2)), 1000, lambda: 0):
        raise ZeroDivisionError
    once(books, request(1), request(2))
    with pytest.raises(InvalidRequest, match="limit is 2"):
        once(books, request(1), request(2), request(3))


def test_the_share_of_the_kv_memory_counts_what_requests_in_flight_may_come_to_hold() -> None:
    books, _ = quota(kv_share=0.1)
    with books.hold((request(1, 30, 30),), 1000, lambda: 0):
        with pytest.raises(Overloaded, match="kv_share: 60 of 100"):
            once(books, request(2, 30, 30))
        once(books, request(2, 20, 20))
    with pytest.raises(InvalidRequest) as refused:
        once(books, request(2, 90, 30))
    assert refused.value.field == "max_tokens"


@pytest.fixture
def limited(loop: Loop) -> Iterator[tuple[ScriptedService, FastAPI, str]]:
    keys = [entry("a", requests_per_minute=2, tokens_per_minute=1000), entry("b")]
    service = ScriptedService(Deployment.parse({"server": {"keys": keys}}))
    app = scripted_app(service)
    for url in loop.serve(app):
        yield service, app, url


def test_headers_tell_limits_and_what_is_left_and_a_refusal_is_the_documented_one(
    limited: tuple[ScriptedService, FastAPI, str],
) -> None:
    _, _, url = limited
    client = asking(url, "a")
    for stream, left in ((True, "1"), (False, "0")):
        reply = client.post("/v1/completions", json={"prompt": "hi", "stream": stream})
        assert reply.status_code == 200
        assert reply.headers["x-ratelimit-limit-requests"] == "2"
        assert reply.headers["x-ratelimit-remaining-requests"] == left
        assert reply.headers["x-ratelimit-limit-tokens"] == "1000"
        assert int(reply.headers["x-ratelimit-remaining-tokens"]) <= 998
        assert reply.headers["x-ratelimit-reset-requests"].endswith("s")
    reply = client.post("/v1/completions", json={"prompt": "hi"})
    assert reply.status_code == 429
    error = reply.json()["error"]
    assert error["type"] == "rate_limit_error"
    assert error["code"] == "rate_limit_exceeded"
    assert error["details"]["reason"] == "requests_per_minute"
    assert 25 <= int(reply.headers["retry-after"]) <= 30
    assert abs(int(reply.headers["retry-after-ms"]) - error["details"]["retry_after_ms"]) <= 1
    assert reply.headers["x-ratelimit-remaining-requests"] == "0"
    other = asking(url, "b").post("/v1/completions", json={"prompt": "hi"})
    assert other.status_code == 200, "another tenant's limits are its own"
    assert "x-ratelimit-limit-requests" not in other.headers


@pytest.mark.parametrize("name", ["x-slo-ttft-ms", "x-slo-tpot-ms", "x-request-deadline-ms"])
@pytest.mark.parametrize("value", ["soon", "0", "-5", "nan", "inf", "1e12", "1" * 50, ""])
def test_a_time_that_is_none_is_400_and_names_the_header(
    limited: tuple[ScriptedService, FastAPI, str], name: str, value: str
) -> None:
    reply = asking(limited[2], "b").post("/v1/completions", json={"prompt": "hi"}, headers={name: value})
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == name


def test_times_reach_the_service_in_seconds(limited: tuple[ScriptedService, FastAPI, str]) -> None:
    service, _, url = limited
    headers = {"x-slo-ttft-ms": "25000", "x-slo-tpot-ms": "40.5", "x-request-deadline-ms": "200000"}
    for n in (1, 2):
        body = {"prompt": "hi", "n": n}
        assert asking(url, "b").post("/v1/completions", json=body, headers=headers).status_code == 200
        asked = service.bounds
        assert asked.tpot_s == 0.0405
        assert asked.ttft_s is not None
        assert asked.deadline_s is not None
        assert 0 <= asked.ttft_s < 25.0
        assert 0 < asked.deadline_s < 200.0


def test_times_count_from_the_arrival_and_not_from_the_end_of_the_body(
    limited: tuple[ScriptedService, FastAPI, str],
) -> None:
    service, _, url = limited

    def slowly() -> Iterator[bytes]:
        yield b'{"prompt": '
        time.sleep(0.3)
        yield b'"hi"}'

    client, calls = asking(url, "b"), len(service.calls)
    for deadline, status in (("200", 408), ("60000", 200)):
        headers = {"x-request-deadline-ms": deadline, "content-type": "application/json"}
        assert client.post("/v1/completions", content=slowly(), headers=headers).status_code == status
    assert len(service.calls) == calls + 1
    assert service.bounds.deadline_s is not None
    assert service.bounds.deadline_s <= 59.7


def test_a_deadline_that_passes_in_the_queue_is_408_with_a_time_to_come_back(
    limited: tuple[ScriptedService, FastAPI, str],
) -> None:
    service, _, url = limited
    service.script = raising(DeadlinePassed("no token within the deadline of 5 ms", retry_after_s=1.5))
    reply = asking(url, "b").post("/v1/completions", json={"prompt": "hi", "stream": True})
    assert reply.status_code == 408
    assert reply.json()["error"]["code"] == "deadline_passed"
    assert reply.headers["retry-after"] == "2"
    service.script = say("hello")


def test_a_tenant_cannot_hold_more_than_its_places_over_http(loop: Loop) -> None:
    go_on = threading.Event()

    async def wait(request: Request) -> AsyncIterator[Output]:
        yield Output((97,))
        while not go_on.is_set():
            await asyncio.sleep(0.01)
        yield Output((98,), finished="length")

    service = ScriptedService(Deployment.parse({"server": {"keys": [entry("a", max_concurrent=1)]}}))
    service.script = wait
    for url in loop.serve(scripted_app(service)):
        headers = {"authorization": "Bearer key-of-a"}
        body = {"prompt": "hi", "stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, headers=headers, timeout=60) as running:
            parts = running.iter_raw()
            assert next(parts)
            assert asking(url, "a").post("/v1/completions", json=body).status_code == 429
            go_on.set()
            assert b"[DONE]" in b"".join(parts)
        assert asking(url, "a").post("/v1/completions", json=body).status_code == 200
