"""Times that a request asks for, from its headers: x-slo-ttft-ms, x-slo-tpot-ms, x-request-deadline-ms."""

from __future__ import annotations

from typing import Final

from starlette.requests import Request

from penstock.errors import InvalidRequest
from penstock.runtime.admission import NO_BOUNDS
from penstock.runtime.facts import TimeBounds

TTFT: Final = "x-slo-ttft-ms"
TPOT: Final = "x-slo-tpot-ms"
DEADLINE: Final = "x-request-deadline-ms"
_NAMES: Final = frozenset(name.encode() for name in (TTFT, TPOT, DEADLINE))
MAX_MS: Final = 86_400_000.0


def time_bounds(request: Request) -> TimeBounds:
    """What the headers ask for. Raises InvalidRequest for what is no number of milliseconds up to a day."""
    if _NAMES.isdisjoint(dict(request.scope["headers"])):
        return NO_BOUNDS
    headers = request.headers
    return TimeBounds(
        _seconds(headers.get(TTFT), TTFT), _seconds(headers.get(TPOT), TPOT), _seconds(headers.get(DEADLINE), DEADLINE)
    )


def _seconds(text: str | None, name: str) -> float | None:
    if text is None:
        return None
    try:
        milliseconds = float(text) if len(text) <= 32 and text.isascii() else 0.0
    except ValueError:
        milliseconds = 0.0
    if not 0 < milliseconds <= MAX_MS:
        raise InvalidRequest(
            field=name, value=text[:64], why="it is no number of milliseconds", remedy="more than 0, up to a day"
        )
    return milliseconds / 1e3
