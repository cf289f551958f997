"""Who may wait, and what is told to who may not. A pure decision: requests come, get their first token, or leave; time
is an argument.

The queue is bounded in requests and in prompt tokens, both counted over requests that have no token yet. Where there
are several tenants, each has its own line, and a line may grow to a share of what the others leave free (dynamic
thresholds, Choudhury and Hahne, IEEE/ACM ToN 1998): a tenant alone may use most of the queue, and one that floods
cannot keep the next from entering. Who asks for a time (a deadline, an SLO) that the line's own speed cannot keep is
refused at once. A refusal says when a place will be free, by the speed of the tenant's own line (line.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from penstock.errors import InvalidRequest, Overloaded
from penstock.runtime.facts import TimeBounds
from penstock.runtime.line import Line

MIN_RETRY_S: Final = 0.05
MAX_RETRY_S: Final = 60.0
"""Official clients ignore a longer wait and come at once."""
SHARE: Final = 4.0
"""A line of weight 1 may grow to so many times what is left free: 80 % of the queue for a tenant alone."""
OVER: Final = 8
"""Who comes at the time it was told is let in over the bound, by an eighth."""
REMEMBERED: Final = 1024
"""Idle lines that are kept for what they have measured."""
_UNKNOWN_RETRY_S: Final = 1.0
"""Before anything was measured."""
_STEP_HALF_LIFE_S: Final = 2.0
NO_BOUNDS: Final = TimeBounds()


@dataclass(frozen=True, slots=True)
class _Room:
    """What a line may hold now, and what it holds."""

    requests: int
    prompt_tokens: int
    own_requests: int
    own_prompt_tokens: int


class Admission:
    """The bounded queue's books.

    >>> queue = Admission(max_requests=1, max_prompt_tokens=100)
    >>> queue.admit("a", 30, now=0.0)
    >>> queue.admit("b", 30, now=0.0)
    Traceback (most recent call last):
    penstock.errors.Overloaded: the queue is full: 1 of 1 requests and 30 of 100 prompt tokens wait for a first token
    """

    def __init__(
        self, *, max_requests: int, max_prompt_tokens: int, shared: bool = False, fair: bool = False
    ) -> None:  # fmt: skip
        """
        Args:
            shared: there may be several tenants, and each is bounded by its share.
            fair: lines are served side by side, by weight; else all requests are one line in order of arrival.
        """
        self._max_requests, self._max_prompt_tokens = max_requests, max_prompt_tokens
        self._shared, self._fair = shared, fair
        self._lines: dict[str, Line] = {}
        self._tenant_of: dict[str, str] = {}
        """Of each request that waits."""
        self._all = Line()
        """Everybody together."""
        self._step_s = 0.0
        self._step_at = 0.0

    @property
    def requests(self) -> int:
        """How many wait for their first token."""
        return len(self._all.waiting)

    @property
    def prompt_tokens(self) -> int:
        """The length of their prompts together."""
        return self._all.prompt_tokens

    @property
    def saturated(self) -> bool:
        """The next request of any size would be refused."""
        return self.requests >= self._max_requests or self.prompt_tokens >= self._max_prompt_tokens

    def by_tenant(self) -> dict[str, dict[str, int]]:
        """Requests and prompt tokens that wait, and the most that may, of each tenant that has any."""
        found = {}
        for tenant, line in self._lines.items():
            if line.waiting:
                room = self._room(line)
                found[tenant] = {
                    "requests": room.own_requests, "prompt_tokens": room.own_prompt_tokens,
                    "max_requests": room.requests, "max_prompt_tokens": room.prompt_tokens,
                }  # fmt: skip
        return found

    # -- what happens ---------------------------------------------------------------------------------------------

    def admit(self, request_id: str, prompt_tokens: int, now: float, **more: Any) -> None:
        """Take a request in; as `admit_group`. An empty queue takes any: else a long prompt could never run."""
        self.admit_group({request_id: prompt_tokens}, now, **more)

    def admit_group(
        self, prompt_tokens: Mapping[str, int], now: float, *, field: str = "prompt", tenant: str = "",
        weight: float = 1.0, content: int = 0, bounds: TimeBounds = NO_BOUNDS,
    ) -> None:  # fmt: skip
        """Take several requests (id -> prompt tokens) of one tenant in together, or none of them.

        Args:
            content: stands for what they ask, so that they are known when they come again; 0: unknown.
            bounds: times that they must keep.

        Raises:
            InvalidRequest: more than one, and together beyond a bound even of an empty queue, so that no time to come
                back could be named; `field` is what the caller would have to make smaller.
            Overloaded: a bound would be exceeded, or a time could not be kept; nothing was taken. `retry_after_s` is
                within [0.05, 60], and `details` has the numbers.
        """
        count, tokens = len(prompt_tokens), sum(prompt_tokens.values())
        if count > 1 and (count > self._max_requests or tokens > self._max_prompt_tokens):
            raise InvalidRequest(
                field=field, value=f"{count} sequences with {tokens} prompt tokens",
                why=f"the queue holds {self._max_requests} requests and {self._max_prompt_tokens} prompt tokens",
                remedy="several smaller requests, or a larger server.queue",
            )  # fmt: skip
        line = self._line(tenant, weight)
        room = self._room(line)
        self._require_place(line, room, count, tokens, content, now)
        if bounds is not NO_BOUNDS:
            self._require_times(line, room, tokens, bounds, now)
        line.comes(content)
        line.enter(prompt_tokens, now)
        if self._all is not line:
            self._all.enter(prompt_tokens, now)
        for id in prompt_tokens:
            self._tenant_of[id] = tenant

    def started(self, request_id: str, now: float) -> None:
        """It has its first token and waits no more."""
        self._leave(request_id, now, served=True)

    def gone(self, request_id: str, now: float) -> None:
        """Cancelled or failed. Says nothing about the rate of service; unknown ids are ignored."""
        self._leave(request_id, now, served=False)

    def stepped(self, seconds: float, now: float) -> None:
        """A step with decodes took so long: each of them has its next token."""
        keep = 0.5 ** (max(now - self._step_at, 0.0) / _STEP_HALF_LIFE_S) if self._step_s else 0.0
        self._step_s, self._step_at = keep * self._step_s + (1 - keep) * seconds, now

    # -- what is predicted ----------------------------------------------------------------------------------------

    def retry_after_s(self, now: float) -> float:
        """Seconds until everything that waits now has had its turn, at the measured rate."""
        rates = self._all.rates(now)
        if rates is None:
            return _UNKNOWN_RETRY_S
        requests_per_s, tokens_per_s = rates
        return _bounded(self.prompt_tokens / tokens_per_s if tokens_per_s else self.requests / requests_per_s)

    def wait_s(self, tenant: str, prompt_tokens: int, now: float, *, weight: float = 1.0) -> float:
        """Predicted time to the first token of a request that would come now; 0 where nothing is known."""
        return self._wait_s(self._line(tenant, weight), prompt_tokens, now)

    def _wait_s(self, line: Line, prompt_tokens: int, now: float) -> float:
        ahead = line if self._fair else self._all
        rates = self._rates(ahead, now)
        if rates is None or not self._all.waiting:
            return 0.0
        requests, tokens = (len(ahead.waiting) + 1) / rates[0], (ahead.prompt_tokens + prompt_tokens) / rates[1]
        return max(requests, tokens)

    def _rates(self, line: Line, now: float) -> tuple[float, float] | None:
        """Of a line; one that has not moved lately would move at its share of the whole."""
        own = line.rates(now)
        if own is not None and own[1] > 0:
            return own
        whole = self._all.rates(now)
        if whole is None or not whole[1]:
            return None
        active = sum(other.weight for other in self._lines.values() if other.waiting and other is not line)
        share = line.weight / (line.weight + active)
        return whole[0] * share, whole[1] * share

    # -- inside ---------------------------------------------------------------------------------------------------

    def _require_place(self, line: Line, room: _Room, count: int, tokens: int, content: int, now: float) -> None:
        kept_requests, kept_tokens = line.kept(now)
        place = line.places.get(content) if content else None
        if place is not None and now >= place.due - place.slack:
            most, most_tokens = room.requests + max(1, room.requests // OVER), room.prompt_tokens * (1 + 1 / OVER)
            kept_requests = kept_tokens = 0.0
        else:
            most, most_tokens = room.requests, room.prompt_tokens
            if place is not None:
                kept_requests -= line.come_back * place.requests
                kept_tokens -= line.come_back * place.prompt_tokens
        lacking = room.own_requests + kept_requests + count - most
        lacking_tokens = room.own_prompt_tokens + kept_tokens + tokens - most_tokens
        if lacking <= 0 and (lacking_tokens <= 0 or not self._all.waiting):
            return
        short = 2 * (room.own_requests + count) <= room.requests
        if short and 2 * (room.own_prompt_tokens + tokens) <= room.prompt_tokens:
            return  # half a line is there for whoever comes: else those who do not come would leave the engine idle
        if place is not None and now < place.due - place.slack:
            raise self._refusal("queue_full", line, room, place.due - now, place_kept=True)
        if place is not None:
            lacking += line.before(content)  # the line is slower than it was; they keep their order
        rates = self._rates(line, now)
        if rates is None:
            wait_s = _UNKNOWN_RETRY_S
        else:
            wait_s = max(lacking / rates[0], lacking_tokens / rates[1] if rates[1] else 0.0)
        keeps = bool(content) and wait_s <= MAX_RETRY_S
        if keeps:
            keeps = line.appoint(content, now, _bounded(wait_s), count, tokens)
        raise self._refusal("queue_full", line, room, wait_s, place_kept=keeps)

    def _require_times(self, line: Line, room: _Room, tokens: int, bounds: TimeBounds, now: float) -> None:
        wait_s = self._wait_s(line, tokens, now)
        for name, most in (("ttft", bounds.ttft_s), ("deadline", bounds.deadline_s)):
            if most is not None and wait_s > most:
                raise self._refusal(name, line, room, wait_s - most, wait_s=wait_s, asked_s=most)
        if bounds.tpot_s is not None and self._step_s > bounds.tpot_s and now - self._step_at < 5 * _STEP_HALF_LIFE_S:
            raise self._refusal(
                "tpot", line, room, self._wait_s(line, tokens, now) or _UNKNOWN_RETRY_S, wait_s=self._step_s,
                asked_s=bounds.tpot_s,
            )  # fmt: skip

    def _refusal(
        self, reason: str, line: Line, room: _Room, retry_s: float, *, place_kept: bool = False, wait_s: float = 0.0,
        asked_s: float = 0.0,
    ) -> Overloaded:  # fmt: skip
        retry_s = _bounded(retry_s)
        whole = (
            f"{self.requests} of {self._max_requests} requests and {self.prompt_tokens} of {self._max_prompt_tokens} "
            "prompt tokens wait for a first token"
        )
        own = (
            f"; of these {room.own_requests} requests and {room.own_prompt_tokens} prompt tokens are yours, and your "
            f"share is {room.requests} and {room.prompt_tokens}"
            if self._shared
            else ""
        )
        match reason:
            case "queue_full":
                text = f"{'your share of the queue' if self._shared else 'the queue'} is full: {whole}{own}"
            case "tpot":
                text = (
                    f"a token takes {wait_s * 1e3:.0f} ms now, and at most {asked_s * 1e3:.0f} ms were asked for. "
                    f"Remedy: come back in {retry_s:.2f} s, or ask for slower tokens"
                )
            case _:
                what = "the first token" if reason == "ttft" else "the deadline"
                text = (
                    f"{what} cannot be kept: the wait would be about {wait_s * 1e3:.0f} ms, and "
                    f"{asked_s * 1e3:.0f} ms were asked for; {whole}{own}. Remedy: come back in {retry_s:.2f} s, or "
                    "ask for a longer time"
                )
        details = {
            "reason": reason, "queue_requests": self.requests, "queue_prompt_tokens": self.prompt_tokens,
            "max_requests": self._max_requests, "max_prompt_tokens": self._max_prompt_tokens,
            "own_requests": room.own_requests, "own_prompt_tokens": room.own_prompt_tokens,
            "own_share_requests": room.requests, "own_share_prompt_tokens": room.prompt_tokens, "weight": line.weight,
            "retry_after_ms": round(retry_s * 1e3), "place_kept": place_kept,
        }  # fmt: skip
        if reason != "queue_full":
            details |= {"predicted_ms": round(wait_s * 1e3), "asked_ms": round(asked_s * 1e3)}
        return Overloaded(text, retry_after_s=retry_s, details=details)

    def _room(self, line: Line) -> _Room:
        own, own_tokens = len(line.waiting), line.prompt_tokens
        if not self._shared:
            return _Room(self._max_requests, self._max_prompt_tokens, own, own_tokens)
        share = SHARE * line.weight / (1 + SHARE * line.weight)
        free = self._max_requests - (self.requests - own)
        free_tokens = self._max_prompt_tokens - (self.prompt_tokens - own_tokens)
        return _Room(max(int(share * free), min(1, free)), max(int(share * free_tokens), 0), own, own_tokens)

    def _line(self, tenant: str, weight: float) -> Line:
        if not self._shared:
            return self._all
        line = self._lines.get(tenant)
        if line is None:
            if len(self._lines) >= REMEMBERED:
                self._lines = {name: one for name, one in self._lines.items() if one.waiting or one.places}
            line = self._lines[tenant] = Line()
        line.weight = weight
        return line

    def _leave(self, request_id: str, now: float, *, served: bool) -> None:
        tenant = self._tenant_of.pop(request_id, None)
        if tenant is None:
            return
        self._all.leave(request_id, now, served=served)
        if self._shared:
            self._lines[tenant].leave(request_id, now, served=served)


def _bounded(seconds: float) -> float:
    return min(max(seconds, MIN_RETRY_S), MAX_RETRY_S)
