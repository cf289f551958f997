"""float32 in 28 bits a weight: to the bit what float32 gives, whatever the weights are, or not used."""

from __future__ import annotations

import pytest
import torch
from engine_driver import Driver
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from penstock.control.step import Step
from penstock.engine.checkpoint import model_footprint
from penstock.engine.engine import Engine
from penstock.engine.loader import load_model
from penstock.engine.ops.build import NativeUnavailable
from penstock.engine.ops.native import load_native
from penstock.engine.ops.products import WHOLE_BYTES, float28_bytes, load_products
from penstock.engine.weights.pack import packing
from penstock.engine.weights.panels import MOST_WHOLE, CompressedPanels, FloatPanels
from penstock.errors import UnsupportedModel

PRODUCTS = load_products()
ROWS = (1, 2, 3, 4, 5, 14, 15, 64, 170)


def same(left: Tensor, right: Tensor) -> bool:
    """To the bit, so that a NaN is like itself."""
    return torch.equal(left.view(torch.int32), right.view(torch.int32))


def compressed(weight: Tensor) -> CompressedPanels:
    found = CompressedPanels.of(weight, PRODUCTS)
    assert found is not None
    return found


def ones_at(inputs: int) -> Tensor:
    """Rows that each pick one input."""
    return torch.eye(inputs)


@given(
    st.integers(1, 70), st.integers(1, 40), st.integers(0, 2**32), st.integers(0, 64),
    st.sampled_from((1e-30, 1e-3, 1.0, 1e30)),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_every_weight_comes_out_as_it_went_in(outputs, inputs, seed, zeros, scale):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, inputs, generator=generator) * scale
    weight.view(-1)[torch.randint(outputs * inputs, (zeros,), generator=generator)] = 0.0
    found = CompressedPanels.of(weight, PRODUCTS)
    if found is None:  # a small matrix with one weight that is much smaller than the others
        exponents = weight.abs().log2().floor()
        assert (exponents < exponents.max() - 13).any()
        return
    assert same(found.product(ones_at(inputs), None).t().contiguous(), weight + 0.0)


@pytest.mark.parametrize(("outputs", "inputs"), [(1, 1), (32, 4), (33, 5), (70, 770), (64, 1601)])
def test_products_are_those_of_float32_to_the_bit(outputs, inputs):
    generator = torch.Generator().manual_seed(outputs)
    weight = torch.randn(outputs, inputs, generator=generator)
    weight[-1] *= 2.0**-12  # most of it is kept whole, and all of it in another part of the panel's range
    bias = torch.randn(outputs, generator=generator)
    if outputs * inputs > 4 * MOST_WHOLE:
        weight[0, 0], weight[0, 1], weight[0, 2] = -0.0, 1e-40, -1e-30
    plain = FloatPanels.of(weight, PRODUCTS)
    heads, whole = PRODUCTS.float28_heads(weight)
    packed = PRODUCTS.pack_float28(weight, heads, whole)
    assert packed.nbytes == float28_bytes(outputs, inputs) + whole * WHOLE_BYTES
    forced = CompressedPanels(packed, None, None, (outputs, inputs), PRODUCTS, 5)
    for rows in ROWS:
        x = torch.randn(rows, inputs, generator=generator)
        for add in (None, bias):
            assert same(forced.product(x, add), plain.product(x, add)), rows


def test_a_few_that_are_far_too_small_are_kept_whole():
    weight = torch.randn(96, 1000, generator=torch.Generator().manual_seed(1))
    small = torch.arange(0, 96_000, 97)
    weight.view(-1)[small] *= 2.0**-40
    _, whole = PRODUCTS.float28_heads(weight)
    assert len(small) <= whole <= len(small) + 100
    found, plain = compressed(weight), FloatPanels.of(weight, PRODUCTS)
    for rows in ROWS:
        x = torch.randn(rows, 1000)
        assert same(found.product(x, None), plain.product(x, None)), rows
    assert same(found.product(ones_at(1000), None).t().contiguous(), weight)


