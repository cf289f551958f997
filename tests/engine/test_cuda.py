"""On a CUDA device: greedy tokens in float32 equal those of `transformers`, through graphs and steps begun early."""

from __future__ import annotations

import time

import pytest
import torch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

BLOCKS, BLOCK_TOKENS = 600, 16


def tokens_of(path, prompts, max_tokens, **sizes):
    from penstock.control.policy import build_replica
    from penstock.control.request import Request, Sampling
    from penstock.control.step import NewTokens
    from penstock.engine.device_engine import DeviceEngine
    from penstock.engine.loader import load_model
    from penstock.runtime.local import Loop

    engine = DeviceEngine(
        load_model(path, device="cuda"), blocks=BLOCKS, block_tokens=BLOCK_TOKENS, max_seqs=len(prompts), **sizes
    )
    assert engine._kernels.name == "triton"
    replica = build_replica(
        blocks=BLOCKS, block_tokens=BLOCK_TOKENS, max_sequence_tokens=engine.max_sequence_tokens, token_budget=64,
        max_seqs=len(prompts),
    )  # fmt: skip
    loop = Loop(replica, engine, clock=time.monotonic)
    found = {str(number): [] for number in range(len(prompts))}
    for number, prompt in enumerate(prompts):
        loop.submit(
            Request(id=str(number), prompt=tuple(prompt), max_tokens=max_tokens, sampling=Sampling(temperature=0.0))
        )
    for turn in loop.run():
        for update in turn.updates:
            if isinstance(update, NewTokens):
                for name, token in update.tokens.items():
                    found[name].append(token)
    assert engine._graphs is None or len(engine._graphs) > 1
    engine.close()
    return list(found.values())


def reference_on_gpu(path, prompts, max_tokens):
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval().cuda()
    found = []
    for prompt in prompts:
        ids = torch.tensor([prompt], device="cuda")
        with torch.no_grad():
            out = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens, do_sample=False, eos_token_id=None
            )
        found.append(out[0, len(prompt) :].tolist())
    return found


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "mistral"])
def test_greedy_tokens_in_float32_are_those_of_transformers(tmp_path, family):
    from transformers import Gemma2Config, LlamaConfig, MistralConfig, Qwen3Config
    from transformers.models.auto.modeling_auto import AutoModelForCausalLM

    torch.manual_seed(3)
    sizes = {
        "vocab_size": 1000, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3,
        "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64, "max_position_embeddings": 512,
        "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.2,
    }  # fmt: skip
    config = {
        "llama": LlamaConfig(**sizes),
        "qwen3": Qwen3Config(**sizes),
        "gemma2": Gemma2Config(**sizes, sliding_window=24, query_pre_attn_scalar=64),
        "mistral": MistralConfig(**sizes, sliding_window=20),
    }[family]
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(tmp_path)
    draw = torch.Generator().manual_seed(4)
    prompts = [
        torch.randint(3, 1000, (int(length),), generator=draw).tolist() for length in (1, 5, 40, 90, 17, 33, 64, 130)
    ]
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        wanted = reference_on_gpu(tmp_path, prompts, 24)
        assert tokens_of(tmp_path, prompts, 24) == wanted
        if family == "llama":
            assert tokens_of(tmp_path, prompts, 24, graphs=False) == wanted
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
