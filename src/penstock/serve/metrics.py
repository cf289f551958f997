"""GET /metrics: everything counted once, shown under two names.

Native names follow Prometheus' rules (`penstock_..._seconds`, `_total`). Beside them stand vLLM's, because gateways,
autoscalers and dashboards read those; `_HISTOGRAMS` is the table of both. Values come from three places: what the
front end sees of each request, `Service.on_step`, and the worker's newest `Statistics`, read when a scrape asks.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from penstock.runtime.facts import StepReport, Timings
from penstock.serve.histogram import (
    CHOICES,
    PER_TOKEN_S,
    REQUEST_S,
    STEP_S,
    STEP_TOKENS,
    TTFT_S,
    Histogram,
    one_two_five,
)

if TYPE_CHECKING:
    from penstock.runtime.service import Service

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
MAX_FIELD_NAMES: Final = 64
"""Distinct unknown field names that get their own label; clients choose the names, so there is a bound."""

_HISTOGRAMS: Final = (  # attribute, native name, vLLM's name, what it is; a prefix of each name is added below
    ("ttft", "time_to_first_token_seconds", "time_to_first_token_seconds", "Arrival to first token."),
    ("itl", "inter_token_latency_seconds", "inter_token_latency_seconds", "Gap between two outputs."),
    ("tpot", "time_per_output_token_seconds", "request_time_per_output_token_seconds", "Mean gap of a request."),
    ("e2e", "request_seconds", "e2e_request_latency_seconds", "Arrival to last token."),
    ("queue", "queue_seconds", "request_queue_time_seconds", "Arrival to the first step."),
    ("inference", "inference_seconds", "request_inference_time_seconds", "First step to last token."),
    ("prefill", "prefill_seconds", "request_prefill_time_seconds", "First step to first token."),
    ("decode", "decode_seconds", "request_decode_time_seconds", "First token to last token."),
    ("prompt", "prompt_tokens", "request_prompt_tokens", "Prompt tokens of a sequence."),
    ("generated", "generated_tokens", "request_generation_tokens", "Output tokens of a sequence."),
    ("longest", "longest_choice_tokens", "request_max_num_generation_tokens", "Output tokens of the longest of n."),
    ("choices", "choices", "request_params_n", "n as asked for."),
    ("max_tokens", "max_tokens", "request_params_max_tokens", "Bound on output tokens, as asked or by default."),
    ("computed", "prefill_computed_tokens", "request_prefill_kv_computed_tokens", "Prompt tokens not in the cache."),
    ("step_tokens", "step_tokens", "iteration_tokens_total", "Tokens of a step; the count is a heartbeat."),
    ("step_seconds", "step_seconds", None, "Time of a step in the engine."),
)

_FINISHED: Final = {"stop": "stop", "length": "length", "cancelled": "abort", "failed": "error"}
"""Outcome here -> vLLM's `finished_reason`."""


