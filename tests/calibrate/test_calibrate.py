"""Calibration: the designed steps are the engine's own, the fit finds what was put in, and simulate takes the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from penstock.calibrate.designed import DesignedSteps
from penstock.calibrate.host import Host, fastest, fit, loads
from penstock.calibrate.machine import copies, products
from penstock.calibrate.operators import OperatorBench
from penstock.calibrate.run import Calibration, Options
from penstock.calibrate.stream import KernelResult, StreamResult
from penstock.calibrate.timed_kernels import TimedKernels
from penstock.catalog import model_shape, resolve_model
from penstock.catalog.hardware_load import device
from penstock.deployment import Deployment
from penstock.engine.engine import Engine
from penstock.engine.loader import LoadedModel, load_model
from penstock.engine.models.decoder import Decoder
from penstock.engine.ops.kernels import kernels_for
from penstock.errors import InvalidDeployment
from penstock.runtime.schedule import Done, Header, Plan, Schedule
from penstock.runtime.simulate import simulate
from penstock.twin.load import StepLoad


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    return load_model(resolve_model("millrace"), dtype="float32", device="cpu")


def test_a_designed_step_runs_the_rows_and_reads_the_context_it_was_asked_for(model: LoadedModel) -> None:
    kernels = TimedKernels(kernels_for(model.device))
    assert isinstance(model.model, Decoder)
    if (layers := model.model.whole(kernels)) is not None:
        kernels.watch(layers)
    engine = Engine(model, blocks=64, block_tokens=16, max_seqs=10, kernels=kernels)
    steps = DesignedSteps(engine, blocks=64, block_tokens=16, longest=256)
    for sequences, context, chunks in ((3, 100, ()), (0, 0, ((48, 40),)), (8, 30, ((0, 17), (16, 5)))):
        steps.open(sequences, context, 4)
        for _ in range(3):
            kernels.clear()
            result = steps.step(*chunks)
            assert len(result.tokens) == sequences + len(chunks)
            assert not result.failed
            rows = sequences + sum(n for _, n in chunks)
            calls = kernels.take(rows)
            attention = [call for call in calls if call.kernel == "attention"]
            assert [call.rows for call in attention] == [rows] * 4
            products = [call for call in calls if call.kernel == "linear"]
            assert len(products) == 4 * 4 + 1
            assert min(call.seconds for call in calls) > 0
    kernels.leave()
    engine.check()
    assert engine.statistics()["sequences"] <= 8 + 2


def test_timed_kernels_change_no_result(model: LoadedModel) -> None:
    plain = kernels_for(model.device)
    timed = TimedKernels(plain)
    x, weight = torch.randn(5, 64), torch.randn(32, 64)
    assert torch.equal(timed.linear(x, weight, None), plain.linear(x, weight, None))
    [call] = timed.calls
    assert (call.kernel, call.rows, call.columns, call.inner) == ("linear", 5, 32, 64)
    assert call.seconds > 0


@pytest.mark.parametrize(("first_s", "bend"), [(0.0, 8), (1e-4, 8), (1e-4, 4)])
def test_the_fit_finds_the_parts_of_the_host_s_time(first_s: float, bend: int) -> None:
    generator = np.random.default_rng(0)
    steps, operators = [], []
    for _ in range(400):
        chunks = tuple((0, int(n)) for n in generator.integers(1, 300, generator.integers(0, 3)))
        load = StepLoad(decoding=int(np.exp(generator.uniform(0, np.log(64)))), chunks=chunks)
        device_s = float(generator.uniform(1e-3, 1e-2))
        sequences = load.decoding + len(chunks)
        host = 4e-4 + 3e-5 * sequences + first_s * min(sequences, bend) + 2e-6 * sum(n for _, n in chunks)
        steps.append((load, (device_s + host) * float(generator.normal(1, 0.005))))
        operators.append(device_s)
    found = fit(steps, operators)
    assert found.step_s == pytest.approx(4e-4, rel=0.4)
    assert found.request_s == pytest.approx(3e-5, rel=0.2)
    assert found.token_s == pytest.approx(2e-6, rel=0.5)
    assert found.first_request_s == pytest.approx(first_s, rel=0.2, abs=1e-5)
    if first_s:
        assert found.first_requests == bend
    assert found.median_error < 0.02
    assert abs(found.bias) < 0.01


def test_no_part_of_the_host_s_time_is_negative() -> None:
    steps = [(StepLoad(decoding=n), 1e-3) for n in range(1, 50)]
    found = fit(steps, [1e-3 + 1e-6 * n for n in range(1, 50)])
    assert min(found.step_s, found.request_s, found.first_request_s, found.token_s) >= 0


def test_steps_after_a_pause_tell_nothing_about_the_pace() -> None:
    header = Header(format=1, penstock="", deployment={}, blocks=1, block_tokens=1, max_sequence_tokens=1)
    events = [
        Plan(t=0, n=1, decoding=1), Plan(t=1, n=2, decoding=2, chunks=[("a", 5, 7, True)]),
        Done(t=11, n=1, start=1, end=10), Done(t=26, n=2, start=10, end=25),
        Plan(t=100, n=3, decoding=1), Done(t=120, n=3, start=101, end=119),
    ]  # fmt: skip
    schedule = Schedule(header, list(events))
    [(load, seconds)] = list(loads(schedule))
    assert not list(loads(schedule, (0.0, 10e-9)))
    assert (load.decoding, load.chunks, load.sampled) == (2, ((5, 7),), 3)
    assert seconds == pytest.approx(15e-9)


def test_what_calibrate_writes_is_what_simulate_takes(
    model: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quick pass over few points stands for the whole grid."""
    monkeypatch.setenv("PENSTOCK_HARDWARE_DIR", str(tmp_path))
    for module, name, value in (
        ("operators", "SEQUENCES", (1, 4)), ("operators", "CONTEXTS", (32,)), ("operators", "CHUNKS", (16, 64)),
        ("operators", "PASTS", (0,)), ("operators", "PASSES", 1), ("operators", "POOL_BYTES", 1 << 22),
        ("machine", "SHAPES", ((64, 64),)), ("machine", "ROWS", (1, 8)), ("machine", "COLD_BYTES", 1),
        ("machine", "SWAPPED_BLOCKS", (1, 4)),
    ):  # fmt: skip
        monkeypatch.setattr(f"penstock.calibrate.{module}.{name}", value)
    run = Calibration(Options(name="bench-box", threads=1))
    bench = OperatorBench(model, model_shape("millrace"), longest=128, dtype="float32")
    with torch.inference_mode():
        assert len(list(bench.run())) == len(bench.points()) == 4
        run.lines = [*bench.lines(), *products(kernels_for(model.device), "float32")]
        run.copies = copies(model.architecture, "float32", 16)
    run.peaks = {"float32": 1e11, "bfloat16": 1e11}
    run.stream = StreamResult("torch", 1, 1, {"copy": KernelResult(1.0, 1.0, 10**10)}, 0.0)
    run.host = Host(
        step_s=1e-3, request_s=1e-5, first_request_s=5e-5, first_requests=4, token_s=1e-6, steps=10, median_error=0.1,
        bias=0.0,
    )  # fmt: skip
    path, table = run.write()
    assert {path.name, table.name} == {"bench-box.yaml", "bench-box.operators.csv"}
    found = device("bench-box")
    assert found == run.device()
    assert found.host["step_s"].basis == "measured"
    kinds = {line.kind for line in run.lines}
    assert kinds >= {"qkv", "out_proj", "gate_up", "down", "lm_head", "norm", "rope", "activation", "embedding",
                     "sampler", "attention_prefill", "attention_decode"}  # fmt: skip
    result = simulate(
        Deployment.load(
            None,
            {"hardware.name": "bench-box", "workload.requests": 5, "workload.prompt_tokens": "32",
             "workload.output_tokens": "4", "workload.rate": 5},
        )
    )  # fmt: skip
    assert len(result.requests) == 5
    assert result.basis_s["measured"] > 0
    assert (result.requests.finish_s > result.requests.arrival_s).all()


def test_of_several_runs_the_least_disturbed_one_counts() -> None:
    calm, disturbed = (
        [(StepLoad(decoding=n), 1.0 * n) for n in (1, 2)],
        [(StepLoad(decoding=n), 1.7 * n) for n in (1, 9)],
    )
    assert fastest([disturbed, [], calm], lambda load: float(load.decoding)) == calm
    assert fastest([[]], lambda load: 1.0) == []


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden"])
def test_a_name_that_is_no_file_name_is_refused(name: str) -> None:
    with pytest.raises(InvalidDeployment, match="--out"):
        Calibration(Options(name=name))
