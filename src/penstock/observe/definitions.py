"""Every metric, once: its name, type, labels, buckets and meaning.

Exposition (serve/metrics), the reference (docs/metrics.md), the Grafana dashboard and the alert rules all follow from
this table. A name never changes its meaning, and goes away only after two releases (docs/deprecation.md);
tests/goldens/metrics.txt holds what is published.

Native names follow Prometheus' rules: base units, `_total` for counters (added on exposition, as the library does), no
colon. vLLM's names stand beside them letter for letter, because gateways, autoscalers and dashboards read those; each
says which native metric it repeats, if one does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from penstock.observe.buckets import CHOICES, HOST_S, PER_TOKEN_S, REQUEST_S, STEP_S, STEP_TOKENS, TTFT_S

Kind = Literal["gauge", "counter", "histogram"]
Row = Literal["Health", "Traffic", "Latency", "Batch and KV cache", "Tenants", "Lengths", ""]
VLLM_LABELS: Final = ("model_name", "engine")


@dataclass(frozen=True, slots=True, kw_only=True)
class Definition:
    """One family. `name` has no `_total`, `_bucket`, `_sum` or `_count`; `exposed` has what a query would use."""

    name: str
    kind: Kind
    text: str
    labels: tuple[str, ...] = ()
    buckets: Sequence[float] | Literal["tokens"] = ()
    """'tokens': 1, 2, 5, 10, ... up to the context of the model."""
    row: Row = ""
    """Where the Grafana dashboard shows it; empty: nowhere."""
    same_as: str = ""
    """The native metric whose values it repeats."""

    @property
    def exposed(self) -> tuple[str, ...]:
        """Names of its series.

        >>> by_name()["penstock_steps"].exposed
        ('penstock_steps_total',)
        """
        match self.kind:
            case "counter":
                return (f"{self.name}_total",)
            case "histogram":
                return tuple(f"{self.name}_{part}" for part in ("bucket", "sum", "count"))
            case _:
                return (self.name,)

    @property
    def unit(self) -> str:
        """In which a value is given: that of its name, or a count."""
        for suffix, unit in (("_seconds", "seconds"), ("_bytes", "bytes"), ("tokens", "tokens"), ("_perc", "share")):
            if self.name.endswith(suffix):
                return unit
        return "blocks" if self.name.endswith("kv_blocks") else ""


def _gauge(name: str, text: str, row: Row = "", labels: tuple[str, ...] = ()) -> Definition:
    return Definition(name=f"penstock_{name}", kind="gauge", text=text, labels=labels, row=row)


def _counter(name: str, text: str, row: Row = "", labels: tuple[str, ...] = ()) -> Definition:
    return Definition(name=f"penstock_{name}", kind="counter", text=text, labels=labels, row=row)


def _histogram(name: str, text: str, buckets: Sequence[float] | Literal["tokens"], row: Row = "") -> Definition:
    return Definition(name=f"penstock_{name}", kind="histogram", text=text, buckets=buckets, row=row)


NATIVE: Final = (
    _gauge("info", "1; the labels say what runs.", labels=("version", "model", "dtype", "fingerprint")),
    _gauge("ready", "1 if new requests are taken.", "Health"),
    _gauge("requests_running", "Sequences that hold KV.", "Traffic"),
    _gauge("requests_waiting", "Sequences that hold none.", "Traffic"),
    _gauge("requests_in_flight", "Sequences not answered yet.", "Traffic"),
    _gauge("kv_blocks", "KV blocks by use: free, cached (a prefix nobody uses now), held.", "Batch and KV cache",
           ("use",)),
    _gauge("kv_block_tokens", "Tokens in one KV block."),
    _gauge("stalled_seconds", "Time without a step while requests are in flight; 0 without any.", "Health"),
    _gauge("recovery_seconds", "Time the last replacement of a worker took; 0 before there was one.", "Health"),
    _counter("worker_restarts", "Workers replaced.", "Health"),
    _counter("requests_recovered", "Sequences that went on in another worker.", "Health"),
    _counter("preemptions", "Sequences that gave way.", "Batch and KV cache"),
    _counter("swaps", "Sequences swapped out to host memory.", "Batch and KV cache"),
    _counter("prompt_tokens_received", "Prompt tokens prefilled.", "Traffic"),
    _counter("tokens_generated", "Output tokens.", "Traffic"),
    _counter("prompt_tokens_cached", "Prompt tokens not computed.", "Traffic"),
    _counter("sequences", "Sequences by outcome: stop, length, cancelled, failed, refused.", "Traffic", ("outcome",)),
    _counter("cancellations", "Sequences whose client left.", "Traffic"),
    _counter("rejections", "Requests not taken, by the code of the answer (408, 429 and 503).", "Health", ("reason",)),
    _counter("errors", "Error answers by code.", "Health", ("code",)),
    _counter("descriptor_shortages", "Times that connections had to wait: no open file was left.", "Health"),
    _counter("unknown_fields", "Fields ignored in bodies.", labels=("field",)),
    _counter("http_responses", "Answers by route.", "Traffic", ("route", "status")),
    _counter("steps", "Steps of the engine.", "Batch and KV cache"),
    _counter("tenant_prompt_tokens", "Prompt tokens prefilled, by tenant.", "Tenants", ("tenant",)),
    _counter("tenant_output_tokens", "Output tokens, by tenant.", "Tenants", ("tenant",)),
    _gauge("tenant_requests_waiting", "Sequences without a token yet, by tenant.", "Tenants", ("tenant",)),
    _gauge("tenant_requests_running", "Sequences that have a token and go on, by tenant.", "Tenants", ("tenant",)),
    _histogram("time_to_first_token_seconds", "Arrival to first token.", TTFT_S, "Latency"),
    _histogram("inter_token_latency_seconds", "Gap between two outputs.", PER_TOKEN_S, "Latency"),
    _histogram("time_per_output_token_seconds", "Mean gap of a request.", PER_TOKEN_S, "Latency"),
    _histogram("request_seconds", "Arrival to last token.", REQUEST_S, "Latency"),
    _histogram("queue_seconds", "Submission to the first step.", REQUEST_S, "Latency"),
    _histogram("inference_seconds", "First step to last token.", REQUEST_S),
    _histogram("prefill_seconds", "First step to first token.", REQUEST_S, "Latency"),
    _histogram("decode_seconds", "First token to last token.", REQUEST_S, "Latency"),
    _histogram("prompt_tokens", "Prompt tokens of a sequence.", "tokens", "Lengths"),
    _histogram("generated_tokens", "Output tokens of a sequence.", "tokens", "Lengths"),
    _histogram("longest_choice_tokens", "Output tokens of the longest of n.", "tokens"),
    _histogram("choices", "n as asked for.", CHOICES),
    _histogram("max_tokens", "Bound on output tokens, as asked or by default.", "tokens", "Lengths"),
    _histogram("prefill_computed_tokens", "Prompt tokens not in the cache.", "tokens", "Lengths"),
    _histogram("step_tokens", "Tokens of a step; the count is a heartbeat.", STEP_TOKENS, "Batch and KV cache"),
    _histogram("step_seconds", "Time of a step in the engine.", STEP_S, "Batch and KV cache"),
    _histogram("step_host_seconds", "Time the worker's control took for a step: taking in the last, planning the next.",
               HOST_S, "Batch and KV cache"),
)  # fmt: skip


def _vllm(name: str, kind: Kind, same_as: str, *, labels: tuple[str, ...] = (), text: str = "") -> Definition:
    """`same_as` is a native name without its prefix; its text and buckets are taken over."""
    native = next((one for one in NATIVE if one.name == f"penstock_{same_as}"), None)
    assert native is not None or not same_as, same_as
    return Definition(
        name=f"vllm:{name}", kind=kind, text=text or (native.text if native else ""), labels=(*VLLM_LABELS, *labels),
        buckets=native.buckets if native else (), same_as=native.name if native else "",
    )  # fmt: skip


VLLM: Final = (
    _vllm("num_requests_running", "gauge", "requests_running"),
    _vllm("num_requests_waiting", "gauge", "requests_waiting"),
    _vllm("kv_cache_usage_perc", "gauge", "", text="Share of KV blocks in use, 0 to 1."),
    _vllm("lora_requests_info", "gauge", "", text="Adapters that requests wait for or run with.",
          labels=("max_lora", "waiting_lora_adapters", "running_lora_adapters")),
    _vllm("cache_config_info", "gauge", "", text="1; the labels say how KV is kept.",
          labels=("block_size", "num_gpu_blocks")),
    _vllm("prompt_tokens", "counter", "prompt_tokens_received"),
    _vllm("generation_tokens", "counter", "tokens_generated"),
    _vllm("prompt_tokens_cached", "counter", "prompt_tokens_cached"),
    _vllm("request_success", "counter", "", text="Sequences by outcome.", labels=("finished_reason",)),
    _vllm("num_preemptions", "counter", "preemptions"),
    _vllm("prefix_cache_queries", "counter", "", text="Tokens looked up in the cache."),
    _vllm("prefix_cache_hits", "counter", "", text="Tokens found there."),
    _vllm("external_prefix_cache_queries", "counter", "", text="Tokens looked up outside the worker."),
    _vllm("external_prefix_cache_hits", "counter", "", text="Tokens found there."),
    _vllm("time_to_first_token_seconds", "histogram", "time_to_first_token_seconds"),
    _vllm("inter_token_latency_seconds", "histogram", "inter_token_latency_seconds"),
    _vllm("request_time_per_output_token_seconds", "histogram", "time_per_output_token_seconds"),
    _vllm("e2e_request_latency_seconds", "histogram", "request_seconds"),
    _vllm("request_queue_time_seconds", "histogram", "queue_seconds"),
    _vllm("request_inference_time_seconds", "histogram", "inference_seconds"),
    _vllm("request_prefill_time_seconds", "histogram", "prefill_seconds"),
    _vllm("request_decode_time_seconds", "histogram", "decode_seconds"),
    _vllm("request_prompt_tokens", "histogram", "prompt_tokens"),
    _vllm("request_generation_tokens", "histogram", "generated_tokens"),
    _vllm("request_max_num_generation_tokens", "histogram", "longest_choice_tokens"),
    _vllm("request_params_n", "histogram", "choices"),
    _vllm("request_params_max_tokens", "histogram", "max_tokens"),
    _vllm("request_prefill_kv_computed_tokens", "histogram", "prefill_computed_tokens"),
    _vllm("iteration_tokens_total", "histogram", "step_tokens"),
)  # fmt: skip

DEFINITIONS: Final = (*NATIVE, *VLLM)


def by_name() -> dict[str, Definition]:
    """Family name to definition."""
    return {one.name: one for one in DEFINITIONS}


def series_names() -> frozenset[str]:
    """Everything a query can ask for."""
    return frozenset(name for one in DEFINITIONS for name in one.exposed)
