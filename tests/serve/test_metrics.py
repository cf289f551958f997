"""SERVING-CHECKLIST section 9: the names, types, labels and buckets that dashboards and autoscalers read."""

from __future__ import annotations

import re
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from penstock.deployment import Deployment
from penstock.errors import Overloaded, RequestFailed
from penstock.observe.definitions import NATIVE
from penstock.serve.histogram import Histogram
from penstock.serve.metrics import MAX_FIELD_NAMES, MAX_TENANTS, Metrics

from .conftest import Scripted
from .scripted import ScriptedService, raising, say

GOLDEN = Path(__file__).parents[1] / "goldens" / "metrics.txt"
TTFT = "0.001 0.005 0.01 0.02 0.04 0.06 0.08 0.1 0.25 0.5 0.75 1 2.5 5 7.5 10 20 40 80 160 640 2560"
PER_TOKEN = "0.01 0.025 0.05 0.075 0.1 0.15 0.2 0.3 0.4 0.5 0.75 1 2.5 5 7.5 10 20 40 80"
REQUEST = "0.3 0.5 0.8 1 1.5 2 2.5 5 10 15 20 30 40 50 60 120 240 480 960 1920 7680"


def numbers(line: str) -> list[float]:
    return [float(one) for one in line.split()]


def scrape(scripted: Scripted) -> dict[str, float]:
    """Sample name with labels -> value."""
    lines = [line for line in scripted.http.get("/metrics").text.splitlines() if not line.startswith("#")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def test_families_types_and_labels_are_those_of_the_golden_file(scripted: Scripted) -> None:
    """A change to the golden file is a change that users' dashboards see: deprecate first, then remove."""
    scripted.complete(golden_unknown=1)
    scripted.complete(temperature=9)
    lines = []
    for family in text_string_to_metric_families(scripted.http.get("/metrics").text):
        labels = sorted({label for sample in family.samples for label in sample.labels} - {"le"})
        lines.append(f"{family.type} {family.name} {','.join(labels)}".rstrip())
    assert lines == GOLDEN.read_text().splitlines()


def test_buckets_are_in_seconds_and_as_published(scripted: Scripted) -> None:
    bounds: dict[str, list[float]] = {}
    for name in scrape(scripted):
        if found := re.match(r'(vllm:\w+)_bucket\{.*le="([^"+]+)"', name):
            bounds.setdefault(found.group(1), []).append(float(found.group(2)))
    assert bounds["vllm:time_to_first_token_seconds"] == numbers(TTFT)
    assert bounds["vllm:inter_token_latency_seconds"] == numbers(PER_TOKEN)
    assert bounds["vllm:request_time_per_output_token_seconds"] == numbers(PER_TOKEN)
    assert bounds["vllm:e2e_request_latency_seconds"] == numbers(REQUEST)
    for phase in ("queue", "inference", "prefill", "decode"):
        assert bounds[f"vllm:request_{phase}_time_seconds"] == numbers(REQUEST)
    assert bounds["vllm:request_prompt_tokens"][:6] == [1, 2, 5, 10, 20, 50]


def test_one_request_is_counted_everywhere_it_should_be(scripted: Scripted) -> None:
    before = scrape(scripted)
    scripted.complete(prompt="four", n=2, max_tokens=9)
    after = scrape(scripted)
    label = '{engine="0",model_name="scripted"}'

    def grown(name: str) -> float:
        return after[name] - before[name]

    assert grown(f"vllm:prompt_tokens_total{label}") == 8
    assert grown(f"vllm:generation_tokens_total{label}") == 12
    assert grown(f"vllm:prompt_tokens_cached_total{label}") == 6
    assert grown('vllm:request_success_total{engine="0",finished_reason="stop",model_name="scripted"}') == 2
    assert grown(f"vllm:time_to_first_token_seconds_count{label}") == 2
    assert grown(f"vllm:inter_token_latency_seconds_count{label}") == 10
    assert grown(f"vllm:request_params_n_sum{label}") == 2
    assert grown(f"vllm:request_params_n_count{label}") == 1
    assert grown(f"vllm:request_params_max_tokens_sum{label}") == 18
    assert grown(f"vllm:request_max_num_generation_tokens_sum{label}") == 6
    assert grown(f"vllm:request_prefill_kv_computed_tokens_sum{label}") == 2
    assert grown(f"vllm:request_queue_time_seconds_count{label}") == 2
    assert abs(grown(f"vllm:request_inference_time_seconds_sum{label}") - 0.01) < 1e-9
    assert after["penstock_requests_in_flight"] == 0
    assert grown('penstock_tenant_prompt_tokens_total{tenant="anonymous"}') == 8
    assert grown('penstock_tenant_output_tokens_total{tenant="anonymous"}') == 12
    assert after['penstock_tenant_requests_waiting{tenant="anonymous"}'] == 0
    assert after['penstock_tenant_requests_running{tenant="anonymous"}'] == 0
    assert grown('penstock_http_responses_total{route="/v1/completions",status="200"}') == 1


def test_every_step_advances_the_heartbeat(scripted: Scripted) -> None:
    name = 'vllm:iteration_tokens_total_count{engine="0",model_name="scripted"}'
    before = scrape(scripted)[name]
    for number in (1, 2, 3):
        scripted.service.step(number, tokens=7)
    assert scrape(scripted)[name] == before + 3


def test_cache_usage_is_a_share_and_comes_from_the_worker(scripted: Scripted) -> None:
    assert scrape(scripted)['vllm:kv_cache_usage_perc{engine="0",model_name="scripted"}'] == 0.4


def test_refusals_are_counted_by_code(scripted: Scripted) -> None:
    name = 'penstock_errors_total{code="model_not_found"}'
    before = scrape(scripted).get(name, 0)
    scripted.complete(model="other")
    assert scrape(scripted)[name] == before + 1


def test_what_was_right_and_not_taken_is_a_rejection_and_what_was_wrong_is_not(scripted: Scripted) -> None:
    def rejected() -> dict[str, float]:
        return {name: value for name, value in scrape(scripted).items() if name.startswith("penstock_rejections_total")}

    before = rejected()
    scripted.complete(temperature=9)
    assert rejected() == before
    scripted.service.script = raising(Overloaded("full", retry_after_s=1.0))
    assert scripted.complete().status_code == 429
    name = 'penstock_rejections_total{reason="server_overloaded"}'
    assert rejected() == before | {name: before[name] + 1}


def test_a_sequence_that_failed_leaves_no_trace_in_its_tenants_gauges(scripted: Scripted) -> None:
    for after in (b"", b"ab"):
        scripted.service.script = raising(RequestFailed("no"), after)
        scripted.complete()
    now = scrape(scripted)
    assert now['penstock_tenant_requests_waiting{tenant="anonymous"}'] == 0
    assert now['penstock_tenant_requests_running{tenant="anonymous"}'] == 0


def test_tenants_beyond_the_bound_share_one_label() -> None:
    metrics = Metrics(ScriptedService(Deployment()), "0")  # type: ignore[arg-type]
    for number in range(MAX_TENANTS + 50):
        metrics.entered(f"tenant {number}")
    assert len(metrics.tenants) == MAX_TENANTS + 1
    assert metrics.tenants["other"].waiting == 50
    assert sum(one.waiting for one in metrics.tenants.values()) == MAX_TENANTS + 50


def test_native_names_follow_the_rules_of_prometheus() -> None:
    for one in NATIVE:
        assert re.fullmatch(r"penstock_[a-z_]+", one.name), one.name
        assert not one.name.endswith(("_total", "_count", "_sum", "_bucket", "_ms", "_percent")), one.name
        assert one.text.endswith("."), one.name
        assert "le" not in one.labels


def test_names_that_clients_make_up_cannot_flood_the_labels() -> None:
    metrics = Metrics(ScriptedService(Deployment()), "0")  # type: ignore[arg-type]
    for number in range(200):
        metrics.unknown_field(f"made up {number}")
    assert len(metrics.unknown_fields) == MAX_FIELD_NAMES + 1
    assert metrics.unknown_fields["other"] == 200 - MAX_FIELD_NAMES


def test_a_histogram_counts_inclusive_upper_bounds() -> None:
    histogram = Histogram((1, 2))
    for value in (0.5, 1, 1.5, 2, 3):
        histogram.observe(value)
    assert histogram.cumulative() == [("1.0", 2), ("2.0", 4), ("+Inf", 5)]
    assert histogram.sum == 8


def test_a_stop_string_counts_as_stop(scripted: Scripted) -> None:
    name = 'vllm:request_success_total{engine="0",finished_reason="stop",model_name="scripted"}'
    before = scrape(scripted)[name]
    scripted.service.script = say("a stop b")
    scripted.complete(stop="stop")
    assert scrape(scripted)[name] == before + 1
