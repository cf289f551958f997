"""Contract 4 at the engine's door: greedy output in fp32 equals `transformers`, whatever the steps were.

Each test drives the engine with steps of its own; tests/contracts does the same with real policies.
"""

from __future__ import annotations

import random

import pytest
from engine_driver import Driver

from penstock.control.step import Step
from penstock.engine.engine import Engine
from penstock.testing.checkpoints import FAMILIES

TOKENS = 24
_random = random.Random(7)
PROMPTS = [[_random.randrange(2, 256) for _ in range(length)] for length in (5, 41, 22)]

families = pytest.mark.parametrize("family", FAMILIES)


def start(path, **sizes):
    sizes = {"blocks": 48, "block_tokens": 8, "host_blocks": 16, "max_seqs": 4, **sizes}
    engine = Engine.load(path, **sizes)
    return Driver(engine, sizes["blocks"], sizes["block_tokens"])


def outputs(driver):
    return [driver.output[name] for name in sorted(driver.output)]


@families
def test_prompts_prefilled_together_in_one_step_then_decoded_together(family, checkpoint, expected):
    path = checkpoint(family)
    driver = start(path)
    step = Step(0)
    for i, prompt in enumerate(PROMPTS):
        driver.add(str(i), prompt, TOKENS)
        driver.admit(step, str(i))
        driver.chunk(step, str(i))
    driver.run(step)
    step = Step(0)
    for i in range(len(PROMPTS)):
        driver.join(step, str(i))
    driver.decode(step)
    driver.run(step)
    driver.decode_until_done()
    assert outputs(driver) == expected(path, PROMPTS, TOKENS)
    assert {finish.reason for finish in driver.finished.values()} == {"length"}
    assert [list(driver.finished[str(i)].output) for i in range(3)] == outputs(driver)


@families
def test_chunks_ride_along_with_decodes_in_ragged_steps(family, checkpoint, expected):
    path = checkpoint(family)
    driver = start(path)
    for i, prompt in enumerate(PROMPTS):
        driver.add(str(i), prompt, TOKENS)
        step = Step(0)
        driver.admit(step, str(i))
        last = False
        while not last:
            last = driver.chunk(step, str(i), tokens=7)
            driver.decode(step)
            driver.run(step)
            step = Step(0)
        driver.join(step, str(i))
        driver.decode(step)
        driver.run(step)
    driver.decode_until_done()
    assert outputs(driver) == expected(path, PROMPTS, TOKENS)


@families
def test_two_sequences_chunks_share_steps_with_a_decode(family, checkpoint, expected):
    path = checkpoint(family)
    driver = start(path)
    for i, prompt in enumerate(PROMPTS):
        driver.add(str(i), prompt, TOKENS)
    driver.prefill("0")
    step = Step(0)
    driver.join(step, "0")
    for name in "12":
        driver.admit(step, name)
    waiting = ["1", "2"]
    while waiting:
        done = [name for name in waiting if driver.chunk(step, name, tokens=6)]
        driver.decode(step)
        driver.run(step)
        step = Step(0)
        for name in done:
            waiting.remove(name)
            driver.join(step, name)
    driver.decode(step)
    driver.run(step)
    driver.decode_until_done()
    assert outputs(driver) == expected(path, PROMPTS, TOKENS)


def decode_some(driver, names, steps):
    step = Step(0)
    for name in names:
        driver.join(step, name)
    for _ in range(steps):
        driver.decode(step)
        driver.run(step)
        step = Step(0)


