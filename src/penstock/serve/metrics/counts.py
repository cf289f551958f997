"""What is counted, and when. Values come from three places: what the front end sees of each request,
`Service.on_step`, and the worker's newest `Statistics`, read when a scrape asks.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Final

from penstock.observe.buckets import CHOICES, HOST_S, PER_TOKEN_S, REQUEST_S, STEP_S, STEP_TOKENS, TTFT_S, one_two_five
from penstock.runtime.facts import StepReport, Timings
from penstock.serve.histogram import Histogram
from penstock.serve.metrics.exposition import Exposition

if TYPE_CHECKING:
    from penstock.runtime.service import Service

MAX_FIELD_NAMES: Final = 64
"""Distinct unknown field names that get their own label; clients choose the names, so there is a bound."""
MAX_TENANTS: Final = 128
"""Tenants that get their own label; the others share `other`."""
ANONYMOUS: Final = "anonymous"
"""The tenant of a server without keys."""
REJECTIONS: Final = frozenset({408, 429, 503})
"""Statuses of requests that were right and not taken."""
OUTCOMES: Final = ("stop", "length", "cancelled", "failed", "refused")


class TenantCounts:
    """One tenant's work and what it has here now."""

    __slots__ = ("output_tokens", "prompt_tokens", "running", "waiting")

    def __init__(self) -> None:
        self.waiting = self.running = 0
        """Sequences without a token, and with one."""
        self.prompt_tokens = self.output_tokens = 0


class Metrics:
    """Counts. One thread: the event loop's."""

    def __init__(self, service: Service, version: str) -> None:
        self.service, self.version = service, version
        tokens = one_two_five(service.info.max_sequence_tokens)
        self.ttft, self.itl, self.tpot = Histogram(TTFT_S), Histogram(PER_TOKEN_S), Histogram(PER_TOKEN_S)
        self.e2e, self.queue, self.inference = Histogram(REQUEST_S), Histogram(REQUEST_S), Histogram(REQUEST_S)
        self.prefill, self.decode = Histogram(REQUEST_S), Histogram(REQUEST_S)
        self.prompt, self.generated, self.longest = Histogram(tokens), Histogram(tokens), Histogram(tokens)
        self.max_tokens, self.computed, self.choices = Histogram(tokens), Histogram(tokens), Histogram(CHOICES)
        self.step_tokens, self.step_seconds = Histogram(STEP_TOKENS), Histogram(STEP_S)
        self.step_host = Histogram(HOST_S)
        self.prompt_tokens = self.generated_tokens = self.cached_tokens = self.steps = 0
        self.outcomes: Counter[str] = Counter(dict.fromkeys(OUTCOMES, 0))
        self.errors: Counter[str] = Counter()
        self.rejections: Counter[str] = Counter({"server_overloaded": 0, "service_unavailable": 0})
        self.responses: Counter[tuple[str, int]] = Counter()
        self.unknown_fields: Counter[str] = Counter()
        self.tenants: dict[str, TenantCounts] = {}
        self.in_flight = self.shortages = 0
        self._exposition = Exposition(self)
        service.on_step.append(self.stepped)

    def stepped(self, report: StepReport) -> None:
        """The engine finished a step."""
        self.steps += 1
        self.step_tokens.observe(report.tokens)  # also of steps without rows: watchdogs read it as a heartbeat
        if report.tokens:
            self.step_seconds.observe(report.seconds)
            self.step_host.observe(report.host_seconds)

    def out_of_files(self) -> None:
        """Connections must wait: there is no descriptor for them."""
        self.shortages += 1

    def tenant(self, name: str) -> TenantCounts:
        """The counts of a tenant; those that come after the first MAX_TENANTS share one."""
        label = name or ANONYMOUS
        counts = self.tenants.get(label)
        if counts is None:
            if len(self.tenants) >= MAX_TENANTS:
                label = "other"
            counts = self.tenants.setdefault(label, TenantCounts())
        return counts

    def entered(self, tenant: str = "") -> None:
        """A sequence was handed to the service."""
        self.in_flight += 1
        self.tenant(tenant).waiting += 1

    def first_token(self, tenant: str, prompt_tokens: int, ttft_s: float) -> None:
        """A sequence has its first token."""
        self.ttft.observe(ttft_s)
        self.prompt_tokens += prompt_tokens
        counts = self.tenant(tenant)
        counts.waiting -= 1
        counts.running += 1
        counts.prompt_tokens += prompt_tokens

    def left(
        self, outcome: str, *, prompt_tokens: int, output_tokens: int, cached_tokens: int, max_tokens: int,
        ttft_s: float | None, total_s: float, timings: Timings | None, tenant: str = "",
    ) -> None:  # fmt: skip
        """A sequence is over: stop, length, cancelled, failed or refused. `ttft_s` is None if no token came."""
        self.in_flight -= 1
        self.outcomes[outcome] += 1
        counts = self.tenant(tenant)
        counts.output_tokens += output_tokens
        if ttft_s is None:
            counts.waiting -= 1
        else:
            counts.running -= 1
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

    def failed(self, code: str, status: int = 0) -> None:
        """An error was answered; `code` is that of its body, `status` that of its head."""
        self.errors[code] += 1
        if status in REJECTIONS:
            self.rejections[code] += 1

    def unknown_field(self, name: str) -> None:
        """A body held a field that nothing here knows."""
        label = re.sub(r"[^A-Za-z0-9_.-]", "_", name[:64])
        if label not in self.unknown_fields and len(self.unknown_fields) >= MAX_FIELD_NAMES:
            label = "other"
        self.unknown_fields[label] += 1

    def exposition(self) -> bytes:
        """The text format of Prometheus."""
        return self._exposition.text()