def test_what_is_no_number_is_kept_too():
    weight = torch.randn(32, 4096, generator=torch.Generator().manual_seed(1)) * 1e38
    weight[3, 5], weight[4, 6] = torch.inf, -torch.inf
    found, plain = compressed(weight), FloatPanels.of(weight, PRODUCTS)
    x = torch.randn(3, 4096).abs()
    assert same(found.product(x, None), plain.product(x, None))


@pytest.mark.parametrize(("outputs", "inputs"), [(33, 5), (70, 770), (64, 1601)])
def test_values_of_bfloat16_take_half(outputs, inputs):
    weight = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(1)).bfloat16().float()
    weight[0, 0], weight[0, 1], weight[0, 2] = 0.0, -torch.inf, 1e-40
    weight = weight.bfloat16().float()
    found, plain = compressed(weight), FloatPanels.of(weight, PRODUCTS)
    assert 2 * found.nbytes == plain.nbytes
    for rows in ROWS:
        x, bias = torch.rand(rows, inputs) + 0.5, torch.randn(outputs)
        assert same(found.product(x, bias), plain.product(x, bias)), rows
    weight[0, 1] = 1.0 + 2.0**-9  # one that is none of its values
    assert CompressedPanels.of(weight, PRODUCTS) is None or compressed(weight).nbytes > found.nbytes


def test_weights_that_spread_too_far_stay_as_they_are():
    weight = torch.randn(64, 256, generator=torch.Generator().manual_seed(1))
    weight[:, ::32] *= 2.0**-40
    assert CompressedPanels.of(weight, PRODUCTS) is None
    pack = packing("float32_compressed", torch.device("cpu"))
    assert pack is not None
    kept = pack(weight)
    assert isinstance(kept, FloatPanels)
    x = torch.randn(5, 256)
    assert same(kept.product(x, None), FloatPanels.of(weight, PRODUCTS).product(x, None))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_it_is_packed_alike_by_any_number_of_threads(threads):
    weight = torch.randn(700, 256, generator=torch.Generator().manual_seed(1))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = compressed(weight).packed
        torch.set_num_threads(threads)
        assert torch.equal(compressed(weight).packed, alone)
    finally:
        torch.set_num_threads(before)


FAMILIES = {"llama": {}, "gpt2": {}, "mixtral": {}, "gemma2": {}, "qwen2": {"tie_word_embeddings": True}}


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_gives_the_logits_of_float32_to_the_bit_and_takes_no_more(family, checkpoint):
    path, hidden = checkpoint(family, **FAMILIES[family]), None
    found = []
    for form in ("float32", "float32_compressed"):
        model = load_model(path, dtype=form).model
        hidden = torch.randn(7, model.architecture.hidden) if hidden is None else hidden
        with torch.inference_mode():
            found.append(model.logits(hidden, load_native()).clone())
    assert same(found[1], found[0])
    assert model_footprint(path, "float32_compressed").weight_bytes < model_footprint(path).weight_bytes


@pytest.mark.parametrize("family", FAMILIES)
def test_and_its_tokens(family, checkpoint):
    prompts = [[5 + i, 9, 200, 7 * i + 1, 33, 2][: 2 + i % 5] for i in range(8)]

    def answers(form: str) -> list[list[int]]:
        model = load_model(checkpoint(family, **FAMILIES[family]), dtype=form)
        driver, step = Driver(Engine(model, blocks=64, block_tokens=8, max_seqs=16), blocks=64, block_tokens=8), Step(0)
        for number, prompt in enumerate(prompts):
            driver.add(str(number), prompt, 12)
            driver.prefill(str(number))
            driver.join(step, str(number))
        driver.decode(step)
        driver.run(step)
        driver.decode_until_done()
        return [driver.output[str(number)] for number in range(len(prompts))]

    assert answers("float32_compressed") == answers("float32")


def test_it_is_refused_where_nothing_multiplies_it(monkeypatch):
    def missing() -> None:
        raise NativeUnavailable("no C compiler")

    monkeypatch.setattr("penstock.engine.weights.pack.load_products", missing)
    with pytest.raises(UnsupportedModel, match="no C compiler"):
        packing("float32_compressed", torch.device("cpu"))
    with pytest.raises(UnsupportedModel, match="CPUs") as refused:
        packing("float32_compressed", torch.device("cuda"))
    assert "float32" in refused.value.remedy
