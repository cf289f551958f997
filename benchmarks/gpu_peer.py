"""transformers' continuous batching on a model of the same shape, for the same kind of requests."""

from __future__ import annotations

import random
import time
from typing import Any

import torch
from gpu_model import SHAPES, parameters


def transformers_batching(
    shape: str, device: torch.device, *, requests: int, prompt: int, output: int, peak: float, budget_s: float
) -> dict[str, Any]:
    """Rates of its `generate_batch`; its own choice of attention is told. Stops asking at the budget, not within it."""
    import transformers
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    with device:
        model = LlamaForCausalLM._from_config(LlamaConfig(**SHAPES[shape]), dtype=torch.bfloat16).eval()
    found: dict[str, Any] = {"version": transformers.__version__}
    config = GenerationConfig(max_new_tokens=output, do_sample=False, eos_token_id=-1, pad_token_id=0)
    more: dict[str, Any] = {}
    if device.type != "cuda":
        from transformers.generation.configuration_utils import ContinuousBatchingConfig

        # Left to itself it fills the whole memory with pages before it begins.
        more["continuous_batching_config"] = ContinuousBatchingConfig(num_blocks=64, page_size=32, max_batch_tokens=64)
    draw = random.Random(2)

    def inputs(count: int, length: int) -> list[list[int]]:
        return [[draw.randrange(model.config.vocab_size) for _ in range(length)] for _ in range(count)]

    def run(count: int, length: int, new: int) -> tuple[float, int]:
        config.max_new_tokens = new
        began = time.perf_counter()
        outputs = model.generate_batch(inputs(count, length), generation_config=config, **more)
        took = time.perf_counter() - began
        return took, sum(len(one.generated_tokens) for one in outputs.values())

    run(4, 16, 4)
    first_s, _ = run(max(1, requests // 8), prompt, output)
    # What an eighth took says how many fit into the budget.
    requests = max(1, min(requests, int(requests // 8 * budget_s / first_s)))
    took, made = run(requests, prompt, output)
    rate = (requests * prompt + made) / took
    found |= {
        "attention": model.config._attn_implementation, "requests": requests, "seconds": took, "output_tokens": made,
        "tokens_s": rate, "output_tokens_s": made / took,
        "share_of_optimal": rate * 2 * parameters(shape) / peak / 1e12 if peak else 0.0,
    }  # fmt: skip
    return found
