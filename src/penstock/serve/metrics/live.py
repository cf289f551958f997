"""What the dashboard draws, as plain data: counts since the start, from which it takes differences itself."""

from __future__ import annotations

from time import monotonic
from typing import Any

from penstock.serve.histogram import Histogram
from penstock.serve.metrics.counts import Metrics


def live(metrics: Metrics) -> dict[str, Any]:
    """One moment. Times are seconds of this machine's monotonic clock; histograms are not cumulative over buckets."""
    service = metrics.service
    info, now, admission = service.info, service.statistics, service.admission
    queue = service.deployment.server.queue
    state = "saturated" if service.state == "ready" and admission.saturated else service.state
    return {
        "time": monotonic(),
        "version": metrics.version,
        "state": state,
        "model": {
            "name": info.name, "parameters": info.parameters, "dtype": info.dtype,
            "context": info.max_sequence_tokens, "max_seqs": info.max_seqs,
        },
        "running": now.running,
        "waiting": now.waiting,
        "in_flight": metrics.in_flight,
        "queue": {
            "requests": admission.requests, "max_requests": queue.max_requests,
            "prompt_tokens": admission.prompt_tokens, "max_prompt_tokens": queue.max_prompt_tokens,
        },
        "kv": {
            "free": now.free_blocks, "cached": now.cached_blocks, "held": now.held_blocks, "total": now.total_blocks,
            "block_tokens": info.block_tokens,
        },
        "totals": {
            "prompt_tokens": metrics.prompt_tokens, "output_tokens": metrics.generated_tokens,
            "cached_tokens": metrics.cached_tokens, "steps": metrics.steps, "step_seconds": metrics.step_seconds.sum,
            "finished": metrics.outcomes["stop"] + metrics.outcomes["length"],
            "cancelled": metrics.outcomes["cancelled"], "failed": metrics.outcomes["failed"],
            "rejected": sum(metrics.rejections.values()), "restarts": service.restarts,
            "preemptions": now.preemptions,
        },
        "ttft": _counts(metrics.ttft),
        "gap": _counts(metrics.itl),
        "tenants": [
            {
                "name": name, "waiting": one.waiting, "running": one.running, "prompt_tokens": one.prompt_tokens,
                "output_tokens": one.output_tokens,
            }
            for name, one in sorted(metrics.tenants.items())
        ],
    }  # fmt: skip


def _counts(histogram: Histogram) -> dict[str, Any]:
    return {"bounds": histogram.bounds, "counts": histogram.counts}