@families
def test_an_evicted_sequence_is_recomputed_and_goes_on_where_it_was(family, checkpoint, expected):
    path = checkpoint(family)
    driver = start(path)
    for i, prompt in enumerate(PROMPTS):
        driver.add(str(i), prompt, TOKENS)
        driver.prefill(str(i))
    decode_some(driver, "012", steps=9)
    step = Step(0)
    driver.evict(step, "1")
    driver.decode(step)
    driver.run(step)
    step = Step(0)
    driver.admit(step, "1")
    while not driver.chunk(step, "1", tokens=13):
        driver.decode(step)
        driver.run(step)
        step = Step(0)
    driver.run(step)
    decode_some(driver, "1", steps=1)
    driver.decode_until_done()
    assert outputs(driver) == expected(path, PROMPTS, TOKENS)


@families
def test_a_request_resumed_from_another_worker_continues_its_output(family, checkpoint, expected):
    path = checkpoint(family)
    wanted = expected(path, PROMPTS, TOKENS)
    driver = start(path)
    for i, prompt in enumerate(PROMPTS):
        driver.add(str(i), prompt, TOKENS, output=tuple(wanted[i][: 3 + i]))
        driver.prefill(str(i), chunk_tokens=11)
    decode_some(driver, "012", steps=1)
    driver.decode_until_done()
    assert outputs(driver) == wanted
    assert [list(driver.finished[str(i)].output) for i in range(3)] == wanted


@families
def test_a_swapped_sequence_comes_back_with_its_kv(family, checkpoint, expected):
    path = checkpoint(family)
    driver = start(path)
    for i, prompt in enumerate(PROMPTS):
        driver.add(str(i), prompt, TOKENS)
        driver.prefill(str(i))
    decode_some(driver, "012", steps=5)
    host = list(range(15, 15 - len(driver.tables["1"]), -1))
    step = Step(0)
    driver.swap_out(step, "1", host)
    driver.decode(step)
    driver.run(step)
    # Its old device blocks are overwritten before it returns.
    driver.free = driver.free[::-1]
    driver.add("3", PROMPTS[1][::-1], 2)
    driver.prefill("3")
    step = Step(0)
    driver.swap_in(step, "1", host)
    driver.join(step, "1")
    driver.decode(step)
    driver.run(step)
    driver.decode_until_done()
    assert outputs(driver)[:3] == expected(path, PROMPTS, TOKENS)


@families
def test_a_sequence_admitted_on_cached_blocks_reads_another_ones_prefix(family, checkpoint, expected):
    path = checkpoint(family)
    prompts = [PROMPTS[1], [*PROMPTS[1][:24], *PROMPTS[2]]]
    driver = start(path)
    driver.add("0", prompts[0], TOKENS)
    driver.prefill("0")
    decode_some(driver, "0", steps=2)
    driver.add("1", prompts[1], TOKENS)
    step = Step(0)
    driver.admit(step, "1", shared=driver.tables["0"][:3])
    assert step.admit[0].cached_tokens == 24
    driver.chunk(step, "1")
    driver.decode(step)
    driver.run(step)
    decode_some(driver, "1", steps=1)
    driver.decode_until_done()
    assert outputs(driver) == expected(path, prompts, TOKENS)


