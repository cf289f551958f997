"""OpenVINO GenAI's ContinuousBatchingPipeline. 256 tokens a step were its best here; its KV blocks are u8."""

from __future__ import annotations

import argparse
from typing import Any

import contest


def load(asked: argparse.Namespace) -> tuple[contest.Generate, str, dict[str, Any]]:
    """The pipeline over a directory that optimum-cli exported."""
    import numpy as np
    import openvino
    import openvino_genai

    # int8: with a larger step the weights are unpacked less often (1,054 against 998 tokens/s, M offline).
    budget = asked.budget or (1024 if asked.dtype == "int8" and asked.size == "M" else 256)
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.max_num_batched_tokens, scheduler.max_num_seqs, scheduler.cache_size = budget, 64, 3
    scheduler.enable_prefix_caching, scheduler.dynamic_split_fuse = True, True
    properties: dict[str, Any] = {"INFERENCE_NUM_THREADS": asked.threads}
    if asked.dtype == "int8":
        properties["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = 128
    pipeline = openvino_genai.ContinuousBatchingPipeline(asked.model, scheduler, "CPU", properties)

    def generate(prompts: contest.Prompts, output: int) -> list[list[int]]:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = output
        config.ignore_eos, config.do_sample = True, False
        tensors = [openvino.Tensor(np.array([prompt], dtype=np.int64)) for prompt in prompts]
        return [list(one.m_generation_ids[0]) for one in pipeline.generate(tensors, [config] * len(prompts))]

    return generate, openvino_genai.__version__.split("-")[0], {"batched_tokens": budget, **properties}


if __name__ == "__main__":
    contest.main(contest.arguments(__doc__), load, prime=True)
