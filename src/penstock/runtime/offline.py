"""Requests in, results out, in this process: for tests, benchmarks and notebooks. No server, no worker, no waiting.

results = generate(Deployment(), [Request(id="a", prompt=(1, 2, 3), max_tokens=16)])
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from penstock.control.request import Request
from penstock.control.step import Failed, Finished, FinishReason, NewTokens, TokenLogprobs, Update
from penstock.deployment import Deployment
from penstock.deployment.serving import MOST_SEQS
from penstock.runtime.build import Built, build
from penstock.runtime.local import Loop, Turn

BATCH_TOKENS: Final = 512
"""Tokens of one step where only throughput counts."""


@dataclass(slots=True)
class Result:
    """What became of one request."""

    id: str
    tokens: list[int] = field(default_factory=list)
    """New tokens only: what `request.output` held is not repeated."""
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finished: FinishReason | None = None
    stop_id: int | None = None
    cached_tokens: int = 0
    error: str | None = None
    """Why it failed, if it did."""


def offline_deployment(
    path: Path | str, *, requests: int, tokens: int, dtype: str | None = None, threads: int | None = None,
    token_budget: int | None = None,
) -> Deployment:  # fmt: skip
    """What runs `requests` requests of up to `tokens` tokens each (prompt and output): as many at once as can decode in
    one step, with KV for all of these.

    Raises InvalidDeployment, UnsupportedModel.
    """
    from penstock.catalog import resolve_model
    from penstock.engine.checkpoint import model_footprint

    block_tokens = Deployment().memory.block_tokens
    model = Deployment.parse({"model": {"path": str(path), "dtype": dtype}}).model
    footprint = model_footprint(resolve_model(model.path), model.served_dtype)
    budget = token_budget or BATCH_TOKENS
    at_once = max(1, min(requests, budget - 1, MOST_SEQS))
    blocks = at_once * -(-tokens // block_tokens)
    room = 1.02  # the watermark's share stays free
    kv_bytes = int((blocks * room + 1) * block_tokens * footprint.kv_bytes_per_token)
    return Deployment.parse(
        {
            "model": {"path": str(path), "dtype": dtype}, "hardware": {"threads": threads},
            "memory": {"kv_bytes": kv_bytes},
            "policy": {"token_budget": budget, "max_seqs": at_once},
        }
    )  # fmt: skip


def load(deployment: Deployment) -> Built:
    """The engine and control plane of a deployment, in this process. Raises as runtime/build.py."""
    return build(deployment, lambda name, seconds, detail: None, grammars=False)


def generate(deployment: Deployment, requests: Iterable[Request]) -> list[Result]:
    """Load the deployment's model and run `requests` together to their ends. Results are in their order.

    Raises:
        InvalidDeployment, UnsupportedModel: as runtime/build.py.
        InvalidRequest: a request that cannot be run; none is run then.
    """
    built = load(deployment)
    try:
        return run(built, requests)
    finally:
        built.executor.close()


def run(built: Built, requests: Iterable[Request], on_turn: Callable[[Turn], None] | None = None) -> list[Result]:
    """The same on an engine that is loaded already; it stays loaded. `on_turn` is told of each step that ran.

    Raises InvalidRequest.
    """
    loop = Loop(
        built.replica, built.executor, clock=time.monotonic, plan_ahead=built.plan_ahead,
        recompute_beyond=built.recompute_beyond,
    )  # fmt: skip
    results: dict[str, Result] = {}
    try:
        for request in requests:
            loop.submit(request)
            results[request.id] = Result(request.id)
    except BaseException:
        for id in results:
            loop.cancel(id)
        loop.take_updates()
        raise
    for turn in loop.run():
        if on_turn is not None:
            on_turn(turn)
        for update in turn.updates:
            _take(results, update)
    return list(results.values())


def _take(results: dict[str, Result], update: Update) -> None:
    match update:
        case NewTokens():
            for id, token in update.tokens.items():
                results[id].tokens.append(token)
            for id, logprobs in update.logprobs.items():
                results[id].logprobs.append(logprobs)
        case Finished():
            result = results[update.id]
            result.finished, result.stop_id, result.cached_tokens = update.reason, update.stop_id, update.cached_tokens
        case Failed():
            results[update.id].error = update.why
