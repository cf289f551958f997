"""The random choice: one uniform number per token, from a counter-based generator, through the inverse CDF.

Counter-based, because the draw for token i of a request must be a function of (seed, i) alone: a stateful generator
would have to be restored after every preemption, migration and restart. Inverse CDF, because it needs one number per
token where Gumbel-max needs one per vocabulary entry (8 million hashes and logarithms a step at batch 64 and 128,000
tokens), and it is as exact. All of it runs on the host, whatever device made the logits: no kernel's order of summation
decides which token is drawn.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

BLOCK: Final = 64
"""Weights are summed in blocks of this many: a running sum is then needed over V/64 values and 64 more, not over V."""

_GOLDEN: Final = np.uint64(0x9E3779B97F4A7C15)


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014, with Stafford's constants): a bijection."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def uniforms(seeds: NDArray[np.uint64], counters: NDArray[np.int64]) -> NDArray[np.float64]:
    """One number in [0, 1) for each (seed, counter), of 53 bits: the counter-th value of a SplitMix64 stream.

    The seed is mixed first, so that neighbouring seeds start far apart.
    """
    start = _mix(seeds + _GOLDEN)
    mixed = _mix(start + (counters.astype(np.uint64) + np.uint64(1)) * _GOLDEN)
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def draw(weights: NDArray[np.float32], uniform: NDArray[np.float64]) -> NDArray[np.int64]:
    """For each row, the first column at which the running sum of weights exceeds uniform x total.

    Args:
        weights: [n, W], not negative, at least one positive per row; W a multiple of BLOCK (fill up with zeros).
        uniform: [n], in [0, 1).

    Returns: [n]; a column whose weight is zero is never drawn, however the sums are rounded.
    """
    rows = np.arange(len(weights))
    blocks = weights.reshape(len(weights), -1, BLOCK)
    sums = np.einsum("nbk->nb", blocks).astype(np.float64)
    running = np.cumsum(sums, axis=1)
    target = uniform * running[:, -1]
    block = _first_above(running, target, sums)
    before = running[rows, block] - sums[rows, block]
    inside = blocks[rows, block].astype(np.float64)
    column = _first_above(np.cumsum(inside, axis=1), target - before, inside)
    return block * BLOCK + column


def _first_above(
    running: NDArray[np.float64], target: NDArray[np.float64], parts: NDArray[np.float64]
) -> NDArray[np.int64]:
    """First index with running > target; the last positive part where rounding leaves none."""
    last_positive = parts.shape[1] - 1 - np.argmax(parts[:, ::-1] > 0, axis=1)
    above = np.argmax(running > np.maximum(target, 0.0)[:, None], axis=1)
    none = running[:, -1] <= target
    chosen: NDArray[np.int64] = np.where(none, last_positive, above)
    return chosen
