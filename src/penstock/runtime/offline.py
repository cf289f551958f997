"""Requests in, results out, in this process: for tests, benchmarks and notebooks. No server, no worker, no waiting.

results = generate(Deployment(), [Request(id="a", prompt=(1, 2, 3), max_tokens=16)])
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

from penstock.control.request import Request
from penstock.control.step import Failed, Finished, FinishReason, NewTokens, TokenLogprobs, Update
from penstock.deployment import Deployment
from penstock.runtime.build import Built, build
from penstock.runtime.local import Loop


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


def generate(deployment: Deployment, requests: Iterable[Request]) -> list[Result]:
    """Load the deployment's model and run `requests` together to their ends. Results are in their order.

    Raises:
        InvalidDeployment, UnsupportedModel: as runtime/build.py.
        InvalidRequest: a request that cannot be run; none is run then.
    """
    built = build(deployment, lambda name, seconds, detail: None)
    try:
        return run(built, requests)
    finally:
        built.executor.close()


def run(built: Built, requests: Iterable[Request]) -> list[Result]:
    """The same on an engine that is loaded already; it stays loaded. Raises InvalidRequest."""
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