@pytest.mark.parametrize("block_tokens", [1, 5, 16, 32])
def test_the_block_size_changes_nothing(block_tokens, checkpoint, expected):
    path = checkpoint("mistral")
    driver = start(path, blocks=384 // block_tokens, block_tokens=block_tokens)
    for i, prompt in enumerate(PROMPTS):
        driver.add(str(i), prompt, TOKENS)
        driver.prefill(str(i), chunk_tokens=17)
    decode_some(driver, "012", steps=1)
    driver.decode_until_done()
    assert outputs(driver) == expected(path, PROMPTS, TOKENS)


VARIANTS = {
    "a single KV head": ("llama", {"num_key_value_heads": 1}),
    "as many KV heads as heads": ("llama", {"num_key_value_heads": 4}),
    "a head width that is no multiple of anything": ("llama", {"head_dim": 22}),
    "heads wider than the model": ("qwen3", {"head_dim": 128}),
    "tied embeddings": ("qwen2", {"tie_word_embeddings": True}),
    "biases in attention and MLP": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "attention biases of Qwen3": ("qwen3", {"attention_bias": True}),
    "another activation": ("llama", {"hidden_act": "gelu_pytorch_tanh"}),
    "no window": ("mistral", {"sliding_window": None}),
    "a window of one block": ("mistral", {"sliding_window": 8}),
    "a window in Mixtral": ("mixtral", {"sliding_window": 11}),
    "a window in Qwen3-MoE": ("qwen3_moe", {"use_sliding_window": True, "sliding_window": 9}),
    "windows by layer_types": (
        "qwen3",
        {
            "use_sliding_window": True,
            "sliding_window": 10,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "experts in every second layer": ("qwen3_moe", {"decoder_sparse_step": 2, "mlp_only_layers": []}),
    "experts not normalized": ("qwen3_moe", {"norm_topk_prob": False}),
    "Gemma 2 without caps": ("gemma2", {"attn_logit_softcapping": None, "final_logit_softcapping": None}),
    "Gemma 2 by layer_types, with biases": (
        "gemma2",
        {
            "layer_types": ["full_attention", "full_attention", "sliding_attention"],
            "sliding_window": 9,
            "attention_bias": True,
        },
    ),
    "Gemma 3 with scaled global layers": (
        "gemma3",
        {
            "sliding_window_pattern": 2,
            "final_logit_softcapping": 5.0,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 500.0},
            },
        },
    ),
    "Phi-3 whose heads turn whole": ("phi3", {"rope_parameters": {"rope_type": "default", "rope_theta": 5000.0}}),
    "Phi-3 tied, without a window": ("phi3", {"sliding_window": None, "tie_word_embeddings": True}),
    "GPT-2 scaled by layer": ("gpt2", {"scale_attn_by_inverse_layer_idx": True}),
    "GPT-2 unscaled, other width and activation": (
        "gpt2",
        {"scale_attn_weights": False, "n_inner": 80, "activation_function": "relu", "tie_word_embeddings": False},
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_config_json_says_is_honoured(variant, checkpoint, expected):
    family, overrides = VARIANTS[variant]
    path = checkpoint(family, **overrides)
    driver = start(path)
    for i, prompt in enumerate(PROMPTS):
        driver.add(str(i), prompt, TOKENS)
        driver.prefill(str(i), chunk_tokens=30)
    decode_some(driver, "012", steps=1)
    driver.decode_until_done()
    assert outputs(driver) == expected(path, PROMPTS, TOKENS)


ROPES = {
    "linear": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
        "rope_theta": 500000.0,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "rope_theta": 10000.0},
    "yarn with its options": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 32,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "mscale": 0.8,
        "mscale_all_dim": 0.5,
        "truncate": False,
        "rope_theta": 10000.0,
    },
}


@pytest.mark.parametrize("scaling", ROPES)
def test_rope_scalings_below_and_beyond_the_original_length(scaling, checkpoint, expected):
    """Prompts of 5, 41 and 22 tokens and 24 more: they start below, cross, or start beyond the original 32."""
    path = checkpoint("llama", max_position_embeddings=32, rope_parameters=ROPES[scaling])
    driver = start(path)
    if scaling == "llama3":
        driver = start(checkpoint("llama", max_position_embeddings=256, rope_parameters=ROPES[scaling]))
        path = checkpoint("llama", max_position_embeddings=256, rope_parameters=ROPES[scaling])
    for i, prompt in enumerate(PROMPTS):
        driver.add(str(i), prompt, TOKENS)
        driver.prefill(str(i), chunk_tokens=19)
    decode_some(driver, "012", steps=4)
    step = Step(0)
    driver.evict(step, "2")
    driver.decode(step)
    driver.run(step)
    driver.prefill("2", chunk_tokens=9)
    decode_some(driver, "2", steps=1)
    driver.decode_until_done()
    assert outputs(driver) == expected(path, PROMPTS, TOKENS)
