"""Tokens on the short way: from the frame that brought them to the socket, past every task.

Waking a task per token is what a streamed token costs most. So a sequence whose answer has begun, and whose reader has
nothing left to take, has its token read, formatted and written in the call that brought it. Whatever cannot be done
so at once (the socket is full, something comes with the token, the last one) goes to the reader as ever.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from penstock.serve.choice import Choice, Piece

if TYPE_CHECKING:
    from penstock.serve.metrics import Metrics


class Way(Protocol):
    """Where an answer's pieces go."""

    def open(self) -> bool:
        """Whether what is emitted now can leave without anybody having to wait."""

    def leave(self) -> None:
        """Something was emitted."""


class Collected:
    """The way of an answer that somebody else writes, later."""

    def open(self) -> bool:
        return True

    def leave(self) -> None:
        return


class Express:
    """Called as `runtime.stream.AtOnce` with the tokens of one choice."""

    __slots__ = ("_choice", "_emit", "_metrics", "_way", "error")

    def __init__(self, choice: Choice, metrics: Metrics, emit: Callable[[Choice, Piece], None], way: Way) -> None:
        self._choice, self._metrics, self._emit, self._way = choice, metrics, emit, way
        self.error: Exception | None = None
        """For the reader to raise: whoever calls this has the tokens of others to give out."""

    def __call__(self, token: int, now: float) -> bool:
        choice = self._choice
        if choice.first_at is None or not self._way.open():
            return False  # with the first output come facts about the prompt
        try:
            piece = choice.take_one(token)
            self._metrics.itl.observe(now - choice.last_at)
            self._metrics.generated_tokens += 1
            choice.last_at = now
            self._emit(choice, piece)
            if choice.finish_reason is None:
                self._way.leave()
                return True
        except Exception as error:  # noqa: BLE001 - it is raised where its request is answered
            self.error = error
        return False  # the reader is woken, and finds that the choice is over
