"""The counts as Prometheus' text: one reader per family of observe/definitions.py."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from penstock.observe.definitions import DEFINITIONS, Definition
from penstock.serve.histogram import Histogram

if TYPE_CHECKING:
    from penstock.serve.metrics.counts import Metrics

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
FINISHED: Final = {"stop": "stop", "length": "length", "cancelled": "abort", "failed": "error"}
"""Outcome here -> vLLM's `finished_reason`."""

Rows = Iterable[tuple[tuple[str, ...], float]]
"""(values of the family's own labels, value)."""
Read = Callable[[], float | Histogram | Rows]


class Exposition(Collector):
    """Reads `metrics` when its registry asks."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        read = _readers(metrics)
        self._families = [(one, read[one.same_as or one.name]) for one in DEFINITIONS]
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def text(self) -> bytes:
        """All families, natives first."""
        return generate_latest(self._registry)

    def describe(self) -> list[Metric]:
        """Nothing in advance: the registry then does not collect while it registers."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All families in the order of their definition."""
        identity = (self._metrics.service.info.name, "0")
        for definition, read in self._families:
            yield _family(definition, read(), identity if definition.name.startswith("vllm:") else ())


def _family(definition: Definition, value: float | Histogram | Rows, identity: tuple[str, ...]) -> Metric:
    if isinstance(value, Histogram):
        histogram = HistogramMetricFamily(definition.name, definition.text, labels=definition.labels)
        histogram.add_metric(identity, value.cumulative(), value.sum)
        return histogram
    kind = CounterMetricFamily if definition.kind == "counter" else GaugeMetricFamily
    family = kind(definition.name, definition.text, labels=definition.labels)
    for labels, number in [((), value)] if isinstance(value, int | float) else value:
        family.add_metric((*identity, *labels), number)
    return family


def _readers(metrics: Metrics) -> dict[str, Read]:
    """One for each family that does not repeat another's values."""
    service = metrics.service

    def by(counts: Counter[str]) -> Read:
        return lambda: [((key,), count) for key, count in sorted(counts.items())]

    def of_tenants(attribute: str) -> Read:
        return lambda: [((name,), getattr(one, attribute)) for name, one in sorted(metrics.tenants.items())]

    def statistic(attribute: str) -> Read:
        return lambda: getattr(service.statistics, attribute)

    def usage() -> float:
        return service.statistics.held_blocks / max(service.statistics.total_blocks, 1)

    def identity() -> Rows:
        info = service.info
        return [((metrics.version, info.name, info.dtype, info.fingerprint), 1)]

    def responses() -> Rows:
        return [((route, str(status)), count) for (route, status), count in sorted(metrics.responses.items())]

    def adapters() -> Rows:
        running, waiting = service.adapters_in_use()
        return [((str(service.adapters.room), ",".join(sorted(waiting)), ",".join(sorted(running))), 1)]

    def nothing() -> float:
        """There is no cache outside the worker, so nothing was ever asked of it: 0 is the true count."""
        return 0

    return {
        "penstock_info": identity,
        "penstock_ready": lambda: int(service.state == "ready"),
        "penstock_requests_running": statistic("running"),
        "penstock_requests_waiting": statistic("waiting"),
        "penstock_requests_in_flight": lambda: metrics.in_flight,
        "penstock_kv_blocks": lambda: [
            ((use,), getattr(service.statistics, f"{use}_blocks")) for use in ("free", "cached", "held")
        ],
        "penstock_kv_block_tokens": lambda: service.info.block_tokens,
        "penstock_stalled_seconds": lambda: service.stalled_s,
        "penstock_recovery_seconds": lambda: service.recovery_s or 0.0,
        "penstock_worker_restarts": lambda: service.restarts,
        "penstock_requests_recovered": lambda: service.recovered,
        "penstock_preemptions": statistic("preemptions"),
        "penstock_swaps": statistic("swaps"),
        "penstock_prompt_tokens_received": lambda: metrics.prompt_tokens,
        "penstock_tokens_generated": lambda: metrics.generated_tokens,
        "penstock_prompt_tokens_cached": lambda: metrics.cached_tokens,
        "penstock_sequences": by(metrics.outcomes),
        "penstock_cancellations": lambda: metrics.outcomes["cancelled"],
        "penstock_rejections": by(metrics.rejections),
        "penstock_errors": by(metrics.errors),
        "penstock_descriptor_shortages": lambda: metrics.shortages,
        "penstock_unknown_fields": by(metrics.unknown_fields),
        "penstock_http_responses": responses,
        "penstock_steps": lambda: metrics.steps,
        "penstock_tenant_prompt_tokens": of_tenants("prompt_tokens"),
        "penstock_tenant_output_tokens": of_tenants("output_tokens"),
        "penstock_tenant_requests_waiting": of_tenants("waiting"),
        "penstock_tenant_requests_running": of_tenants("running"),
        "penstock_time_to_first_token_seconds": lambda: metrics.ttft,
        "penstock_inter_token_latency_seconds": lambda: metrics.itl,
        "penstock_time_per_output_token_seconds": lambda: metrics.tpot,
        "penstock_request_seconds": lambda: metrics.e2e,
        "penstock_queue_seconds": lambda: metrics.queue,
        "penstock_inference_seconds": lambda: metrics.inference,
        "penstock_prefill_seconds": lambda: metrics.prefill,
        "penstock_decode_seconds": lambda: metrics.decode,
        "penstock_prompt_tokens": lambda: metrics.prompt,
        "penstock_generated_tokens": lambda: metrics.generated,
        "penstock_longest_choice_tokens": lambda: metrics.longest,
        "penstock_choices": lambda: metrics.choices,
        "penstock_max_tokens": lambda: metrics.max_tokens,
        "penstock_prefill_computed_tokens": lambda: metrics.computed,
        "penstock_step_tokens": lambda: metrics.step_tokens,
        "penstock_step_seconds": lambda: metrics.step_seconds,
        "penstock_step_host_seconds": lambda: metrics.step_host,
        "vllm:kv_cache_usage_perc": usage,
        "vllm:lora_requests_info": adapters,
        "vllm:cache_config_info": lambda: [((str(service.info.block_tokens), str(service.info.blocks)), 1)],
        "vllm:request_success": lambda: [((reason,), metrics.outcomes[one]) for one, reason in FINISHED.items()],
        "vllm:prefix_cache_queries": statistic("prefix_query_tokens"),
        "vllm:prefix_cache_hits": statistic("prefix_hit_tokens"),
        "vllm:external_prefix_cache_queries": nothing,
        "vllm:external_prefix_cache_hits": nothing,
    }
