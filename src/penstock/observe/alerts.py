"""Alert rules for Prometheus. Thresholds are starting points: copy the file and set your own.

Each rule names the symptom a user would feel and links to the entry of docs/troubleshooting.md that says what to do.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

import yaml

from penstock.observe.definitions import series_names

GUIDE: Final = "docs/troubleshooting.md"
_NAME: Final = re.compile(r"\b(?:penstock_|vllm:)[a-zA-Z0-9_:]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """One rule: `expression` must hold for `minutes` before it fires. `guide` is a heading's anchor in the guide."""

    name: str
    expression: str
    minutes: int
    severity: str
    summary: str
    guide: str


ALERTS: Final = (
    Alert(name="PenstockNotReady", expression="max by (instance) (penstock_ready) == 0", minutes=2,
          severity="critical", summary="{{ $labels.instance }} takes no requests.", guide="ready-answers-503"),
    Alert(name="PenstockStalled", expression="max by (instance) (penstock_stalled_seconds) > 30", minutes=0,
          severity="critical", guide="health-says-stalled",
          summary="{{ $labels.instance }} has work and made no step for {{ $value | humanizeDuration }}."),
    Alert(name="PenstockNoHeartbeat", minutes=1, severity="critical",
          expression="rate(vllm:iteration_tokens_total_count[1m]) == 0 and on (instance) sum by (instance) "
          "(penstock_requests_in_flight) > 0",
          summary="{{ $labels.instance }} has requests in flight and makes no steps.", guide="health-says-stalled"),
    Alert(name="PenstockWorkerRestarts", minutes=0, severity="warning",
          expression="increase(penstock_worker_restarts_total[15m]) > 0",
          summary="{{ $labels.instance }} replaced its worker {{ $value | humanize }} times in 15 minutes.",
          guide="the-worker-is-replaced-again-and-again"),
    Alert(name="PenstockOutOfFiles", minutes=0, severity="warning",
          expression="increase(penstock_descriptor_shortages_total[15m]) > 0",
          summary="{{ $labels.instance }} lets clients wait: it may have no more files open.",
          guide="no-connection-can-be-accepted"),
    Alert(name="PenstockRejecting", minutes=5, severity="warning",
          expression="sum by (instance) (rate(penstock_rejections_total[5m])) / "
          "clamp_min(sum by (instance) (rate(penstock_http_responses_total{route=~\"/v1/.*\"}[5m])), 0.001) > 0.05",
          summary="{{ $labels.instance }} refuses {{ $value | humanizePercentage }} of its requests.",
          guide="429-server_overloaded"),
    Alert(name="PenstockServerErrors", minutes=5, severity="critical",
          expression="sum by (instance) (rate(penstock_http_responses_total{status=~\"5..\",status!=\"503\"}[5m])) > 0",
          summary="{{ $labels.instance }} answers with server errors.", guide="500-internal_error"),
    Alert(name="PenstockSlowFirstToken", minutes=10, severity="warning",
          expression="histogram_quantile(0.95, sum by (le, instance) "
          "(rate(penstock_time_to_first_token_seconds_bucket[5m]))) > 5",
          summary="p95 of time to first token on {{ $labels.instance }} is {{ $value | humanizeDuration }}.",
          guide="the-first-token-takes-long"),
    Alert(name="PenstockSlowTokens", minutes=10, severity="warning",
          expression="histogram_quantile(0.95, sum by (le, instance) "
          "(rate(penstock_inter_token_latency_seconds_bucket[5m]))) > 0.5",
          summary="p95 of the gap between tokens on {{ $labels.instance }} is {{ $value | humanizeDuration }}.",
          guide="tokens-come-slowly"),
    Alert(name="PenstockKvFull", minutes=10, severity="warning",
          expression="sum by (instance) (penstock_kv_blocks{use=\"held\"}) / "
          "clamp_min(sum by (instance) (penstock_kv_blocks), 1) > 0.95",
          summary="{{ $value | humanizePercentage }} of the KV blocks of {{ $labels.instance }} are in use.",
          guide="sequences-give-way-preemptions"),
    Alert(name="PenstockPreempting", minutes=10, severity="warning",
          expression="sum by (instance) (rate(penstock_preemptions_total[5m])) > 1",
          summary="{{ $labels.instance }} makes {{ $value | humanize }} sequences a second give way.",
          guide="sequences-give-way-preemptions"),
)  # fmt: skip


def rules() -> str:
    """A rule file for Prometheus."""
    made = [
        {
            "alert": one.name,
            "expr": one.expression,
            "for": f"{one.minutes}m",
            "labels": {"severity": one.severity},
            "annotations": {"summary": one.summary, "runbook": f"{GUIDE}#{one.guide}"},
        }
        for one in ALERTS
    ]
    return yaml.safe_dump({"groups": [{"name": "penstock", "rules": made}]}, sort_keys=False, width=120)


def unknown_names(expression: str) -> list[str]:
    """Metrics that a query asks for and that no definition has.

    >>> unknown_names("rate(penstock_steps_total[5m]) + penstock_steps")
    ['penstock_steps']
    """
    known = series_names()
    return [name for name in _NAME.findall(expression) if name not in known]
