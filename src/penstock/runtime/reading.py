"""How far the weights are read. A load that is over soon tells nothing, one that takes minutes tells now and then."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

OnRead = Callable[[int, int], None]
"""Told (bytes read, bytes of all tensors)."""

QUIET_S: Final = 1.0
"""So long nobody wonders."""
EVERY_S: Final = 0.5


def seldom(tell: OnRead, clock: Callable[[], float] = time.monotonic) -> OnRead:
    """Passes on to `tell` what comes QUIET_S from now or later, and of that one piece of news in EVERY_S."""
    due = clock() + QUIET_S

    def read(done: int, total: int) -> None:
        nonlocal due
        now = clock()
        if now >= due:
            due = now + EVERY_S
            tell(done, total)

    return read
