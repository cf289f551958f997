"""Steps that hold both prompts and decodes, and steps that attention groups take together."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.catalog import model_shape
from penstock.catalog.hardware_load import device
from penstock.twin.host import HostTime
from penstock.twin.layout import Layout, Precision
from penstock.twin.load import StepLoad
from penstock.twin.measured import Profile, read_profile
from penstock.twin.operators import DecodeAttention, Operator
from penstock.twin.price import Estimate
from penstock.twin.roofline import Roofline
from penstock.twin.step_graph import StepGraph
from penstock.twin.step_price import CUDA_GRAPH_SIZES, StepPrice

LINES = """operator,rows,context,chunk,us
attention_decode,1,100,,10
attention_decode,64,100,,10
attention_decode,1,1000,,100
attention_decode,64,1000,,100
attention_decode,1,100,128,30
attention_decode,64,100,128,30
attention_decode,1,100,512,50
attention_decode,64,100,512,50
attention_decode,1,1000,128,300
attention_decode,64,1000,128,300
attention_decode,1,1000,512,500
attention_decode,64,1000,512,500
"""


class Nothing:
    name = "nothing"

    def price(self, operator: Operator) -> Estimate:
        return Estimate(0.0, self.name, "assumed")


@pytest.fixture
def profile(tmp_path: Path) -> Profile:
    file = tmp_path / "profile.csv"
    file.write_text(LINES)
    return read_profile(file, Nothing())


def test_decodes_in_one_call_with_a_chunk_are_priced_by_their_own_lines(profile: Profile) -> None:
    decode = DecodeAttention(16, 16 * 100, 8, 2, 64)
    assert profile.price(decode).seconds == pytest.approx(10e-6)
    for chunk, microseconds in ((16, 30), (128, 30), (256, 40), (512, 50), (4096, 50)):
        assert profile.beside_chunk(decode, chunk) == pytest.approx(microseconds * 1e-6)


def test_a_mixed_step_takes_longer_than_its_parts_and_is_explained_by_the_same_prices(profile: Profile) -> None:
    shape = model_shape("llama-3-8b")
    price = StepPrice(StepGraph(shape, Layout(), Precision()), profile, HostTime())
    decodes = price.seconds(StepLoad(16, 16 * 499, 0, (), 16))
    mixed = StepLoad(16, 16 * 499, 0, ((0, 512),), 17)
    assert decodes == pytest.approx(shape.layers * 50e-6, rel=1e-3)
    assert price.seconds(mixed) == pytest.approx(shape.layers * 250e-6, rel=1e-3)
    assert price.explain(mixed).seconds == pytest.approx(price.seconds(mixed), rel=1e-3)


def test_attention_groups_take_the_largest_prompts_in_turn() -> None:
    graph = StepGraph(model_shape("qwen3-30b-a3b"), Layout(attention_dp=2, expert_parallel=2), Precision())
    assert graph.busiest([(0, 100), (0, 400), (0, 300), (0, 200)]) == [(0, 400), (0, 200)]


def _grouped(*, graphs: bool) -> StepPrice:
    graph = StepGraph(model_shape("qwen3-30b-a3b"), Layout(attention_dp=2, expert_parallel=2), Precision())
    h100 = Roofline(device("h100-sxm"))
    return StepPrice(graph, h100, HostTime(), graph_sizes=CUDA_GRAPH_SIZES if graphs else ())


def test_a_group_without_a_prompt_waits_for_the_one_that_has_it() -> None:
    price = _grouped(graphs=False)
    one, two = StepLoad(chunks=((0, 2048),), sampled=1), StepLoad(chunks=((0, 2048), (0, 2048)), sampled=2)
    halves = StepLoad(chunks=((0, 1024), (0, 1024)), sampled=2)
    # The same tokens in all; two groups with half of them each are done in about half the time.
    assert price.seconds(halves) < 0.7 * price.seconds(one)
    assert price.seconds(one) < price.seconds(two) < 1.5 * price.seconds(one)
    assert price.explain(one).seconds == pytest.approx(price.seconds(one), rel=1e-6)


@pytest.mark.parametrize("graphs", [False, True])
def test_groups_in_lockstep_are_priced_as_one_step_of_all(graphs: bool) -> None:
    price = _grouped(graphs=graphs)
    decodes = StepLoad(24, 24 * 800, 0, (), 24)
    together = StepLoad(48, 48 * 800, 0, (), 48)
    assert price.lockstep([decodes, decodes]) == pytest.approx(price.seconds(together), rel=1e-9)
    prompt = StepLoad(24, 24 * 800, 0, ((0, 1000),), 25)
    assert price.lockstep([decodes, prompt]) == pytest.approx(price.lockstep([prompt, decodes]))
    assert price.lockstep([decodes, prompt]) > price.lockstep([decodes, decodes])
    assert price.lockstep([prompt]) > price.lockstep([decodes])


def test_groups_share_a_captured_graph_of_the_size_that_the_largest_needs() -> None:
    price = _grouped(graphs=True)
    # 2 x 21 decodes run as 2 x 24: no more and no less than 24 each.
    assert price.base(42, 0, 42) == price.base(48, 0, 48)
    assert price.base(42, 0, 42) > price.base(32, 0, 32)


@pytest.mark.parametrize("overlapped", [False, True])
def test_the_host_s_time_bends_after_the_first_sequences(overlapped: bool) -> None:
    graph, h100 = StepGraph(model_shape("llama-3-8b"), Layout(), Precision()), Roofline(device("h100-sxm"))
    host = HostTime(step_s=0.1, request_s=1e-3, first_request_s=2e-3, first_requests=4, overlapped=overlapped)
    price, bare = StepPrice(graph, h100, host), StepPrice(graph, h100, HostTime())
    for decoding, chunks, host_s in ((1, (), 0.103), (4, (), 0.112), (8, (), 0.116), (3, ((0, 64), (0, 8)), 0.113)):
        load = StepLoad(decoding, 100 * decoding, 0, chunks, decoding + len(chunks))
        device_s = bare.seconds(load)
        expected = max(device_s, host_s) if overlapped else device_s + host_s
        assert price.seconds(load) == pytest.approx(expected)
        assert price.explain(load).seconds == pytest.approx(expected)
    assert host.words() == "100 ms a step, 1e+03 us a sequence (the first 4: 3e+03), 0 us a prompt token"
