"""OpenTelemetry spans of a request that has ended: the request, and in it receive, queue, prefill and decode.

Spans are made afterwards from times that are kept anyway, so a token costs nothing. Nothing is sent anywhere unless
`server.trace_endpoint` names a collector; OpenTelemetry's own environment variables cannot turn it on. Attributes
follow its semantic conventions for generative AI; prompts and answers are never among them. A `traceparent` header
(W3C) makes the request a part of the caller's trace, and an unsampled one keeps it out.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, Self

from penstock.errors import InvalidDeployment
from penstock.observe.request_log import EndedRequest, EndedSequence

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.trace import Span

    Attributes = Mapping[str, str | bool | int | float | Sequence[str]]

EXPORT_TIMEOUT_S: Final = 5.0
OPERATIONS: Final = {"/v1/completions": "text_completion", "/v1/embeddings": "embeddings"}
"""Route to gen_ai.operation.name; all others are chat."""


def require_packages(endpoint: str) -> None:
    """Raises InvalidDeployment: what sends spans to a collector is not installed."""
    try:
        import opentelemetry.exporter.otlp.proto.http.trace_exporter
        import opentelemetry.sdk.trace.export  # noqa: F401
    except ImportError:
        raise InvalidDeployment(
            field="server.trace_endpoint", value=endpoint.rpartition("@")[2],  # before it stands a password
            why="OpenTelemetry is not installed", remedy="pip install 'penstock[otel]', or leave it out",
        ) from None  # fmt: skip


class Tracer:
    """Makes spans and hands them to a collector in batches, on a thread of their own."""

    def __init__(self, version: str, processor: SpanProcessor) -> None:
        """Raises ImportError without opentelemetry-sdk."""
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._provider = TracerProvider(
            resource=Resource.create({"service.name": "penstock", "service.version": version})
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("penstock", version)
        self._propagator = TraceContextTextMapPropagator()

    @classmethod
    def to(cls, endpoint: str, version: str) -> Self:
        """A tracer that sends to a collector over OTLP/HTTP. Raises InvalidDeployment: the packages are missing."""
        require_packages(endpoint)
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        exporter = OTLPSpanExporter(endpoint=endpoint, timeout=EXPORT_TIMEOUT_S)
        return cls(version, BatchSpanProcessor(exporter))

    def ended(self, request: EndedRequest, headers: Mapping[str, str]) -> None:
        """The spans of a request that has ended just now. `headers`: its traceparent and tracestate, if any."""
        now = time.time()
        begin = now - request.seconds
        context = self._propagator.extract(headers)
        operation = OPERATIONS.get(request.route, "chat")
        root = self._span(f"{operation} {request.model}", context, begin, server=True)
        for name, value in _attributes(request, operation).items():
            root.set_attribute(name, value)
        if request.failed:
            from opentelemetry.trace import Status, StatusCode

            root.set_status(Status(StatusCode.ERROR, request.outcome))
        inside = _inside(root, context)
        handed_on = begin + request.receive_s
        self._span("receive", inside, begin).end(_ns(handed_on))
        for index, one in enumerate(request.sequences):
            self._phases(one, index, inside, handed_on)
        root.end(_ns(now))

    def close(self) -> None:
        """Send what is left, for EXPORT_TIMEOUT_S at most a batch."""
        self._provider.shutdown()

    def _phases(self, one: EndedSequence, index: int, inside: Context, at: float) -> None:
        for name, seconds in (("queue", one.queue_s), ("prefill", one.prefill_s), ("decode", one.decode_s)):
            if seconds is None or (name != "queue" and one.first_token_s is None):
                return
            span = self._span(name, inside, at)
            span.set_attribute("penstock.choice", index)
            at += seconds
            span.end(_ns(at))

    def _span(self, name: str, context: Context, at: float, *, server: bool = False) -> Span:
        from opentelemetry.trace import SpanKind

        kind = SpanKind.SERVER if server else SpanKind.INTERNAL
        return self._tracer.start_span(name, context, kind, start_time=_ns(at))


def _attributes(request: EndedRequest, operation: str) -> Attributes:
    reasons = [one.finish_reason for one in request.sequences if one.finish_reason is not None]
    first = [one.first_token_s for one in request.sequences if one.first_token_s is not None]
    made: dict[str, str | bool | int | float | Sequence[str]] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "penstock",
        "gen_ai.request.model": request.model,
        "gen_ai.response.model": request.model,
        "gen_ai.request.max_tokens": request.max_tokens,
        "gen_ai.request.temperature": request.temperature,
        "gen_ai.request.top_p": request.top_p,
        "gen_ai.request.choice.count": len(request.sequences),
        "gen_ai.response.finish_reasons": reasons,
        "gen_ai.usage.input_tokens": request.prompt_tokens,
        "gen_ai.usage.output_tokens": request.output_tokens,
        "gen_ai.usage.cache_read.input_tokens": request.cached_tokens,
        "http.route": request.route,
        "penstock.request_id": request.request_id,
        "penstock.tenant": request.tenant,
        "penstock.stream": request.stream,
    }
    if request.seed is not None:
        made["gen_ai.request.seed"] = request.seed
    if first:
        made["gen_ai.response.time_to_first_chunk"] = min(first)
    if request.failed:
        made["error.type"] = request.outcome
    return made


def _inside(span: Span, context: Context) -> Context:
    from opentelemetry.trace import set_span_in_context

    return set_span_in_context(span, context)


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
