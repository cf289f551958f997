"""One request as the front end follows it: tokens are pushed in as frames arrive, one reader takes them out.

A reader slower than the engine finds several tokens in one Output; what waits for it is bounded by max_tokens. One that
has nothing left to take may be spared the waking: what it named as `at_once` is offered the token first.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from penstock.control.request import Request
from penstock.control.step import Finished, PromptLogprobs, TokenLogprobs
from penstock.errors import PenstockError
from penstock.runtime.facts import Output, Timings

AtOnce = Callable[[int, float], bool]
"""Given a token that nothing comes with, and the time; returns whether it has dealt with it. It must not raise."""


class Stream:
    """Made in the event loop that reads it. One reader at a time."""

    def __init__(self, request: Request, now: float, at_once: AtOnce | None = None) -> None:
        self.request = request
        self._at_once: Final = at_once
        self.output: list[int] = list(request.output)
        """All tokens so far: what another worker would be given to go on from."""
        self.sent = False
        """A worker has it."""
        self.held = False
        """That worker has given it KV: until then it only waited there."""
        self.known = 0
        """Tokens of the output that this worker was given with it."""
        self.blame = 0
        """For their ends, as InFlight.worker_gone gives it."""
        self.deaths = 0
        """Workers that ended while they held it since it last made a token."""
        self.over = asyncio.Event()
        """Set when it has ended or its reader has left."""
        self._taken = len(self.output)
        self._logprobs: list[TokenLogprobs] = []
        self.embedding: tuple[float, ...] | None = None
        """Of its prompt, if asked for: there when its only token is."""
        self._prompt_logprobs: PromptLogprobs | None = None
        """All so far; None: nobody wants them, or the reader has them."""
        if request.sampling.prompt_logprobs is not None:
            self._prompt_logprobs = PromptLogprobs(1, [], [], [])
        self._finished: Finished | None = None
        self._error: PenstockError | None = None
        self._reader: asyncio.Future[None] | None = None
        self._submitted = now
        self._started: float | None = None
        self._cached_tokens = 0
        self._first: float | None = None
        self._timings: Timings | None = None
        self._loop = asyncio.get_running_loop()
        self._last = now

    @property
    def ended(self) -> bool:
        """Finished or failed; what is left is for the reader to take."""
        return self._finished is not None or self._error is not None

    @property
    def proven(self) -> bool:
        """The worker that has it has made a token of it: it is not what workers die of, or not yet."""
        return len(self.output) > self.known

    def admitted(self, cached_tokens: int, now: float) -> None:
        """It got KV blocks; only the first time counts, since what follows is recomputation."""
        if self._started is None:
            self._started, self._cached_tokens = now, cached_tokens

    def score(self, some: PromptLogprobs) -> None:
        """Log-probabilities of a part of the prompt. Parts come again where the prompt is computed again."""
        have = self._prompt_logprobs
        if have is not None and not self.output:
            known = len(have.chosen) + have.start - some.start
            have.chosen.extend(some.chosen[known:])
            have.ranks.extend(some.ranks[known:])
            have.top.extend(some.top[known:])

    def push(self, token: int, logprobs: TokenLogprobs | None, now: float, *, last: bool = False) -> None:
        """A new token, its logprobs if the request asked for them, and whether `finish` follows at once."""
        self.output.append(token)
        if logprobs is not None:
            self._logprobs.append(logprobs)
        if self._first is None:
            self._first = now
        self._last = now
        self.deaths = self.blame = 0
        if (
            self._at_once is not None
            and logprobs is None
            and not last
            and self._taken == len(self.output) - 1
            and self._reader is not None
            and not self._reader.done()
            and self._at_once(token, now)
        ):
            self._taken += 1
            if self._timings is not None:
                self._timings.decode_s = now - self._first
            return
        self._wake()

    def finish(self, finished: Finished) -> None:
        """No token comes after this."""
        if not self.ended:
            self._finished = finished
            self.over.set()
            self._wake()

    def fail(self, error: PenstockError) -> None:
        """The reader gets what is there, then the error."""
        if not self.ended:
            self._error = error
            self.over.set()
            self._wake()

    async def next(self) -> Output:
        """Wait for news. Raises the error the stream failed with, after its last tokens."""
        while self._taken == len(self.output) and not self.ended:
            self._reader = self._loop.create_future()
            await self._reader
        tokens = tuple(self.output[self._taken :])
        self._taken += len(tokens)
        if self._error is not None and not tokens:
            raise self._error
        logprobs = tuple(self._logprobs) if self.request.sampling.logprobs is not None else None
        self._logprobs.clear()
        scored, self._prompt_logprobs = self._prompt_logprobs, None
        reason, stop_id = (self._finished.reason, self._finished.stop_id) if self._finished else (None, None)
        return Output(
            tokens, logprobs, finished=reason, stop_id=stop_id, cached_tokens=self._cached_tokens,
            timings=self._so_far(), prompt_logprobs=scored, embedding=self.embedding,
        )  # fmt: skip

    def _so_far(self) -> Timings:
        """One object from the first token on, brought up to date at each output: there is one output per token."""
        if self._timings is not None and self._first is not None:
            self._timings.decode_s = self._last - self._first
            return self._timings
        first = self._last if self._first is None else self._first
        started = first if self._started is None else min(self._started, first)
        timings = Timings(
            queue_s=max(started - self._submitted, 0.0), prefill_s=first - started, decode_s=self._last - first
        )
        if self._first is not None:
            self._timings = timings
        return timings

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
