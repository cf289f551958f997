"""Idealized runtime of a modelled deployment: one request alone on it (NeurIPS 2023, arXiv 2305.02440).

T(p, o) = alpha(p) + beta (o - 1). The pair compares models on one stack without queues, at the cost of a few prices.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Final

from penstock.runtime.modelled import Modelled
from penstock.twin.affine import Fit, fit, profile
from penstock.twin.load import StepLoad

PROMPTS: Final = (128, 512, 1024, 2048)
OUTPUTS: Final = (1, 8, 32, 64)


def alone_s(modelled: Modelled, prompt_tokens: int, output_tokens: int) -> float:
    """Seconds from the first prompt chunk to the last token of a request that has the replica to itself."""
    price, budget = modelled.price, modelled.deployment.policy.token_budget
    seconds = 0.0
    for past in range(0, prompt_tokens, budget):
        tokens = min(budget, prompt_tokens - past)
        last = past + tokens == prompt_tokens
        seconds += price.seconds(StepLoad(chunks=((past, tokens),), sampled=int(last)))
    for made in range(output_tokens - 1):
        seconds += price.seconds(StepLoad(decoding=1, decode_context=prompt_tokens + made, sampled=1))
    return seconds


def idealized(modelled: Modelled, prompts: Sequence[int] = PROMPTS, outputs: Sequence[int] = OUTPUTS) -> Fit:
    """alpha for each prompt length, and beta."""
    measured = profile(partial(alone_s, modelled), prompts=prompts, outputs=outputs)
    return fit(measured, digits=None)
