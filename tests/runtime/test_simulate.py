"""A deployment, simulated: same bits wherever it runs, nothing lost, nothing beyond the hardware, errors that help."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from penstock.catalog import model_shape
from penstock.catalog.hardware_load import device
from penstock.deployment import Deployment, overlaid
from penstock.errors import BadInput, InvalidDeployment
from penstock.report.simulation import COMPLETED, REJECTED, UNFINISHED, SimulationResult
from penstock.report.summary import summary
from penstock.runtime.modelled import model
from penstock.runtime.simulate import simulate
from penstock.runtime.virtual import Limits, Stuck
from penstock.twin.load import StepLoad
from penstock.twin.peak import Limits as Hardware
from penstock.twin.peak import Peak

BASE: dict[str, Any] = {
    "model": {"path": "llama-3-8b"},
    "hardware": {"name": "h100-sxm"},
    "twin": {"price": "roofline"},
    "workload": {"rate": 30.0, "requests": 300, "prompt_tokens": "lognormal:6:0.8", "output_tokens": "uniform:1:120"},
}


def deployment(**overrides: Any) -> Deployment:
    """The base deployment with dotted keys (a double underscore for the dot) laid over it."""
    return Deployment.parse(overlaid(BASE, {key.replace("__", "."): value for key, value in overrides.items()}))


def digest(result: SimulationResult, *, samples: bool = True) -> str:
    columns, series = result.requests, result.series if samples else ()
    parts = (columns.arrival_s, columns.first_token_s, columns.finish_s, columns.output_tokens, columns.cached_tokens,
             columns.replica, columns.outcome, *(one.step_s for one in series))  # fmt: skip
    return hashlib.sha256(b"".join(np.ascontiguousarray(part).tobytes() for part in parts)).hexdigest()


def test_every_request_ends_once_with_all_its_tokens_and_in_order_of_time() -> None:
    columns = simulate(deployment()).requests
    assert len(columns) == 300
    assert (columns.outcome == COMPLETED).all()
    assert (columns.arrival_s < columns.first_token_s).all()
    assert (columns.first_token_s <= columns.finish_s).all()
    assert columns.output_tokens.min() >= 1


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"policy__plan_ahead": False},
        {"cluster__replicas": 3, "cluster__router": "round_robin"},
        {"workload__law": "closed", "workload__rate": None, "workload__concurrency": 24},
        {"memory__kv_bytes": 200 * 2**20, "memory__host_bytes": 2**28, "policy__evict": "swap"},
        {"policy__name": "splitfuse", "memory__kv_bytes": 200 * 2**20, "memory__kind": "paged"},
    ],
)
def test_coasting_changes_no_bit(overrides: dict[str, Any]) -> None:
    asked = deployment(**overrides)
    one_by_one = simulate(asked, coast=False)
    coasted = simulate(asked)
    assert digest(coasted, samples=False) == digest(one_by_one, samples=False)
    assert (coasted.steps, coasted.busy_s) == (one_by_one.steps, pytest.approx(one_by_one.busy_s))


def test_same_seed_same_bits_in_another_process() -> None:
    asked = deployment(cluster__replicas=2, workload__cancel_fraction=0.2)
    code = (
        "import sys; sys.path.insert(0, '.')\n"
        "from tests.runtime.test_simulate import deployment, digest, simulate\n"
        "print(digest(simulate(deployment(cluster__replicas=2, workload__cancel_fraction=0.2))))"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert other.stdout.strip() == digest(simulate(asked))
    assert digest(simulate(deployment(workload__seed=1))) != digest(simulate(deployment()))


def test_nothing_is_faster_than_the_hardware() -> None:
    result = simulate(deployment(workload__law="batch", workload__rate=None, policy__max_seqs=256))
    peak = Peak(shape=model_shape("llama-3-8b"), limits=Hardware.of(device("h100-sxm")), causal=1.0)
    columns = result.requests
    alone = np.array([peak.prefill_s(int(tokens)) for tokens in columns.prompt_tokens])
    assert (columns.first_token_s - columns.arrival_s >= alone).all()
    assert columns.finish_s.max() >= alone.sum(), "all prompts together took less than their FLOP allow"


def test_a_step_taken_apart_costs_what_it_cost_whole() -> None:
    priced = model(deployment()).price
    for load in (
        StepLoad(decoding=17, decode_context=17 * 900, sampled=17),
        StepLoad(decoding=3, decode_context=30, sampled=4, chunks=((0, 48),)),
        StepLoad(chunks=((512, 512), (0, 128)), sampled=1),
        StepLoad(decoding=128, decode_context=128 * 5000, sampled=129, chunks=((4096, 1024),)),
    ):
        apart = priced.explain(load)
        assert apart.seconds == pytest.approx(priced.seconds(load), rel=0.01)
        assert sum(apart.by_kind.values()) == pytest.approx(apart.seconds)
        assert sum(apart.by_basis.values()) == pytest.approx(apart.seconds)


def test_the_result_says_what_it_rests_on() -> None:
    found = summary(simulate(deployment()))
    assert found["basis_share"]["assumed"] == pytest.approx(1.0)
    assert sum(found["operator_seconds"].values()) == pytest.approx(found["utilisation"] * found["duration"], rel=0.02)


def test_a_router_that_knows_prefixes_finds_more_of_them() -> None:
    shared = {
        "cluster__replicas": 4, "workload__shared_prefix.tokens": 512, "workload__shared_prefix.groups": 16,
        "workload__prompt_tokens": "64", "workload__requests": 400,
    }  # fmt: skip
    hits = {
        router: int(simulate(deployment(**shared, cluster__router=router)).requests.cached_tokens.sum())
        for router in ("round_robin", "prefix_aware")
    }
    assert hits["prefix_aware"] > hits["round_robin"] > 0


def test_a_later_turn_finds_the_history_with_its_answers() -> None:
    talk = deployment(
        workload__law="sessions", workload__rate=2.0, workload__turns="4", workload__prompt_tokens="100",
        workload__output_tokens="60", workload__think="1s", workload__requests=200,
    )  # fmt: skip
    columns = simulate(talk).requests
    later = columns.prompt_tokens > 100
    # All whole blocks of prompt and answer but the last token, which was never an input.
    expected = (columns.prompt_tokens[later] - 100 - 1) // 16 * 16
    assert later.sum() > 100
    assert (columns.cached_tokens[later] == expected).all()
    assert (columns.cached_tokens[~later] == 0).all()


def test_a_refusal_in_the_middle_of_a_stretch_stops_nobody() -> None:
    some_too_long = deployment(
        cluster__replicas=4, cluster__router="round_robin", workload__rate=2.0, workload__requests=120,
        workload__prompt_tokens="uniform:4000:9000", workload__output_tokens="200",
    )  # fmt: skip
    coasted, one_by_one = simulate(some_too_long), simulate(some_too_long, coast=False)
    assert digest(coasted, samples=False) == digest(one_by_one, samples=False)
    assert 0 < (coasted.requests.outcome == REJECTED).sum() < 120
    assert (coasted.requests.outcome != UNFINISHED).all()


def test_users_whose_every_request_is_refused_do_not_spin_for_ever() -> None:
    hopeless = deployment(
        workload__law="closed", workload__rate=None, workload__requests=None, workload__duration="10s",
        workload__prompt_tokens="9000",
    )  # fmt: skip
    with pytest.raises(Stuck, match="refusal"):
        simulate(hopeless)


def test_longer_than_the_model_was_made_for_is_refused_as_a_server_does() -> None:
    asked = deployment(workload__prompt_tokens="4000", workload__requests=5, model__max_sequence_tokens=1024)
    result = simulate(asked)
    assert (result.requests.outcome == REJECTED).all()
    assert any("exceeds 1024 tokens" in note for note in result.notes)


def test_where_the_time_goes_does_not_depend_on_coasting() -> None:
    batch = deployment(workload__law="batch", workload__rate=None, workload__requests=64,
                       workload__prompt_tokens="512", workload__output_tokens="1500")  # fmt: skip
    shares = []
    for coast in (True, False):
        found = simulate(batch, coast=coast).operator_s
        shares.append(found["attention_decode"] / sum(found.values()))
    assert shares[0] == pytest.approx(shares[1], abs=0.02)


@pytest.mark.parametrize("seconds", [1.0, 3.0])
def test_a_limit_in_virtual_time_keeps_what_had_begun(seconds: float) -> None:
    long = deployment(workload__law="batch", workload__rate=None, workload__requests=8, workload__output_tokens="2000")
    cut = [simulate(long, limits=Limits(virtual_s=seconds), coast=coast) for coast in (True, False)]
    assert cut[0].steps == cut[1].steps > 50
    assert (cut[0].requests.output_tokens == cut[1].requests.output_tokens).all()


def test_a_step_without_rows_runs_nothing_on_the_device() -> None:
    """What has ended is told to the executor by such a step; only the host works."""
    priced = model(deployment()).price
    assert priced.seconds(StepLoad()) == priced.host.step_s


def test_stages_of_a_pipeline_share_a_prompt_and_its_pairs() -> None:
    whole = model(deployment(model__path="llama-3-70b", layout__tensor_parallel=4)).price
    cut = model(deployment(model__path="llama-3-70b", layout__tensor_parallel=4, layout__pipeline_parallel=4)).price
    pairs = [
        sum(one.operator.work().flop * one.times for one in price.graph.prefill([price._piece(0, 16384)]))
        for price in (whole, cut)
    ]
    assert pairs[1] == pytest.approx(pairs[0] / 4, rel=1e-3)


@pytest.mark.parametrize(
    ("limits", "why"),
    [
        (Limits(virtual_s=2.0), "virtual time"),
        (Limits(events=200), "events"),
        (Limits(events=7), "events"),
        (Limits(wall_s=0.0), "wall time"),
    ],
)
def test_a_budget_ends_the_run_and_is_said(limits: Limits, why: str) -> None:
    result = simulate(deployment(workload__requests=5000), limits=limits)
    assert why in result.interrupted
    assert (result.requests.outcome == UNFINISHED).any() or why == "wall time"


def test_a_profile_file_prices_what_it_holds_and_says_so(tmp_path: Any) -> None:
    profile = tmp_path / "mine.csv"
    profile.write_text("operator,rows,us\ngate_up,1,400\ngate_up,2048,4000\nlm_head,1,900\nlm_head,512,1000\n")
    plain = simulate(deployment())
    result = simulate(deployment(twin__price="measured", twin__data=str(profile)))
    assert 0 < result.basis_s["measured"] < sum(result.basis_s.values())
    assert result.operator_s["gate_up"] > 1.5 * plain.operator_s["gate_up"]
    assert any("mine.csv" in note for note in result.notes)


def test_a_run_past_saturation_is_labelled() -> None:
    over = deployment(workload__rate=400.0, workload__requests=2000, workload__prompt_tokens="512")
    assert summary(simulate(over))["saturated"]
    assert not summary(simulate(deployment()))["saturated"]


@pytest.mark.parametrize(
    ("overrides", "field", "said"),
    [
        ({"model__path": "lama-3-8b"}, "model.path", "llama-3-8b"),
        ({"hardware__name": "h100-sx"}, "hardware.name", "h100-sxm"),
        ({"model__path": "llama-3-70b"}, "layout", "tensor_parallel: 2"),
        ({"layout__expert_parallel": 3}, "layout.expert_parallel", "divisor"),
        ({"twin__price": "calibrated"}, "twin.price", "calibrate"),
        ({"memory__kv_bytes": 1000}, "memory.kv_bytes", "bytes hold"),
        ({"memory__kv_bytes": 100 * 2**30}, "memory.kv_bytes", "more devices"),
        ({"layout__tensor_parallel": 3}, "layout.tensor_parallel", "32"),
        ({"twin__price": "learned"}, "twin.data", "penstock learn"),
        ({"twin__price": "measured", "twin__data": "nowhere"}, "twin.data", "no such file"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_runs(overrides: dict[str, Any], field: str, said: str) -> None:
    with pytest.raises(InvalidDeployment) as caught:
        simulate(deployment(**overrides))
    assert caught.value.field == field
    assert said in str(caught.value)


def test_a_trace_with_a_bad_line_is_refused_by_file_line_and_column(tmp_path: Any) -> None:
    trace = tmp_path / "bad.csv"
    trace.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.68,12,4\n2023-11-16 18:15:47,x,4\n")
    with pytest.raises(BadInput, match=r"bad\.csv:3 ContextTokens"):
        simulate(deployment(workload__trace=str(trace), workload__rate=None, workload__requests=None))


def test_through_idle_time_nothing_runs_and_power_is_idle() -> None:
    deployment = Deployment.load(
        None,
        {"model.path": "llama-3-8b", "hardware.name": "h100-sxm", "layout.tensor_parallel": 2, "twin.price": "roofline",
         "twin.idle_watts": 50, "cluster.replicas": 2, "cluster.router": "round_robin",
         "workload.law": "constant", "workload.rate": 0.1, "workload.requests": 7},
    )  # fmt: skip
    result = simulate(deployment)
    for one, requests in zip(result.series, (4, 3), strict=True):
        assert (np.diff(one.t_s) >= 0).all()
        gaps = np.flatnonzero((one.step_s[:-1] == 0) & (one.step_s[1:] == 0) & (np.diff(one.t_s) > 1.0))
        assert len(gaps) == requests - 1 + (one.replica == 1)  # After its last request the other still has one.
        for column, level in ((one.running, 0), (one.waiting, 0), (one.kv_used, 0), (one.power_w, 100.0)):
            assert (column[gaps] == level).all()
            assert (column[gaps + 1] == level).all()
        assert one.running.max() == 1
        assert one.power_w.max() > 200.0
    # The area under the curves of power is the energy, but for what lies between samples.
    area = sum(float(np.trapezoid(one.power_w, one.t_s)) for one in result.series)
    assert result.energy_j == pytest.approx(area, rel=0.1)


def test_an_answer_that_max_tokens_cuts_is_what_the_next_turn_repeats() -> None:
    def prompts(**more: Any) -> dict[int, list[int]]:
        deployment = Deployment.load(
            None,
            {"model.path": "llama-3-8b", "hardware.name": "h100-sxm", "twin.price": "roofline",
             "workload.law": "sessions", "workload.turns": "3", "workload.rate": 1, "workload.requests": 9,
             "workload.prompt_tokens": "100", "workload.output_tokens": "80", **more},
        )  # fmt: skip
        columns = simulate(deployment).requests
        assert (columns.outcome == COMPLETED).all()
        found = {length: columns.output_tokens[columns.prompt_tokens == length].tolist()
                 for length in sorted(set(columns.prompt_tokens.tolist()))}  # fmt: skip
        cached = columns.cached_tokens[columns.prompt_tokens > 100]
        assert (cached >= columns.prompt_tokens[columns.prompt_tokens > 100] - 100 - 16).all()  # All that was said.
        return found

    assert list(prompts()) == [100, 280, 460]
    cut = prompts(**{"workload.max_tokens": 32})
    assert list(cut) == [100, 232, 364]
    assert {length for lengths in cut.values() for length in lengths} == {32}


def test_who_would_leave_after_the_cut_stays_to_the_end() -> None:
    base = {"model.path": "llama-3-8b", "hardware.name": "h100-sxm", "twin.price": "roofline",
            "workload.output_tokens": "80", "workload.requests": 50, "workload.cancel_fraction": 1}  # fmt: skip
    found = simulate(Deployment.load(None, {**base, "workload.max_tokens": 40})).requests
    assert set(found.output_tokens[found.outcome == COMPLETED].tolist()) == {40}
    assert (found.output_tokens[found.outcome != COMPLETED] < 40).all()
    assert 0 < (found.outcome == COMPLETED).sum() < 50
