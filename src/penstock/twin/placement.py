"""Where data lies and where work runs: one way to divide, and what a mismatch costs.

HPX compute (Heller et al., ISC 2016 workshops): an allocator and an executor that divide n items over the same targets
by the same arithmetic touch only memory of their own. `split` is that arithmetic, for whoever places and whoever runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise


def split(items: int, targets: int) -> list[range]:
    """Target i gets [i n / k, (i + 1) n / k): all items once, in order, shares that differ by one at most.

    >>> split(10, 3)
    [range(0, 3), range(3, 6), range(6, 10)]
    """
    bounds = [target * items // targets for target in range(targets + 1)]
    return [range(start, stop) for start, stop in pairwise(bounds)]


def local_shares(placed: Sequence[range], run: Sequence[range]) -> list[float]:
    """Of what each target runs, the share that lies on it. 1 everywhere when both divide alike; 1 for a target that
    runs nothing."""
    shares = []
    for target, work in enumerate(run):
        own = placed[target] if target < len(placed) else range(0)
        both = max(0, min(work.stop, own.stop) - max(work.start, own.start))
        shares.append(both / len(work) if work else 1.0)
    return shares


def bytes_per_s(local_shares: Sequence[float], local: float, remote: float) -> float:
    """All targets at once: each streams its local share at `local` bytes/s and the rest at `remote`, and they add up.

    >>> bytes_per_s([1.0, 1.0], 40e9, 20e9), bytes_per_s([0.0, 0.0], 40e9, 20e9)
    (80000000000.0, 40000000000.0)
    """
    return sum(1.0 / (share / local + (1.0 - share) / remote) for share in local_shares)


def stream_s(traffic_bytes: float, rate_bytes_per_s: float, launch_s: float = 0.0) -> float:
    """A kernel bound by memory: what it takes to start, and its bytes."""
    return launch_s + traffic_bytes / rate_bytes_per_s


def half_peak_items(launch_s: float, rate_bytes_per_s: float, bytes_per_item: float) -> float:
    """n 1/2: where starting takes as long as streaming, so that half the peak rate is reached."""
    return launch_s * rate_bytes_per_s / bytes_per_item
