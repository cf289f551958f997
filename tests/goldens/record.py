"""Recorded schedules: a change to one of them is a change of behaviour, to be explained in the commit that makes it.

python tests/goldens/record.py     writes schedules.json anew
"""

from __future__ import annotations

import json
import random
from pathlib import Path

from penstock.control.request import Request, Sampling
from penstock.control.step import Step
from penstock.testing import Driver, ScriptedExecutor, small_replica

FILE = Path(__file__).with_name("schedules.json")
SETUPS: dict[str, dict[str, object]] = {
    "sarathi": {"policy": "sarathi"},
    "sarathi swap fair_share": {"policy": "sarathi", "evict": "swap", "host_blocks": 40, "order": "fair_share"},
    "splitfuse": {"policy": "splitfuse"},
    "orca priority": {"policy": "orca", "order": "priority"},
    "vllm_prefill_first": {"policy": "vllm_prefill_first"},
    "request_level shortest": {"policy": "request_level", "order": "shortest"},
    "sarathi fair_share, idle fair": {"policy": "sarathi", "order": "fair_share", "evict_idle": "fair"},
}


def compact(step: Step) -> dict[str, object]:
    """What a step says, empty fields left out."""
    said = {
        "release": step.release, "evict": step.evict, "swap_out": [swap.id for swap in step.swap_out],
        "swap_in": [swap.id for swap in step.swap_in], "pause": step.pause, "join": step.join,
        "admit": [f"{one.id} {one.cached_tokens} {','.join(map(str, one.blocks))}" for one in step.admit],
        "grow": [f"{name} {block}" for name, block in zip(step.grow, step.grow_blocks, strict=True)],
        "chunks": [f"{one.id} {one.start}+{one.tokens}" for one in step.chunks],
        "decode": f"{step.decoding} {step.decode_context}" if step.decoding else "",
    }  # fmt: skip
    return {name: value for name, value in said.items() if value}


def schedule(setup: dict[str, object]) -> list[dict[str, object]]:
    """The steps of 14 requests of two tenants that come while others run, with shared stems, stops, a cancellation,
    little memory; what idles longest gives way, unless `setup` says otherwise."""
    chance = random.Random(2024)
    replica = small_replica(blocks=14, token_budget=16, max_seqs=6, **({"evict_idle": "lru"} | setup))
    driver = Driver(
        replica, ScriptedExecutor(blocks=14, block_tokens=4, host_blocks=40, vocabulary=11), plan_ahead=True
    )
    for number in range(14):
        stem = (1, 2, 3, 4, 5, 6, 7, 8)[: 8 * (number % 2)]
        prompt = stem + tuple(chance.randrange(4) for _ in range(chance.randrange(1, 12)))
        driver.submit(
            Request(
                id=f"r{number}", prompt=prompt, max_tokens=chance.randrange(1, 16), tenant="ab"[number % 2],
                priority=number % 3, sampling=Sampling(stop_ids=(7,) if number % 4 == 0 else ()),
            )
        )  # fmt: skip
        for _ in range(chance.randrange(3)):
            driver.tick()
        if number == 9:
            driver.cancel("r8")
    driver.run(most=1000)
    return [compact(step) for step in driver.steps]


def main() -> None:
    recorded = {name: schedule(setup) for name, setup in SETUPS.items()}
    lines = [
        f"{json.dumps(name)}: [\n  " + ",\n  ".join(map(json.dumps, steps)) + "\n]" for name, steps in recorded.items()
    ]
    FILE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
