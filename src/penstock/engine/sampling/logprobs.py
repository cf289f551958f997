"""Log-probabilities of the model's own distribution: natural logarithm, temperature 1, before any option."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from penstock.control.step import TokenLogprobs


def token_logprobs(logits: NDArray[np.float32], token: int, k: int) -> TokenLogprobs:
    """The logprob of `token` and those of the `k` most likely, under raw logits [V]; ties to the lowest id."""
    wide = logits.astype(np.float64)
    largest = wide.max()
    log_sum = largest + np.log(np.exp(wide - largest).sum())
    top: tuple[tuple[int, float], ...] = ()
    if k:
        k = min(k, len(logits))
        kth = np.partition(logits, len(logits) - k)[len(logits) - k]
        head = np.flatnonzero(logits >= kth)
        head = head[np.argsort(-logits[head], kind="stable")][:k]
        top = tuple((int(id), float(wide[id] - log_sum)) for id in head)
    return TokenLogprobs(chosen=float(wide[token] - log_sum), top=top)
