"""vLLM's CPU build, LLM.generate with the engine in this process. It compiles at its start, minutes the first time."""

from __future__ import annotations

import argparse
import os
from typing import Any

import contest

SETTINGS = {
    "VLLM_CPU_KVCACHE_SPACE": "3", "VLLM_CPU_OMP_THREADS_BIND": "0-1", "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "WARNING", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1",
}  # fmt: skip


def load(asked: argparse.Namespace) -> tuple[contest.Generate, str, dict[str, Any]]:
    """The engine over a checkpoint: float32, or compressed-tensors W8A8 for int8."""
    os.environ.update({name: value for name, value in SETTINGS.items() if name not in os.environ})
    import vllm

    budget = asked.budget or 2048
    engine = vllm.LLM(
        model=asked.model, dtype="float32", max_model_len=contest.CONTEXT, max_num_seqs=64,
        max_num_batched_tokens=budget, enable_prefix_caching=True, disable_log_stats=True,
    )  # fmt: skip

    def generate(prompts: contest.Prompts, output: int) -> list[list[int]]:
        sampling = vllm.SamplingParams(temperature=0, max_tokens=output, ignore_eos=True, detokenize=False)
        inputs = [{"prompt_token_ids": prompt} for prompt in prompts]
        return [list(one.outputs[0].token_ids) for one in engine.generate(inputs, sampling, use_tqdm=False)]

    return generate, vllm.__version__, {"batched_tokens": budget}


if __name__ == "__main__":
    contest.main(contest.arguments(__doc__), load)
