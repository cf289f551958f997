"""A tenant that floods takes no cached prefix of another's share: over HTTP, through the real engine."""

from __future__ import annotations

import asyncio
import random

import httpx
import pytest

from penstock.cli.hosting import app_for, text_side_of
from penstock.deployment import Deployment
from penstock.runtime.service import Service

from .test_keys import entry

PROMPT_TOKENS = 256
FOUND = PROMPT_TOKENS - 16
"""All blocks but the last, whose logits are computed anew."""


async def ask(client: httpx.AsyncClient, who: str, prompt: list[int]) -> int:
    """Cached tokens of its answer of one token."""
    body = {"prompt": prompt, "max_tokens": 1, "ignore_eos": True, "temperature": 0}
    reply = await client.post("/v1/completions", json=body, headers={"authorization": f"Bearer key-of-{who}"})
    assert reply.status_code == 200, reply.text
    cached = reply.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert isinstance(cached, int)
    return cached


@pytest.mark.parametrize(("evict_idle", "kept"), [("fair", FOUND), ("lru", 0)])
def test_the_others_repeated_prompt_stays_cached_while_a_tenant_floods(evict_idle: str, kept: int) -> None:
    """The pool holds 8 such prompts; the flood sends 24 distinct ones, four at a time."""

    async def body() -> tuple[int, list[int], int]:
        service = await Service.start(deployment)
        transport = httpx.ASGITransport(app=app_for(service, deployment, text))
        try:
            async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=60) as client:
                chance = random.Random(0)
                prompts = [[4 + chance.randrange(1000) for _ in range(PROMPT_TOKENS)] for _ in range(25)]
                first = await ask(client, "quiet", prompts[0])
                flood: list[int] = []
                for start in range(1, 25, 4):
                    flood += await asyncio.gather(*(ask(client, "flood", one) for one in prompts[start : start + 4]))
                return first, flood, await ask(client, "quiet", prompts[0])
        finally:
            await service.close()

    deployment = Deployment.parse(
        {"server": {"keys": [entry("quiet"), entry("flood")]}, "hardware": {"threads": 1},
         "memory": {"kv_bytes": "8MiB", "evict_idle": evict_idle}}
    )  # fmt: skip
    text = text_side_of(deployment)
    assert asyncio.run(body()) == (0, [0] * 24, kept)
