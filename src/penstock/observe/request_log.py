"""One line for each request that has ended. Scrapes and probes have none, and an idle server writes nothing."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Final

from msgspec import Struct

SILENT: Final = frozenset({"/health", "/ready", "/metrics", "/version", "/dashboard/live"})
"""Routes that are asked every few seconds."""
STRANGERS_LINES: Final = 100
STRANGERS_S: Final = 60.0
"""In so long, at most so many lines about requests that were refused unread: whoever can connect can cause one."""
_log = logging.getLogger("penstock.serve")


class EndedSequence(Struct, frozen=True, kw_only=True):
    """One choice of an answer. Seconds; None where it never came so far."""

    output_tokens: int
    finish_reason: str | None
    first_token_s: float | None
    """From the arrival of the request."""
    queue_s: float | None
    prefill_s: float | None
    decode_s: float | None


class EndedRequest(Struct, frozen=True, kw_only=True):
    """What there is to tell about a request, and nothing of what was said in it."""

    request_id: str
    """As in the answer's x-request-id."""
    internal_id: str
    """As in the worker's records."""
    route: str
    tenant: str
    model: str
    stream: bool
    prompt_tokens: int
    output_tokens: int
    cached_tokens: int
    receive_s: float
    """From arrival until it was handed on: body, template, tokenizer."""
    seconds: float
    """From arrival to the end of the answer."""
    outcome: str
    """Finish reasons, the code of an error, or 'cancelled'."""
    failed: bool
    """`outcome` is the code of an error."""
    max_tokens: int
    temperature: float
    top_p: float
    seed: int | None
    sequences: Sequence[EndedSequence]


def write(ended: EndedRequest) -> None:
    """The line, at INFO."""
    if not _log.isEnabledFor(logging.INFO):
        return
    first = min((one.first_token_s for one in ended.sequences if one.first_token_s is not None), default=None)
    longest = max(ended.sequences, key=lambda one: one.output_tokens)
    facts: dict[str, object] = {
        "request_id": ended.request_id,
        "internal_id": ended.internal_id,
        "route": ended.route,
        "tenant": ended.tenant,
        "choices": len(ended.sequences),
        "prompt_tokens": ended.prompt_tokens,
        "output_tokens": ended.output_tokens,
        "cached_tokens": ended.cached_tokens,
        "receive_s": _rounded(ended.receive_s),
        "queue_s": _rounded(longest.queue_s),
        "prefill_s": _rounded(longest.prefill_s),
        "decode_s": _rounded(longest.decode_s),
        "ttft_s": _rounded(first),
        "seconds": _rounded(ended.seconds),
        "outcome": ended.outcome,
    }
    _log.info(" ".join(f"{name}={value}" for name, value in facts.items()), extra=facts)


def write_refusal(request_id: str, route: str, status: int, code: str) -> None:
    """The line of a request that was answered with an error before anything ran; none on a silent route below 500."""
    if route in SILENT and status < 500:
        return
    facts = {"request_id": request_id, "route": route, "status": status, "outcome": code}
    level = logging.ERROR if status >= 500 else logging.INFO
    _log.log(level, "request_id=%s refused %d %s", request_id, status, code, extra=facts)


class Strangers:
    """Lines about requests that were refused before anything of them was read, and no flood of them."""

    def __init__(self) -> None:
        self._began = -STRANGERS_S
        self._lines = 0

    def write(self, request_id: str, status: int, code: str) -> None:
        """As `write_refusal`, while there is room for a line; the first that finds none says so instead."""
        now = time.monotonic()
        if now - self._began >= STRANGERS_S:
            self._began, self._lines = now, 0
        self._lines += 1
        if self._lines <= STRANGERS_LINES:
            write_refusal(request_id, "", status, code)
        elif self._lines == STRANGERS_LINES + 1:
            rest_s = self._began + STRANGERS_S - now
            _log.warning(
                "requests are refused unread faster than lines are written: no more of these for %.0f s", rest_s,
                extra={"lines": STRANGERS_LINES, "seconds": round(rest_s, 1)},
            )  # fmt: skip


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 4)
