"""Conversations: sessions begin by a law of arrival; each later turn comes after the answer and a pause.

A turn's prompt is all that was said before and the new words, so a prefix cache finds the history again. The session
is one stream of tokens; block j of it has the id `session * 2**20 + j` wherever it appears. A user who leaves in the
middle of an answer ends the session, and so does a context that is full.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from penstock.workload.arrivals import Arrivals
from penstock.workload.bodies import Bodies, Body
from penstock.workload.source import SOURCE_BLOCK_TOKENS, TimedRequest
from penstock.workload.think import NO_PAUSE, Think

_ARRIVALS, _THINK, _TURNS = 1, 21, 22
SESSION_BLOCKS: Final = 1 << 20
"""Room for ids of one session: 16.8 million tokens."""


@dataclass(slots=True, kw_only=True)
class Sessions:
    """At most `count` requests over all sessions, none that arrives after `duration_s`."""

    law: Arrivals
    """When sessions begin; its rate is sessions per second."""
    bodies: Bodies
    """New words and answer of each turn; tenant and priority are those of the session's first turn."""
    turns: Callable[[np.random.Generator], int]
    think: Think = NO_PAUSE
    context_tokens: int | None = None
    count: int | None = None
    duration_s: float | None = None
    notes: tuple[str, ...] = ()
    _bodies: Iterator[Body] = field(init=False, repr=False)
    _pauses: np.random.Generator = field(init=False, repr=False)
    _made: int = field(init=False, default=0, repr=False)
    _open: dict[int, int] = field(init=False, repr=False)
    """Session -> turns still to come, of the sessions under way."""

    def __post_init__(self) -> None:
        self._start()

    def _start(self) -> None:
        self._bodies, self._made, self._open = self.bodies.draw(), 0, {}
        self._pauses = np.random.default_rng([self.bodies.seed, _THINK])

    @property
    def block_tokens(self) -> int:
        return SOURCE_BLOCK_TOKENS

    @property
    def requests(self) -> int | None:
        return self.count if self.duration_s is None else None

    def initial(self) -> Iterator[TimedRequest]:
        self._start()
        seed = self.bodies.seed
        numbers = np.random.default_rng([seed, _TURNS])
        session = 0
        for batch in self.law.stream(np.random.default_rng([seed, _ARRIVALS])):
            for arrival_s in batch.tolist():
                if self._over(arrival_s):
                    return
                turns = self.turns(numbers)
                prompt, output, shared, tenant, priority, cut = next(self._bodies)
                if turns > 1:
                    self._open[session] = turns - 1
                    prefix = _stream(session, shared, prompt)
                else:
                    prefix = shared or ()
                yield self._request(arrival_s, prompt, output, prefix or None, session, 0, tenant, priority, cut)
                session += 1

    def after(self, request: TimedRequest, finished_s: float) -> TimedRequest | None:
        session = request.session
        left = self._open.pop(session, 0) if session is not None else 0
        if session is None or not left or request.cancel_tokens:
            return None
        arrival_s = self.think.next_s(request.arrival_s, finished_s, self._pauses)
        if self._over(arrival_s):
            return None
        words, output, shared, _, _, cut = next(self._bodies)
        if shared is not None and self.bodies.shared is not None:
            words -= self.bodies.shared.tokens  # the shared text stands at the front of the conversation only
        prompt = request.prompt_tokens + request.output_tokens + words
        if self.context_tokens is not None and prompt + output > self.context_tokens:
            return None
        if left > 1:
            self._open[session] = left - 1
        prefix = _stream(session, request.prefix, prompt)
        return self._request(
            arrival_s, prompt, output, prefix, session, request.turn + 1, request.tenant, request.priority, cut
        )

    def _over(self, arrival_s: float) -> bool:
        return self._made == self.count or (self.duration_s is not None and arrival_s >= self.duration_s)

    def _request(
        self, arrival_s: float, prompt: int, output: int, prefix: tuple[int, ...] | None, session: int, turn: int,
        tenant: str, priority: int, cut: int,
    ) -> TimedRequest:  # fmt: skip
        made = TimedRequest(self._made, arrival_s, prompt, output, prefix, session, turn, tenant, priority, cut)
        self._made += 1
        return made


def _stream(session: int, before: tuple[int, ...] | None, prompt_tokens: int) -> tuple[int, ...]:
    """Ids of the whole blocks of a prompt: those of the turn before or of shared text, then the session's own."""
    front = before or ()
    base = session * SESSION_BLOCKS
    return front + tuple(range(base + len(front), base + prompt_tokens // SOURCE_BLOCK_TOKENS))