class Metrics(Collector):
    """Counts, and shows them when the registry asks. One thread: the event loop's."""

    def __init__(self, service: Service, version: str) -> None:
        self.service, self.version = service, version
        tokens = one_two_five(service.info.max_sequence_tokens)
        self.ttft, self.itl, self.tpot = Histogram(TTFT_S), Histogram(PER_TOKEN_S), Histogram(PER_TOKEN_S)
        self.e2e, self.queue, self.inference = Histogram(REQUEST_S), Histogram(REQUEST_S), Histogram(REQUEST_S)
        self.prefill, self.decode = Histogram(REQUEST_S), Histogram(REQUEST_S)
        self.prompt, self.generated, self.longest = Histogram(tokens), Histogram(tokens), Histogram(tokens)
        self.max_tokens, self.computed, self.choices = Histogram(tokens), Histogram(tokens), Histogram(CHOICES)
        self.step_tokens, self.step_seconds = Histogram(STEP_TOKENS), Histogram(STEP_S)
        self.prompt_tokens = self.generated_tokens = self.cached_tokens = 0
        self.outcomes: Counter[str] = Counter(dict.fromkeys((*_FINISHED, "refused"), 0))
        self.errors: Counter[str] = Counter()
        self.responses: Counter[tuple[str, int]] = Counter()
        self.unknown_fields: Counter[str] = Counter()
        self.in_flight = 0
        self.registry = CollectorRegistry()
        self.registry.register(self)
        service.on_step.append(self.stepped)

    # ---- what happens -------------------------------------------------------------------------------------------

    def stepped(self, report: StepReport) -> None:
        """The engine finished a step."""
        self.step_tokens.observe(report.tokens)  # also of steps without rows: watchdogs read it as a heartbeat
        if report.tokens:
            self.step_seconds.observe(report.seconds)

    def entered(self) -> None:
        """A sequence was handed to the service."""
        self.in_flight += 1

    def left(
        self, outcome: str, *, prompt_tokens: int, output_tokens: int, cached_tokens: int, max_tokens: int,
        ttft_s: float | None, total_s: float, timings: Timings | None,
    ) -> None:  # fmt: skip
        """A sequence is over: stop, length, cancelled, failed or refused. `ttft_s` is None if no token came."""
        self.in_flight -= 1
        self.outcomes[outcome] += 1
        if ttft_s is not None:
            self.cached_tokens += cached_tokens  # as prompt_tokens are: of every prompt that was computed
        if outcome not in ("stop", "length"):
            return
        self.prompt.observe(prompt_tokens)
        self.generated.observe(output_tokens)
        self.max_tokens.observe(max_tokens)
        self.computed.observe(prompt_tokens - cached_tokens)
        self.e2e.observe(total_s)
        if ttft_s is not None and output_tokens > 1:
            self.tpot.observe((total_s - ttft_s) / (output_tokens - 1))
        if timings is not None:
            self.queue.observe(timings.queue_s)
            self.prefill.observe(timings.prefill_s)
            self.decode.observe(timings.decode_s)
            self.inference.observe(timings.prefill_s + timings.decode_s)

    def answered(self, route: str, status: int) -> None:
        """The head of an answer left. `route` is a pattern, not a path, so there are few."""
        self.responses[route or "none", status] += 1

    def failed(self, code: str) -> None:
        """An error was answered; `code` is that of its body."""
        self.errors[code] += 1

    def unknown_field(self, name: str) -> None:
        """A body held a field that nothing here knows."""
        label = re.sub(r"[^A-Za-z0-9_.-]", "_", name[:64])
        if label not in self.unknown_fields and len(self.unknown_fields) >= MAX_FIELD_NAMES:
            label = "other"
        self.unknown_fields[label] += 1

    # ---- what is shown ------------------------------------------------------------------------------------------

    def exposition(self) -> bytes:
        """The text format of Prometheus."""
        return generate_latest(self.registry)

    def describe(self) -> list[Metric]:
        """Nothing in advance: the registry then does not collect while it registers."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All families: native, then vLLM's."""
        yield from self._native()
        yield from self._vllm()

    def _native(self) -> Iterator[Metric]:
        info, now = self.service.info, self.service.statistics
        identity = GaugeMetricFamily(
            "penstock_info", "1; the labels say what runs.", labels=("version", "model", "dtype", "fingerprint")
        )
        identity.add_metric((self.version, info.name, info.dtype, info.fingerprint), 1)
        yield identity
        yield GaugeMetricFamily("penstock_ready", "1 if new requests are taken.", value=self.service.state == "ready")
        yield GaugeMetricFamily("penstock_requests_running", "Sequences that hold KV.", value=now.running)
        yield GaugeMetricFamily("penstock_requests_waiting", "Sequences that hold none.", value=now.waiting)
        yield GaugeMetricFamily("penstock_requests_in_flight", "Sequences not answered yet.", value=self.in_flight)
        blocks = GaugeMetricFamily("penstock_kv_blocks", "KV blocks by use.", labels=("use",))
        for use in ("free", "cached", "held"):
            blocks.add_metric((use,), getattr(now, f"{use}_blocks"))
        yield blocks
        yield GaugeMetricFamily("penstock_kv_block_tokens", "Tokens in one KV block.", value=info.block_tokens)
        yield CounterMetricFamily("penstock_worker_restarts", "Workers replaced.", value=self.service.restarts)
        yield CounterMetricFamily("penstock_preemptions", "Sequences that gave way.", value=now.preemptions)
        yield CounterMetricFamily(
            "penstock_prompt_tokens_received", "Prompt tokens prefilled.", value=self.prompt_tokens
        )
        yield CounterMetricFamily("penstock_tokens_generated", "Output tokens.", value=self.generated_tokens)
        yield CounterMetricFamily(
            "penstock_prompt_tokens_cached", "Prompt tokens not computed.", value=self.cached_tokens
        )
        yield _counters("penstock_sequences", "Sequences by outcome.", "outcome", self.outcomes)
        yield _counters("penstock_errors", "Error answers by code.", "code", self.errors)
        yield _counters("penstock_unknown_fields", "Fields ignored in bodies.", "field", self.unknown_fields)
        responses = CounterMetricFamily("penstock_http_responses", "Answers by route.", labels=("route", "status"))
        for (route, status), count in sorted(self.responses.items()):
            responses.add_metric((route, str(status)), count)
        yield responses
        for attribute, native, _, text in _HISTOGRAMS:
            yield _histogram(f"penstock_{native}", text, getattr(self, attribute), (), ())

    def _vllm(self) -> Iterator[Metric]:
        info, now = self.service.info, self.service.statistics
        names, values = ("model_name", "engine"), (info.name, "0")

        def gauge(name: str, text: str, value: float) -> Metric:
            family = GaugeMetricFamily(name, text, labels=names)
            family.add_metric(values, value)
            return family

        def counter(name: str, text: str, value: float) -> Metric:
            family = CounterMetricFamily(name, text, labels=names)
            family.add_metric(values, value)
            return family

        yield gauge("vllm:num_requests_running", "Sequences that hold KV.", now.running)
        yield gauge("vllm:num_requests_waiting", "Sequences that wait.", now.waiting)
        yield gauge(
            "vllm:kv_cache_usage_perc", "Share of KV blocks in use, 0 to 1.", now.held_blocks / max(now.total_blocks, 1)
        )
        lora = ("max_lora", "waiting_lora_adapters", "running_lora_adapters")
        adapters = GaugeMetricFamily("vllm:lora_requests_info", "No adapters are loaded.", labels=(*names, *lora))
        adapters.add_metric((*values, "0", "", ""), 1)
        yield adapters
        cache = GaugeMetricFamily(
            "vllm:cache_config_info",
            "1; the labels say how KV is kept.",
            labels=(*names, "block_size", "num_gpu_blocks"),
        )
        cache.add_metric((*values, str(info.block_tokens), str(info.blocks)), 1)
        yield cache
        yield counter("vllm:prompt_tokens", "Prompt tokens prefilled.", self.prompt_tokens)
        yield counter("vllm:generation_tokens", "Output tokens.", self.generated_tokens)
        yield counter("vllm:prompt_tokens_cached", "Prompt tokens not computed.", self.cached_tokens)
        success = CounterMetricFamily(
            "vllm:request_success", "Sequences by outcome.", labels=(*names, "finished_reason")
        )
        for outcome, reason in _FINISHED.items():
            success.add_metric((*values, reason), self.outcomes[outcome])
        yield success
        yield counter("vllm:num_preemptions", "Sequences that gave way.", now.preemptions)
        yield counter("vllm:prefix_cache_queries", "Tokens looked up in the cache.", now.prefix_query_tokens)
        yield counter("vllm:prefix_cache_hits", "Tokens found there.", now.prefix_hit_tokens)
        # There is no cache outside the worker, so nothing was ever asked of it: 0 is the true count.
        yield counter("vllm:external_prefix_cache_queries", "Tokens looked up outside the worker.", 0)
        yield counter("vllm:external_prefix_cache_hits", "Tokens found there.", 0)
        for attribute, _, name, text in _HISTOGRAMS:
            if name:
                yield _histogram(f"vllm:{name}", text, getattr(self, attribute), names, values)


def _counters(name: str, text: str, label: str, counts: Counter[str]) -> Metric:
    family = CounterMetricFamily(name, text, labels=(label,))
    for key, count in sorted(counts.items()):
        family.add_metric((key,), count)
    return family


def _histogram(name: str, text: str, source: Histogram, names: tuple[str, ...], values: tuple[str, ...]) -> Metric:
    family = HistogramMetricFamily(name, text, labels=names)
    family.add_metric(values, source.cumulative(), source.sum)
    return family
