"""First tokens of transformers, greedy, in float32: what every float32 contestant must give. Run by our own Python.

python benchmarks/peers/reference.py --model DIR --size S --kind offline --seed 0      prints a list of two lists
"""

from __future__ import annotations

import argparse
import json

import contest


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--size", choices=contest.SIZES, required=True)
    parser.add_argument("--kind", required=True)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    import torch
    from transformers import LlamaForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = LlamaForCausalLM.from_pretrained(asked.model, dtype=torch.float32)
    first = []
    for prompt in contest.task(asked.kind, asked.size).prompts(asked.seed)[:2]:
        tokens = torch.tensor([prompt])
        with torch.inference_mode():
            made = model.generate(
                tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=8, min_new_tokens=8, do_sample=False,
                eos_token_id=None,
            )  # fmt: skip
        first.append(made[0, len(prompt) :].tolist())
    print(json.dumps(first))


if __name__ == "__main__":
    main()
