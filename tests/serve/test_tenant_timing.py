"""Hit and miss cannot be told apart across the border between tenants: not by count, and not by the clock.

The exact half is quick and always runs: zero cached tokens across the border, over HTTP. The half with the clock takes
a minute of real engine and is marked slow: a tenant measures prompts that another has just asked and prompts that
nobody has, and a rank test must not tell them apart, while the same test tells the tenant's own hits from misses.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from penstock.cli.hosting import app_for, text_side_of
from penstock.deployment import Deployment
from penstock.runtime.service import Service

from .test_keys import entry

PROMPT_TOKENS = 512
ROUNDS = 80


@asynccontextmanager
async def served(keys: list[dict[str, Any]]) -> AsyncIterator[httpx.AsyncClient]:
    deployment = Deployment.parse({"server": {"keys": keys}, "hardware": {"threads": 1}})
    text = text_side_of(deployment)
    service = await Service.start(deployment)
    transport = httpx.ASGITransport(app=app_for(service, deployment, text))
    try:
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as client:
            yield client
    finally:
        await service.close()


async def ask(client: httpx.AsyncClient, who: str, prompt: list[int], **more: Any) -> tuple[int, float]:
    """Cached tokens, and seconds to an answer of one token."""
    body = {"prompt": prompt, "max_tokens": 1, "ignore_eos": True, "temperature": 0, **more}
    began = time.perf_counter()
    reply = await client.post("/v1/completions", json=body, headers={"authorization": f"Bearer key-of-{who}"})
    took = time.perf_counter() - began
    assert reply.status_code == 200, reply.text
    return reply.json()["usage"]["prompt_tokens_details"]["cached_tokens"], took


def fresh(rng: random.Random) -> list[int]:
    return [4 + rng.randrange(1000) for _ in range(PROMPT_TOKENS)]


def test_cached_tokens_never_cross_from_one_key_to_another_but_inside_a_group_they_do() -> None:
    keys = [entry("a"), entry("b"), entry("c", sharing_group="g"), entry("d", sharing_group="g"),
            entry("a2", tenant="a")]  # fmt: skip

    async def body() -> None:
        async with served(keys) as client:
            prompt = fresh(random.Random(0))
            found = {who: (await ask(client, who, prompt))[0] for who in ("a", "b", "c", "d", "a2")}
            assert found == {"a": 0, "b": 0, "c": 0, "d": PROMPT_TOKENS - 16, "a2": PROMPT_TOKENS - 16}
            salted = [(await ask(client, "a", prompt, cache_salt=salt))[0] for salt in ("x", "y", "x")]
            assert salted == [0, 0, PROMPT_TOKENS - 16]

    asyncio.run(body())


def told_apart(one: list[float], other: list[float]) -> float:
    """Mann and Whitney: the chance that a random one of `one` is the faster; 0.5 if the clock tells nothing."""
    wins = sum((a < b) + 0.5 * (a == b) for a in one for b in other)
    return wins / (len(one) * len(other))


@pytest.mark.slow
def test_by_the_clock_a_prompt_of_another_tenant_is_a_prompt_that_nobody_asked() -> None:
    async def body() -> dict[str, list[float]]:
        times: dict[str, list[float]] = {"theirs": [], "nobody's": [], "own": []}
        rng = random.Random(int(hashlib.sha256(b"timing").hexdigest()[:8], 16))
        async with served([entry("a"), entry("b")]) as client:
            for turn in range(ROUNDS):
                theirs, own = fresh(rng), fresh(rng)
                await ask(client, "a", theirs)
                await ask(client, "b", own)
                asked = [("theirs", theirs), ("nobody's", fresh(rng)), ("own", own)]
                rng.shuffle(asked)
                for kind, prompt in asked:
                    _, took = await ask(client, "b", prompt)
                    if turn >= 5:
                        times[kind].append(took)
        return times

    times = asyncio.run(body())
    # 75 of each: the test's own spread is 0.047, so 0.5 +- 0.15 is more than three times that.
    across = told_apart(times["theirs"], times["nobody's"])
    inside = told_apart(times["own"], times["nobody's"])
    print(f"across the border {across:.3f}, own hits {inside:.3f}")
    assert 0.35 < across < 0.65
    assert inside > 0.9, "the test would see a difference if there were one"
