"""What is held out: a tenth of all sums, story casts and keys, chosen by a hash of the thing itself.

A document of the training stream never contains a held-out item, and a document of the held-out stream contains only
those, so a score on the held-out stream cannot be memory. The hash is CRC-32: the same on every machine and run.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable
from enum import StrEnum
from typing import TypeVar

ONE_IN = 10


class Split(StrEnum):
    TRAIN = "train"
    HELD_OUT = "held-out"


def is_held_out(*parts: object) -> bool:
    """Whether the thing these parts name belongs to the held-out tenth.

    >>> is_held_out("sum", 27, 45) == is_held_out("sum", 27, 45)
    True
    """
    return zlib.crc32("/".join(map(str, parts)).encode()) % ONE_IN == 0


T = TypeVar("T")


def draw(rng: random.Random, split: Split, kind: str, make: Callable[[random.Random], tuple[T, ...]]) -> tuple[T, ...]:
    """The first of `make`'s proposals that belongs to the split."""
    while True:
        made = make(rng)
        if is_held_out(kind, *made) == (split is Split.HELD_OUT):
            return made
