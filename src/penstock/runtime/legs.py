"""Requests of a model that computes a sequence anew when it grows beyond a length: LongRoPE (engine/ops/rope.py).

Such a request runs as two, one on each side of the length. The second holds what the first has made as output that is
there already, as a request does that goes on after a restart, and has an id of its own, which nobody outside sees. What
is computed on one side is of no use on the other, so they share no prefixes either.
"""

from __future__ import annotations

from collections.abc import Sequence

from msgspec.structs import replace

from penstock.control.news import Failed, Finished, NewTokens, Update
from penstock.control.request import Request

_BEYOND = "\0beyond"


class Legs:
    """`beyond`: tokens up to which a sequence is on the near side."""

    def __init__(self, beyond: int) -> None:
        self._beyond = beyond
        self._crossing: dict[str, Request] = {}
        """As they were asked for, while they run on the near side."""

    def begin(self, request: Request) -> Request:
        """What to run of it now."""
        if request.prefill_tokens > self._beyond:
            return replace(request, salt=request.salt + _BEYOND)
        room = self._beyond + 1 - len(request.prompt)
        if request.max_tokens <= room:
            return request
        self._crossing[request.id] = request
        return replace(request, max_tokens=room)

    def forget(self, request_id: str) -> None:
        """It was not taken, or nobody wants it any more."""
        self._crossing.pop(request_id, None)

    def ids(self, request_id: str) -> tuple[str, str]:
        """Under which a request may be running."""
        return request_id, request_id + _BEYOND

    def rest(self, finished: Finished, output: Sequence[int]) -> Request | None:
        """The second leg, if the first is what has ended, with `output`; None: it is over."""
        request = self._crossing.pop(finished.id, None)
        if request is None or finished.reason != "length":
            return None
        return replace(request, id=request.id + _BEYOND, output=tuple(output), salt=request.salt + _BEYOND)

    def outward(self, update: Update) -> Update:
        """The same news under the id that its reader knows."""
        match update:
            case NewTokens():
                if not any(id.endswith(_BEYOND) for id in update.tokens):
                    return update
                return NewTokens(
                    {id.removesuffix(_BEYOND): token for id, token in update.tokens.items()},
                    {id.removesuffix(_BEYOND): one for id, one in update.logprobs.items()},
                )
            case Finished():
                return replace(update, id=update.id.removesuffix(_BEYOND))
            case Failed():
                self._crossing.pop(update.id, None)
                return replace(update, id=update.id.removesuffix(_BEYOND))
