"""One sequence's place in its grammar.

    opening    the output may begin with the token that opens the model's reasoning, or with the grammar's text
    free       the model reasons: anything goes but an end, until the text that closes the reasoning has come
    strict     every token obeys the grammar

A place follows from the output tokens alone, so it is found again by replaying them, in another worker too.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from penstock.control.request import GUIDE_FAILED, Guide

if TYPE_CHECKING:
    import llguidance

    from penstock.engine.guide.vocabulary import Vocabulary

_UNENDING: Final = "it allows no token at this point"


class Phase(Enum):
    """Where the output stands."""

    OPENING = 0
    FREE = 1
    STRICT = 2


class Matching:
    """Follows one output. `fill` may run in another thread, between two calls of the others and never beside one."""

    __slots__ = (
        "_after", "_allowed", "_ends", "_guide", "_matcher", "_opener", "_origin", "_tail", "_vocabulary", "complete",
        "error", "phase", "ready", "taken",
    )  # fmt: skip

    def __init__(
        self, guide: Guide, compiled: llguidance.LLMatcher, vocabulary: Vocabulary, stop_ids: Iterable[int]
    ) -> None:
        """`compiled`: the grammar's matcher before any token; it is copied, never changed."""
        self._guide, self._origin, self._vocabulary = guide, compiled, vocabulary
        self._after = guide.after.encode()
        opener = guide.opener.encode()
        self._opener = next((id for id in vocabulary.control if opener and vocabulary.tokens[id] == opener), None)
        self._ends = np.array(sorted(set(stop_ids) & vocabulary.control), np.int64)
        self._allowed: NDArray[np.bool_] = np.zeros(vocabulary.size, bool)
        self.restart()

    def restart(self) -> None:
        """Back to the beginning of the output."""
        self._matcher = self._origin.deep_copy()
        self._tail = b""
        self.taken = 0
        """Output tokens it has seen."""
        self.complete = False
        """The text can only end here."""
        self.error = ""
        self.ready = False
        """The mask of the next token is there."""
        self.phase = Phase.STRICT
        if self._after:
            self.phase = Phase.FREE if not self._guide.opener else Phase.OPENING
        if self.phase is Phase.OPENING and self._opener is None:
            self.phase = Phase.STRICT

    def replay(self, output: tuple[int, ...]) -> None:
        """Stand where `output` ends."""
        if self.taken == len(output):
            return
        self.restart()
        for token in output:
            self.take(token)

    def take(self, token: int) -> None:
        """One more token of the output."""
        self.taken += 1
        self.ready = False
        if self.error or self.complete:
            return
        if self.phase is not Phase.FREE and token in self._ends:
            return
        if self.phase is Phase.FREE:
            self._read(token)
            return
        if self.phase is Phase.OPENING:
            if token == self._opener:
                self.phase = Phase.FREE
                return
            self.phase = Phase.STRICT
        self._consume([token])

    def fill(self) -> None:
        """Compute the mask of the next token, unless it is there."""
        if self.ready or self.error or self.phase is Phase.FREE:
            self.ready = True
            return
        size, matcher, taken = self._vocabulary.size, self._matcher, self.taken
        bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        if matcher is not self._matcher or taken != self.taken:
            return  # it took so long that the sequence was given up or started again meanwhile
        if matcher.is_error():
            self.error = _reason(matcher)
        else:
            self._allowed[:] = np.unpackbits(bits, count=size, bitorder="little")
            eos = self._vocabulary.eos
            accepting = self._matcher.is_accepting()
            if eos is not None:
                self._allowed[eos] = accepting and not len(self._ends)
                if self._allowed[eos] and self._allowed.sum() > 1:
                    self._allowed[eos] = False  # the client wants no end where there is another way
            self._allowed[self._ends] = accepting
            if self.phase is Phase.OPENING:
                self._allowed[self._opener] = True
            if not self._allowed.any():
                self.error = GUIDE_FAILED + _UNENDING
        self.ready = True

    def edit(self, row: NDArray[np.float32]) -> None:
        """Take out of the logits [V], in place, what may not come next. `fill` came before."""
        if self.phase is Phase.FREE:
            row[self._ends] = -np.inf
        else:
            np.copyto(row, -np.inf, where=~self._allowed)

    def _read(self, token: int) -> None:
        """Look for the end of the reasoning; what follows it in the same token is the grammar's."""
        if token >= len(self._vocabulary.tokens):
            return
        text = self._tail + self._vocabulary.tokens[token]
        at = text.find(self._after)
        if at < 0:
            self._tail = text[-(len(self._after) - 1) :] if len(self._after) > 1 else b""
            return
        self.phase = Phase.STRICT
        rest = text[at + len(self._after) :].lstrip()
        known = self._vocabulary.byte_ids
        self._consume([known[rest[i : i + 1]] for i in range(len(rest)) if rest[i : i + 1] in known])

    def _consume(self, tokens: list[int]) -> None:
        if tokens and not self._matcher.consume_tokens(tokens):
            self.error = _reason(self._matcher)
        self.complete = not self.error and self._matcher.is_stopped() and self._matcher.is_accepting()


def _reason(matcher: llguidance.LLMatcher) -> str:
    return GUIDE_FAILED + matcher.get_error().split("\n")[0][:200]
