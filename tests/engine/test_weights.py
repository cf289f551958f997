"""Packed weights: each form against its own definition in float64, rows apart from each other, and within a model."""

from __future__ import annotations

import shutil

import pytest
import torch
from engine_driver import GREEDY, Driver
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

from penstock.control.request import Request
from penstock.control.step import Step
from penstock.engine.checkpoint import model_footprint
from penstock.engine.engine import Engine
from penstock.engine.loader import load_model
from penstock.engine.ops.products import load_products
from penstock.engine.weights import Weight
from penstock.engine.weights.formats import FORMATS, matrix_bytes
from penstock.engine.weights.pack import packing
from penstock.engine.weights.panels import FloatPanels, Int4Panels, Int8Panels, Int8WeightPanels
from penstock.engine.weights.plain import PlainInt4, PlainInt8, quantize, quantize4
from penstock.errors import UnsupportedModel
from penstock.testing.adapters import tiny_adapter

PRODUCTS = load_products()
CPU_FORMS = [name for name, form in FORMATS.items() if form.device in ("", "cpu")]


def make(outputs: int, inputs: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(outputs, inputs, generator=generator) * inputs**-0.5


def packed(form: str, weight: Tensor) -> Weight:
    pack = packing(form, torch.device("cpu"))
    assert pack is not None
    found = pack(weight.bfloat16() if form == "bfloat16" else weight)
    assert not isinstance(found, Tensor)
    return found


def int8_codes(weight: Int8Panels | Int8WeightPanels) -> Tensor:
    """[O, I] float64, from panels [O / 32, I / 4, 32, 4]."""
    whole = weight.packed.permute(0, 2, 1, 3).flatten(2).flatten(0, 1)
    return whole[: weight.shape[0], : weight.shape[1]].double()


def int4_matrix(weight: Int4Panels) -> Tensor:
    """What the panels stand for, [O, I] float64: see products_int4.c for their layout."""
    panels, groups, _ = weight.packed.shape
    codes = weight.packed[..., :512].reshape(panels, groups, 2, 4, 16, 4)
    both = torch.stack((codes & 15, codes >> 4), dim=3).double() - 8
    q = both.permute(0, 2, 5, 1, 3, 4, 6).reshape(panels * 32, groups, 32)
    scales = weight.packed[..., 512:].contiguous().view(torch.bfloat16).reshape(panels, groups, 16, 2)
    scales = scales.permute(0, 3, 2, 1).reshape(panels * 32, groups, 1).double()
    return (q * scales).flatten(1)[: weight.shape[0]]


def in_groups(x: Tensor) -> Tensor:
    whole, scales = quantize(x.view(x.shape[0], -1, 32))
    return (whole.double() * scales.double()).flatten(1)


shapes = st.tuples(st.integers(1, 200), st.integers(1, 70), st.integers(1, 300), st.booleans())


@given(shapes)
@settings(max_examples=30, deadline=None)
def test_each_form_multiplies_as_it_is_defined(shape):
    rows, outputs, inputs, biased = shape
    weight, x = make(outputs, inputs), make(rows, inputs, 1) * 3
    bias = make(1, outputs, 2)[0] if biased else None
    wide = torch.zeros(outputs).double() if bias is None else bias.double()

    got = FloatPanels.of(weight, PRODUCTS).product(x, bias)
    torch.testing.assert_close(got, (x.double() @ weight.double().t() + wide).float(), rtol=1e-5, atol=1e-5)

    half, narrow = FloatPanels.of(weight.bfloat16(), PRODUCTS), x.bfloat16()
    got = half.product(narrow, None if bias is None else bias.bfloat16())
    wanted = narrow.double() @ weight.bfloat16().double().t() + wide.bfloat16().double()
    torch.testing.assert_close(got, wanted.bfloat16(), rtol=2**-7, atol=1e-3)

    int8 = Int8Panels.of(weight, PRODUCTS)
    q, whole = int8_codes(int8), quantize(x)
    torch.testing.assert_close(q.float() * int8.scales[:, None], weight, rtol=0, atol=float(int8.scales.max()) * 0.501)
    assert torch.equal(int8.scales, weight.abs().amax(dim=1) / 127)
    # Which way a value in the middle between two whole numbers goes is not part of the definition.
    one_off = float(int8.scales.max() * whole[1].max() * q.abs().max()) if rows * inputs else 0.0
    wanted = (whole[0].double() @ q.t()) * int8.scales.double() * whole[1].double() + wide
    torch.testing.assert_close(int8.product(x, bias), wanted.float(), rtol=1e-5, atol=1e-5 + one_off)

    only = Int8WeightPanels.of(weight, PRODUCTS)
    wanted = x.double() @ (int8_codes(only) * only.scales.double()[:, None]).t() + wide
    torch.testing.assert_close(only.product(x, bias), wanted.float(), rtol=1e-5, atol=1e-5)


@given(shapes)
@settings(max_examples=20, deadline=None)
def test_int4_is_as_defined_and_chooses_the_scale_of_the_least_error(shape):
    rows, outputs, groups, biased = shape[0], shape[1], 1 + shape[2] % 9, shape[3]
    weight, x = make(outputs, 32 * groups), make(rows, 32 * groups, 1) * 3
    bias = make(1, outputs, 2)[0] if biased else None
    int4 = Int4Panels.of(weight, PRODUCTS)
    matrix = int4_matrix(int4)
    wanted = in_groups(x) @ matrix.t() + (0 if bias is None else bias.double())
    torch.testing.assert_close(int4.product(x, bias), wanted.float(), rtol=1e-4, atol=2e-2)
    q, scales = quantize4(weight)
    best = ((q * scales).flatten(1) - weight).square().sum()
    assert ((matrix - weight).square().sum() / best).item() == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("form", CPU_FORMS)
@pytest.mark.parametrize(("outputs", "inputs"), [(70, 96), (64, 1600), (40, 33)])
def test_a_row_does_not_depend_on_the_rows_beside_it(form, outputs, inputs):
    weight = packed(form, make(outputs, inputs))
    x = make(400, inputs, 3).to(torch.bfloat16 if form == "bfloat16" else torch.float32)
    alone = torch.cat([weight.product(x[i : i + 1], None) for i in range(400)])
    for rows in (2, 13, 14, 15, 64, 169, 400):
        assert torch.equal(weight.product(x[:rows], None), alone[:rows]), rows


@pytest.mark.parametrize("form", CPU_FORMS)
def test_what_is_no_number_stays_in_its_row(form):
    weight = packed(form, make(64, 64))
    x = make(5, 64, 3).to(torch.bfloat16 if form == "bfloat16" else torch.float32)
    before = weight.product(x, None)
    x[1, 7], x[3, 9] = torch.nan, torch.inf
    after = weight.product(x, None)
    assert not after[1].isfinite().any()
    assert not after[3].isfinite().any()
    assert torch.equal(after[[0, 2, 4]], before[[0, 2, 4]])
    zero = weight.product(torch.zeros_like(x), None)
    assert torch.equal(zero, torch.zeros_like(zero))


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_threads_change_nothing(threads):
    weights = [packed(form, make(700, 256)) for form in CPU_FORMS]
    inputs = [make(37, 256, 4).to(torch.bfloat16 if form == "bfloat16" else torch.float32) for form in CPU_FORMS]
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    wanted = [weight.product(x, None) for weight, x in zip(weights, inputs, strict=True)]
    try:
        torch.set_num_threads(threads)
        for weight, x, alone in zip(weights, inputs, wanted, strict=True):
            assert torch.equal(weight.product(x, None), alone)
    finally:
        torch.set_num_threads(before)


def test_plain_torch_gives_what_the_panels_give():
    weight, x, bias = make(70, 96), make(9, 96, 1), make(1, 70, 2)[0]
    for plain, panels in (
        (PlainInt8.of(weight, rounds=True), Int8Panels.of(weight, PRODUCTS)),
        (PlainInt8.of(weight, rounds=False), Int8WeightPanels.of(weight, PRODUCTS)),
        (PlainInt4.of(weight), Int4Panels.of(weight, PRODUCTS)),
    ):
        assert plain.shape == panels.shape == (70, 96)
        torch.testing.assert_close(plain.product(x, bias), panels.product(x, bias), rtol=0, atol=5e-2)


@pytest.mark.parametrize("form", CPU_FORMS)
def test_sizes_are_known_before_anything_loads(form):
    assert packed(form, make(96, 64)).nbytes == matrix_bytes(form, 96, 64)
    assert packed(form, make(96, 33)).nbytes == pytest.approx(matrix_bytes(form, 96, 33), rel=0.1)


def held_bytes(model: object) -> int:
    """Of every tensor in a model, packed or not, each once."""
    seen: dict[int, int] = {}

    def walk(one: object) -> None:
        if isinstance(one, Tensor):
            seen[one.data_ptr()] = one.nbytes
        elif isinstance(one, list | tuple):
            for part in one:
                walk(part)
        elif hasattr(one, "__dict__") or hasattr(one, "__slots__"):
            for name in {**getattr(one, "__dict__", {}), **dict.fromkeys(getattr(one, "__slots__", ()))}:
                if name != "architecture":
                    walk(getattr(one, name))

    walk(model)
    return sum(seen.values())


@pytest.mark.parametrize("form", CPU_FORMS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral", "gemma2"])
def test_the_footprint_is_what_the_model_holds(form, family, checkpoint):
    path = checkpoint(family)
    promised = model_footprint(path, form).weight_bytes
    assert held_bytes(load_model(path, dtype=form).model) == pytest.approx(promised, rel=0.1)


@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_a_checkpoint_in_bfloat16_takes_no_more_in_compressed_float32(family, checkpoint, tmp_path):
    for file in checkpoint(family).iterdir():
        if file.suffix == ".safetensors":
            halved = {name: tensor.bfloat16() for name, tensor in load_file(file).items()}
            save_file(halved, tmp_path / file.name)
        else:
            shutil.copy(file, tmp_path)
    promised, whole = (
        model_footprint(path, "float32_compressed").weight_bytes for path in (tmp_path, checkpoint(family))
    )
    assert promised < whole < model_footprint(tmp_path, "float32").weight_bytes
    held = held_bytes(load_model(tmp_path, dtype="float32_compressed").model)
    assert held == pytest.approx(promised, rel=0.1)


@pytest.mark.parametrize("form", ["int8", "int8_weights", "int4"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "mixtral"])
def test_a_model_answers_in_every_form_and_alike_in_any_batch(form, family, checkpoint):
    prompts = [[5 + i, 9, 200, 7 * i + 1, 33, 2][: 2 + i % 5] for i in range(12)]

    def answers(together: int) -> list[list[int]]:
        engine = Engine(load_model(checkpoint(family), dtype=form), blocks=64, block_tokens=8, max_seqs=16)
        driver = Driver(engine, blocks=64, block_tokens=8)
        for first in range(0, len(prompts), together):
            names = [str(i) for i in range(first, min(first + together, len(prompts)))]
            step = Step(0)
            for name in names:
                driver.add(name, prompts[int(name)], 12)
                driver.prefill(name)
                driver.join(step, name)
            driver.decode(step)
            driver.run(step)
            driver.decode_until_done()
        return [driver.output[str(i)] for i in range(len(prompts))]

    alone = answers(1)
    assert all(len(one) == 12 for one in alone)
    assert answers(12) == alone


@pytest.mark.parametrize("form", ["int8", "int4"])
def test_adapters_add_to_narrow_products(form, checkpoint, tmp_path):
    base = checkpoint("llama")
    engine = Engine(load_model(base, dtype=form), blocks=64, block_tokens=8, max_seqs=4, max_adapters=1)
    engine.load_adapter("a", tiny_adapter(base, tmp_path / "adapter"))
    driver, step = Driver(engine, blocks=64, block_tokens=8), Step(0)
    for name, adapter in (("plain", ""), ("tuned", "a"), ("again", "")):
        request = Request(id=name, prompt=(5, 9, 200, 17, 33), max_tokens=16, adapter=adapter, sampling=GREEDY)
        engine.add(request)
        driver.requests[name], driver.output[name] = request, []
        driver.prefill(name)
        driver.join(step, name)
    driver.decode(step)
    driver.run(step)
    driver.decode_until_done()
    assert driver.output["plain"] == driver.output["again"] != driver.output["tuned"]


def test_a_narrow_form_is_refused_where_it_cannot_run(tmp_path):
    with pytest.raises(UnsupportedModel, match="CPUs"):
        packing("int8", torch.device("meta"))
    with pytest.raises(UnsupportedModel, match="fp8"):
        packing("fp8", torch.device("cpu"))
