"""Tokens on the short way: from the frame that brought them to the socket, past every task.

Waking a task per token is what a streamed token costs most. So a sequence whose answer has begun, and whose reader has
nothing left to take, has its token read, formatted and written in the call that brought it. Whatever cannot be done
so at once (the socket is full, something comes with the token, the last one) goes to the reader as ever.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Protocol

from penstock.serve.choice import Choice, Piece
from penstock.serve.events import json_text

if TYPE_CHECKING:
    from penstock.serve.metrics import Metrics


_json_of: Final = lru_cache(maxsize=2**16)(json_text)
"""Of a token's text, which is short: most of what is written are a few thousand tokens, again and again."""


class Way(Protocol):
    """Where an answer's pieces go."""

    def open(self) -> bool:
        """Whether what is emitted now can leave without anybody having to wait."""

    def leave(self) -> None:
        """Something was emitted."""

    def around(self, choice: Choice) -> tuple[bytes, bytes] | None:
        """What an event has before and after the JSON of a text, if a piece of this choice is nothing but that."""

    def write(self, event: bytes, now: float) -> None:
        """Such an event leaves; asked of an open way only."""


class Collected:
    """The way of an answer that somebody else writes, later."""

    def open(self) -> bool:
        return True

    def leave(self) -> None:
        return

    def around(self, choice: Choice) -> tuple[bytes, bytes] | None:
        return None

    def write(self, event: bytes, now: float) -> None:
        raise AssertionError("nothing here has an event of its own")


class Express:
    """Called as `runtime.stream.AtOnce` with the tokens of one choice."""

    __slots__ = ("_around", "_choice", "_emit", "_metrics", "_way", "error")

    def __init__(self, choice: Choice, metrics: Metrics, emit: Callable[[Choice, Piece], None], way: Way) -> None:
        self._choice, self._metrics, self._emit, self._way = choice, metrics, emit, way
        self._around = way.around(choice) if choice.only_text else None
        self.error: Exception | None = None
        """For the reader to raise: whoever calls this has the tokens of others to give out."""

    def __call__(self, token: int, now: float) -> bool:
        choice = self._choice
        if choice.first_at is None or not self._way.open():
            return False  # with the first output come facts about the prompt
        metrics = self._metrics
        metrics.itl.observe(now - choice.last_at)
        metrics.generated_tokens += 1
        choice.last_at = now
        try:
            if self._around is not None:
                text = choice.take_text(token)
                if text:
                    before, after = self._around
                    self._way.write(before + _json_of(text) + after, now)
                return True
            self._emit(choice, choice.take_one(token))
            if choice.finish_reason is None:
                self._way.leave()
                return True
        except Exception as error:  # noqa: BLE001 - it is raised where its request is answered
            self.error = error
        return False  # the reader is woken, and finds that the choice is over
