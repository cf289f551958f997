"""Sizes, counts and durations as people write them: 25k, 32Ki, 2GiB, 30s, 500ms.

Decimal suffixes (k, M, G, T) are powers of 1,000, binary ones (Ki, Mi, Gi, Ti) of 1,024; a B may follow for bytes.
"""

from __future__ import annotations

import re
from typing import Annotated, Final

from pydantic import BeforeValidator

_SCALE: Final[dict[str, int]] = {
    "": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12,
    "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40,
}  # fmt: skip
_SECONDS: Final[dict[str, float]] = {"": 1.0, "us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_COUNT: Final = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([kKMGT]i?|)B?\s*")
_TIME: Final = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(us|ms|min|s|m|h|)\s*")


def parse_count(text: str) -> int:
    """'25k' is 25,000 and '2GiB' 2,147,483,648. Raises ValueError for anything else, and for fractions of one.

    >>> parse_count("32Ki"), parse_count("1.5k")
    (32768, 1500)
    """
    match = _COUNT.fullmatch(text)
    if match is None or match[2] not in _SCALE:
        raise ValueError(f"{text!r} is not a count or size; write 4096, 25k, 32Ki, 2GiB")
    value = float(match[1]) * _SCALE[match[2]]
    if value != int(value):
        raise ValueError(f"{text!r} is {value}, not a whole number")
    return int(value)


def parse_seconds(text: str) -> float:
    """'30s', '500ms', '2min'; a bare number is seconds. Raises ValueError for anything else.

    >>> parse_seconds("500ms")
    0.5
    """
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a duration; write 30s, 500ms, 2min")
    return float(match[1]) * _SECONDS[match[2]]


def format_bytes(count: float) -> str:
    """
    >>> format_bytes(536_870_912)
    '512.0 MiB'
    """
    for suffix in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024 or suffix == "GiB":
            return f"{count:.0f} B" if suffix == "B" else f"{count:.1f} {suffix}"
        count /= 1024
    return f"{count:.1f} GiB"


def reason(message: str) -> str:
    """What a validator said, without pydantic's word for who said it.

    >>> reason("Value error, 'many' is not a count or size; write 4096, 25k, 32Ki, 2GiB")
    "'many' is not a count or size; write 4096, 25k, 32Ki, 2GiB"
    """
    return message.removeprefix("Value error, ")


def _count(value: object) -> object:
    return parse_count(value) if isinstance(value, str) else value


def _seconds(value: object) -> object:
    return parse_seconds(value) if isinstance(value, str) else value


def _words(value: object) -> object:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


Count = Annotated[int, BeforeValidator(_count)]
Seconds = Annotated[float, BeforeValidator(_seconds)]
Words = Annotated[str, BeforeValidator(_words)]
"""Text that may be a bare number: YAML reads `prompt_tokens: 512` as one."""
