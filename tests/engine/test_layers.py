"""All layers in one call: the same to the bit as kernel by kernel, and used wherever there is code for it."""

from __future__ import annotations

import pytest
import torch
from engine_driver import Driver

from penstock.control.step import Step
from penstock.engine.engine import Engine
from penstock.engine.loader import load_model
from penstock.engine.ops.native import NativeKernels, load_native
from penstock.engine.ops.portable import PortableKernels
from penstock.engine.scratch import SMALL_STEPS

BLOCK = 4


class OneByOne:
    """The native kernels, for a model that does not know them."""

    def __init__(self) -> None:
        self._kernels = load_native()
        self.name = "one by one"

    def __getattr__(self, name):
        return getattr(self._kernels, name)


def keys_values_and_tokens(model, kernels, threads):
    """What mixed steps leave in the pool of an engine, whose sequences lie in scattered blocks; and the output."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    engine = Engine(model, blocks=60, block_tokens=BLOCK, max_seqs=4, kernels=kernels)
    engine._pool.device.zero_()
    driver = Driver(engine, 60, BLOCK)
    stem = list(range(3, 27))
    try:
        for name, prompt in {"a": stem, "b": [*stem[:12], 5, 9], "c": [7]}.items():
            driver.add(name, prompt, 8)
            driver.prefill(name)
        driver.add("d", list(range(40, 60)), 4)
        for tokens in (17, None):
            step = Step(0)
            if tokens:
                driver.admit(step, "d")
                for name in ("a", "b", "c"):
                    driver.join(step, name)
            driver.decode(step)
            driver.chunk(step, "d", tokens)
            driver.run(step)
    finally:
        torch.set_num_threads(before)
    return engine._pool.device.clone(), driver.output


WHOLE = {
    "llama": {}, "mistral": {"sliding_window": 6}, "qwen2": {}, "qwen3": {}, "phi3": {},
    "gemma2": {"hidden_activation": "silu"}, "gemma3": {"hidden_activation": "silu"},
}  # fmt: skip


@pytest.mark.parametrize("family", WHOLE)
def test_all_layers_in_one_call_give_what_kernel_by_kernel_does_to_the_bit(checkpoint, family):
    model = load_model(checkpoint(family, **WHOLE[family]))
    assert model.model.whole(load_native()) is not None
    expected, output = keys_values_and_tokens(model, OneByOne(), 2)
    for threads in (1, 2):
        got, tokens = keys_values_and_tokens(model, None, threads)
        assert torch.equal(got, expected)
        assert tokens == output


@pytest.mark.parametrize("dtype", ["bfloat16", "float32_compressed", "int8", "int8_weights", "int4"])
def test_the_same_in_every_form_of_weights(checkpoint, dtype):
    model = load_model(checkpoint("llama", hidden_size=64, intermediate_size=96), dtype=dtype)
    expected, output = keys_values_and_tokens(model, OneByOne(), 1)
    got, tokens = keys_values_and_tokens(model, None, 2)
    assert torch.equal(got, expected)
    assert tokens == output


@pytest.mark.parametrize("family", ["gemma2", "mixtral"])
def test_layers_without_code_of_their_own_go_kernel_by_kernel(checkpoint, family):
    assert load_model(checkpoint(family)).model.whole(load_native()) is None


def test_other_kernels_are_called_one_by_one(checkpoint):
    model = load_model(checkpoint("llama")).model
    assert isinstance(load_native(), NativeKernels)
    assert model.whole(PortableKernels()) is None


def test_working_memory_follows_the_steps_down_after_a_while_and_up_at_once(checkpoint):
    model = load_model(checkpoint("llama"))
    layers = model.model.whole(load_native())
    assert layers is not None
    prompt = [3 + number % 50 for number in range(96)]
    driver = Driver(Engine(model, blocks=60, block_tokens=BLOCK, max_seqs=4), 60, BLOCK)

    def prefill(name):
        driver.add(name, prompt, SMALL_STEPS + 2)
        driver.prefill(name)
        return layers.working_bytes

    def decode(steps):
        for _ in range(steps):
            step = Step(0)
            if not driver.decoding:
                driver.join(step, next(iter(driver.requests)))
            driver.decode(step)
            driver.run(step)
        return layers.working_bytes

    large = prefill("a")
    assert decode(SMALL_STEPS - 1) == large
    assert 4 * decode(1) < large
    expected = driver.output["a"][:SMALL_STEPS]
    driver.engine.close()

    driver = Driver(Engine(model, blocks=60, block_tokens=BLOCK, max_seqs=4), 60, BLOCK)
    assert prefill("b") == large
    decode(SMALL_STEPS)
    assert driver.output["b"][:SMALL_STEPS] == expected
