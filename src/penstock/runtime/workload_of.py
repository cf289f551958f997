"""The workload section of a deployment as a source."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from penstock.deployment import Deployment
from penstock.workload.build import build_source
from penstock.workload.settings import ArrivalSettings, SharedPrefixSettings, WorkloadSettings
from penstock.workload.source import Source, TimedRequest


def source_of(deployment: Deployment) -> Source:
    """What arrives. Raises BadInput: values that contradict each other, or a trace that cannot be read."""
    asked = deployment.workload
    tenants = {f"tenant-{number}": 1.0 for number in range(asked.tenants)} if asked.tenants > 1 else {}
    priorities = dict.fromkeys(range(asked.priorities), 1.0) if asked.priorities > 1 else {}
    return build_source(
        WorkloadSettings(
            trace=None if asked.trace is None else Path(asked.trace).expanduser(), trace_format=asked.trace_format,
            speed=asked.speed, begin_s=asked.begin, dequantise=asked.dequantise, scale_to=asked.scale_to,
            arrivals=ArrivalSettings(
                law=asked.law, rate=asked.rate, cv=asked.cv, concurrency=asked.concurrency, think_s=asked.think,
                turns=asked.turns,
            ),
            prompt_tokens=asked.prompt_tokens, output_tokens=asked.output_tokens, context_tokens=asked.context_tokens,
            requests=asked.requests, duration_s=asked.duration,
            shared_prefix=SharedPrefixSettings(
                tokens=asked.shared_prefix.tokens, share=asked.shared_prefix.share, groups=asked.shared_prefix.groups
            ),
            tenants=tenants, priorities=priorities, cancel_fraction=asked.cancel_fraction, seed=asked.seed,
        )
    )  # fmt: skip


def stated_bound(deployment: Deployment) -> Callable[[TimedRequest], int] | None:
    """The max_tokens that control is told; None: each request's true length. A longer output ends at the bound."""
    bound = deployment.workload.max_tokens
    if bound is None:
        return None
    return lambda request: bound
