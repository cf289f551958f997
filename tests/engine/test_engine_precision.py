"""bfloat16, the portable kernels, and what a decode step costs in Python."""

from __future__ import annotations

import random
import sys

import pytest
import torch
from engine_driver import Driver

from penstock.control.request import Sampling
from penstock.control.step import Step
from penstock.engine.engine import Engine
from penstock.engine.loader import load_model
from penstock.engine.ops.portable import PortableKernels
from penstock.testing.checkpoints import FAMILIES

_random = random.Random(11)
PROMPTS = [[_random.randrange(2, 256) for _ in range(length)] for length in (33, 12)]
ALL = Sampling(temperature=0.0, logprobs=255)


def engine_logprobs(path, prompt, dtype):
    driver = Driver(Engine.load(path, dtype=dtype, blocks=16, block_tokens=8, max_seqs=1), 16, 8)
    driver.add("a", prompt, 1, sampling=ALL)
    step = Step(0)
    driver.admit(step, "a")
    driver.chunk(step, "a")
    found = dict(driver.run(step).logprobs["a"].top)
    return torch.tensor([found.get(token, float("nan")) for token in range(256)])


@pytest.mark.parametrize("family", FAMILIES)
def test_logprobs_match_transformers_to_rounding_in_float32_and_closely_in_bfloat16(family, checkpoint):
    from transformers import AutoModelForCausalLM

    path = checkpoint(family, std=0.1)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    with torch.no_grad():
        wanted = model(torch.tensor([PROMPTS[0]])).logits[0, -1].log_softmax(-1)
    exact = engine_logprobs(path, PROMPTS[0], "float32")
    rounded = engine_logprobs(path, PROMPTS[0], "bfloat16")
    known = ~exact.isnan()
    assert known.sum() >= 255
    torch.testing.assert_close(exact[known], wanted[known], rtol=1e-4, atol=1e-4)
    known = ~rounded.isnan()
    # 8 bits of mantissa through three layers: a few percent of the logits' spread.
    assert (rounded[known] - wanted[known]).abs().max() < 0.08 * wanted.std() + 0.02
    assert torch.corrcoef(torch.stack([rounded[known], wanted[known]]))[0, 1] > 0.999


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_in_bfloat16_runs_to_its_end(family, checkpoint):
    driver = Driver(Engine.load(checkpoint(family), dtype="bfloat16", blocks=32, block_tokens=16, max_seqs=2), 32, 16)
    for i, prompt in enumerate(PROMPTS):
        driver.add(str(i), prompt, 12)
        driver.prefill(str(i), chunk_tokens=10)
    step = Step(0)
    for i in range(2):
        driver.join(step, str(i))
    driver.decode(step)
    driver.run(step)
    driver.decode_until_done()
    assert [len(driver.output[str(i)]) for i in range(2)] == [12, 12]
    assert driver.failed == {}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_portable_kernels_give_the_same_output(family, checkpoint, expected):
    path = checkpoint(family)
    engine = Engine(load_model(path), blocks=32, block_tokens=8, max_seqs=2, kernels=PortableKernels())
    driver = Driver(engine, 32, 8)
    for i, prompt in enumerate(PROMPTS):
        driver.add(str(i), prompt, 12)
        driver.prefill(str(i), chunk_tokens=10)
    step = Step(0)
    for i in range(2):
        driver.join(step, str(i))
    driver.decode(step)
    driver.run(step)
    driver.decode_until_done()
    assert [driver.output[str(i)] for i in range(2)] == expected(path, PROMPTS, 12)


def test_a_decode_step_runs_as_much_python_for_forty_sequences_as_for_ten(checkpoint):
    calls = []
    for batch in (10, 40):
        driver = Driver(Engine.load(checkpoint("llama"), blocks=80, block_tokens=64, max_seqs=batch), 80, 64)
        step = Step(0)
        for i in range(batch):
            driver.add(str(i), PROMPTS[1], 8)
            driver.admit(step, str(i))
            driver.chunk(step, str(i))
        driver.run(step)
        step = Step(0)
        for i in range(batch):
            driver.join(step, str(i))
        driver.decode(step)
        driver.run(step)
        step = Step(driver.number + 1, decoding=batch)
        count = 0

        def seen(frame, event, argument):
            nonlocal count
            count += event in ("call", "c_call")

        sys.setprofile(seen)
        result = driver.engine.run(step)
        sys.setprofile(None)
        assert len(result.tokens) == batch
        calls.append(count)
    assert calls[0] == calls[1]
