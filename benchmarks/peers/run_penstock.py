"""Penstock, by the way its users go: a deployment, runtime/build.py, runtime/offline.py."""

from __future__ import annotations

import argparse
from typing import Any

import contest


def load(asked: argparse.Namespace) -> tuple[contest.Generate, str, dict[str, Any]]:
    """The engine in this process, with its control plane."""
    import importlib.metadata

    from penstock.control.request import Request, Sampling
    from penstock.runtime.offline import load as load_engine
    from penstock.runtime.offline import offline_deployment, run

    deployment = offline_deployment(asked.model, dtype=asked.dtype, threads=asked.threads, token_budget=asked.budget,
                                requests=64, tokens=contest.SHARED_TOKENS + 64)  # fmt: skip
    built = load_engine(deployment)
    calls = 0

    def generate(prompts: contest.Prompts, output: int) -> list[list[int]]:
        nonlocal calls
        calls += 1
        requests = [
            Request(id=f"{calls}-{index}", prompt=tuple(prompt), max_tokens=output, sampling=Sampling(temperature=0.0))
            for index, prompt in enumerate(prompts)
        ]
        return [result.tokens for result in run(built, requests)]

    return generate, importlib.metadata.version("penstock"), {"token_budget": deployment.policy.token_budget}


if __name__ == "__main__":
    contest.main(contest.arguments(__doc__), load)
