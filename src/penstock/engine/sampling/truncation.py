"""top_k, top_p and min_p: each sets the weights of the tokens it drops to zero.

Weights are exp((logit - largest) / temperature): the largest is 1, and no sum is needed to compare two of them.
Tokens are ordered by weight, equal weights by id. top_k keeps whatever ties with the k-th, as the usual
implementations do; top_p keeps the shortest head of the order whose share reaches p, and needs that order only down to
there. So it sorts the tokens above a bound, and lowers the bound while their share falls short of p.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

_BOUNDS: Final = (1e-2, 1e-4, 0.0)
"""Relative to the most likely token. A trained model's head is sharp: the first bound leaves a few dozen tokens."""


def keep_top_k(weights: NDArray[np.float32], k: int) -> None:
    """Zero all of weights [V] that are smaller than the k-th largest. 0 < k < V."""
    kth = np.partition(weights, len(weights) - k)[len(weights) - k]
    weights[weights < kth] = 0


def keep_top_p(weights: NDArray[np.float32], p: float) -> None:
    """Zero all of weights [V] outside the shortest head whose share of the sum reaches p. 0 < p < 1.

    Source: nucleus sampling, Holtzman et al., ICLR 2020.
    """
    enough = p * weights.sum(dtype=np.float64)
    for bound in _BOUNDS:
        head = np.flatnonzero(weights > bound)
        order = head[np.argsort(-weights[head], kind="stable")]
        running = np.cumsum(weights[order], dtype=np.float64)
        kept = int(np.searchsorted(running, enough)) + 1
        if kept <= len(order):
            break
    chosen = order[:kept]
    values = weights[chosen]
    weights[:] = 0
    weights[chosen] = values


def keep_min_p(weights: NDArray[np.float32], p: float) -> None:
    """Zero all of weights [V] smaller than p times the largest, which is 1.

    Source: min-p sampling, Nguyen et al., ICLR 2025.
    """
    weights[weights < p] = 0
