"""One tenant's line of requests that have no token yet: how long it is, how fast it moves, whom it owes a place.

A request that is refused is told when to come back, and its place is kept: the line remembers it by what it asks
for, as it will come again with the same words. So the time named holds also while others keep asking, and
two that are refused together are told two times. Who does not come frees the place; how many do come is measured, and
places are set aside for that share of them only.
"""

from __future__ import annotations

from collections.abc import Mapping
from heapq import heappop, heappush
from typing import Final

_HALF_LIFE_S: Final = 10.0
"""Of what was measured."""
_SEEN: Final = 1 / 32
"""Weight of one kept or missed appointment in the share that comes back."""
MAX_PLACES: Final = 4096
"""Appointments of one tenant; beyond that no place is kept."""


class Place:
    """An appointment."""

    __slots__ = ("due", "end", "prompt_tokens", "requests", "slack", "turn")

    def __init__(self, now: float, wait_s: float, requests: int, prompt_tokens: int, turn: int) -> None:
        self.turn = turn
        """Number of the first refusal: their order, however often they are sent away."""
        self.due = now + wait_s
        self.slack = 0.1 * wait_s
        """Clients' clocks and timers are not ours."""
        self.end = self.due + 2.0 + 0.25 * wait_s
        """Many clients know whole seconds only, and add some noise; who comes later than this has missed it."""
        self.requests, self.prompt_tokens = requests, prompt_tokens


class Line:
    """Times are an argument, in seconds of one clock."""

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight
        self.waiting: dict[str, int] = {}
        """Id to prompt tokens."""
        self.prompt_tokens = 0
        self.places: dict[int, Place] = {}
        """What was refused, by a number that stands for its content."""
        self._kept_requests = self._kept_tokens = 0
        self._turns = 0
        self._ends: list[tuple[float, int]] = []
        """Heap of when appointments are missed; one that was kept or made anew is skipped there."""
        self.come_back = 1.0
        """Share of the refused that kept their appointment."""
        self._left_requests = self._left_tokens = self._busy_s = self._now = 0.0

    def enter(self, prompt_tokens: Mapping[str, int], now: float) -> None:
        """They wait from now on."""
        self._pass(now)
        self.waiting.update(prompt_tokens)
        self.prompt_tokens += sum(prompt_tokens.values())

    def leave(self, request_id: str, now: float, *, served: bool) -> int:
        """It waits no more. Only what was served says something about the rate. Returns its prompt tokens."""
        self._pass(now)
        tokens = self.waiting.pop(request_id)
        self.prompt_tokens -= tokens
        if served:
            self._left_requests += 1
            self._left_tokens += tokens
        return tokens

    def rates(self, now: float) -> tuple[float, float] | None:
        """Requests and prompt tokens that leave the line per second while somebody waits in it; None: too few did."""
        self._pass(now)
        if self._left_requests < 0.5:
            return None
        seconds = max(self._busy_s, 1e-3)
        return self._left_requests / seconds, self._left_tokens / seconds

    # -- appointments -------------------------------------------------------------------------------------------------

    def kept(self, now: float) -> tuple[float, float]:
        """Requests and prompt tokens that will probably come for their places."""
        while self._ends and now > self._ends[0][0]:
            end, key = heappop(self._ends)
            place = self.places.get(key)
            if place is not None and place.end == end:
                self._drop(key)
                self._learn(0.0)
        return self.come_back * self._kept_requests, self.come_back * self._kept_tokens

    def before(self, key: int) -> float:
        """Requests that were refused before this one, and will probably still come. O(places)."""
        turn = self.places[key].turn
        return self.come_back * sum(place.requests for place in self.places.values() if place.turn < turn)

    def appoint(self, key: int, now: float, wait_s: float, requests: int, prompt_tokens: int) -> bool:
        """Keep a place, or keep the one that was promised for longer. Returns whether one more could be promised."""
        if len(self.places) >= MAX_PLACES:
            return False
        old = self.places.get(key)
        self._drop(key)
        self._turns += 1
        turn = self._turns if old is None else old.turn
        self.places[key] = place = Place(now, wait_s, requests, prompt_tokens, turn)
        self._kept_requests += requests
        self._kept_tokens += prompt_tokens
        heappush(self._ends, (place.end, key))
        return True

    def comes(self, key: int) -> None:
        """The appointment was kept, or its request was let in before."""
        if self._drop(key):
            self._learn(1.0)

    def _drop(self, key: int) -> bool:
        place = self.places.pop(key, None)
        if place is None:
            return False
        self._kept_requests -= place.requests
        self._kept_tokens -= place.prompt_tokens
        return True

    def _learn(self, came: float) -> None:
        self.come_back += _SEEN * (came - self.come_back)

    def _pass(self, now: float) -> None:
        """Time goes by; it counts as service time only while someone waits."""
        elapsed, self._now = max(now - self._now, 0.0), now
        if self.waiting:
            keep = 0.5 ** (elapsed / _HALF_LIFE_S)
            self._left_requests *= keep
            self._left_tokens *= keep
            self._busy_s = self._busy_s * keep + elapsed
