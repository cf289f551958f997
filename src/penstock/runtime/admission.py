"""How much may wait. A pure decision: requests come, get their first token, or leave; time is an argument.

The queue is bounded in requests and in prompt tokens, both counted over requests that have no token yet. A refusal says
when to come back: the tokens in the queue, divided by the rate at which prompt tokens have been leaving it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from penstock.errors import InvalidRequest, Overloaded

MIN_RETRY_S: Final = 0.05
MAX_RETRY_S: Final = 60.0
_UNKNOWN_RETRY_S: Final = 1.0
"""Before anything was measured."""
_RATE_HALF_LIFE_S: Final = 10.0
"""Half-life of what was measured."""


class Admission:
    """The bounded queue's books.

    >>> queue = Admission(max_requests=1, max_prompt_tokens=100)
    >>> queue.admit("a", 30, now=0.0)
    >>> queue.admit("b", 30, now=0.0)
    Traceback (most recent call last):
    penstock.errors.Overloaded: the queue is full: 1 of 1 requests and 30 of 100 prompt tokens wait for a first token
    """

    def __init__(self, *, max_requests: int, max_prompt_tokens: int) -> None:
        self._max_requests = max_requests
        self._max_prompt_tokens = max_prompt_tokens
        self._waiting: dict[str, int] = {}
        self._waiting_tokens = 0
        self._left_tokens = 0.0
        self._busy_s = 0.0
        self._now = 0.0

    @property
    def requests(self) -> int:
        """How many wait for their first token."""
        return len(self._waiting)

    @property
    def prompt_tokens(self) -> int:
        """The length of their prompts together."""
        return self._waiting_tokens

    @property
    def saturated(self) -> bool:
        """The next request of any size would be refused."""
        return len(self._waiting) >= self._max_requests or self._waiting_tokens >= self._max_prompt_tokens

    def admit(self, request_id: str, prompt_tokens: int, now: float) -> None:
        """Take a request in. An empty queue takes any: else a long prompt could never run.

        Raises:
            Overloaded: a bound would be exceeded; nothing was taken. `retry_after_s` is within [0.05, 60].
        """
        self.admit_group({request_id: prompt_tokens}, now)

    def admit_group(self, prompt_tokens: Mapping[str, int], now: float, *, field: str = "prompt") -> None:
        """Take several requests (id -> prompt tokens) in together, or none of them.

        Raises:
            InvalidRequest: more than one, and together beyond a bound even of an empty queue, so that no time to come
                back could be named; `field` is what the caller would have to make smaller.
            Overloaded: as in `admit`.
        """
        count, tokens = len(prompt_tokens), sum(prompt_tokens.values())
        if count > 1 and (count > self._max_requests or tokens > self._max_prompt_tokens):
            raise InvalidRequest(
                field=field, value=f"{count} sequences with {tokens} prompt tokens",
                why=f"the queue holds {self._max_requests} requests and {self._max_prompt_tokens} prompt tokens",
                remedy="several smaller requests, or a larger server.queue",
            )  # fmt: skip
        full = len(self._waiting) + count > self._max_requests
        if full or (self._waiting and self._waiting_tokens + tokens > self._max_prompt_tokens):
            raise Overloaded(
                f"the queue is full: {len(self._waiting)} of {self._max_requests} requests and {self._waiting_tokens} "
                f"of {self._max_prompt_tokens} prompt tokens wait for a first token",
                retry_after_s=self.retry_after_s(now),
            )
        self._pass(now)
        self._waiting.update(prompt_tokens)
        self._waiting_tokens += tokens

    def started(self, request_id: str, now: float) -> None:
        """It has its first token and waits no more."""
        self._pass(now)
        self._left_tokens += self._leave(request_id)

    def gone(self, request_id: str, now: float) -> None:
        """Cancelled or failed. Says nothing about the rate of service; unknown ids are ignored."""
        self._pass(now)
        self._leave(request_id)

    def retry_after_s(self, now: float) -> float:
        """Seconds until what waits now has had its turn, at the measured rate."""
        self._pass(now)
        if not self._left_tokens:
            return _UNKNOWN_RETRY_S
        rate_tokens_per_s = self._left_tokens / max(self._busy_s, 1e-3)
        return min(max(self._waiting_tokens / rate_tokens_per_s, MIN_RETRY_S), MAX_RETRY_S)

    def _leave(self, request_id: str) -> int:
        tokens = self._waiting.pop(request_id, 0)
        self._waiting_tokens -= tokens
        return tokens

    def _pass(self, now: float) -> None:
        """Time goes by; it counts as service time only while someone waits."""
        elapsed, self._now = max(now - self._now, 0.0), now
        if self._waiting:
            keep = 0.5 ** (elapsed / _RATE_HALF_LIFE_S)
            self._left_tokens *= keep
            self._busy_s = self._busy_s * keep + elapsed
