"""Which replica a request goes to. A router sees counts and prompts, never output lengths or clocks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

from penstock.control.request import Request
from penstock.errors import InvalidDeployment


class Target:
    """What a router may know of a replica: base of whatever takes requests."""

    def __init__(self) -> None:
        self.outstanding = 0
        """Requests sent there that have not ended."""

    def waiting(self) -> int:
        """How many of them hold no KV."""
        raise NotImplementedError


class Router:
    """A rule."""

    def choose(self, request: Request, targets: list[Target]) -> int:
        """Index of the replica that serves `request`. Called once for each request, in order of arrival."""
        raise NotImplementedError


class RoundRobin(Router):
    """Each in turn."""

    def __init__(self) -> None:
        self._next = -1

    def choose(self, request: Request, targets: list[Target]) -> int:
        self._next = (self._next + 1) % len(targets)
        return self._next


class LeastLoaded(Router):
    """Fewest outstanding requests; among equals, each in turn. O(replicas)."""

    def __init__(self) -> None:
        self._last = -1

    def choose(self, request: Request, targets: list[Target]) -> int:
        count = len(targets)
        first = (self._last + 1) % count
        fewest, chosen = targets[first].outstanding, first
        number = first
        for _ in range(count - 1):
            number += 1
            if number == count:
                number = 0
            outstanding = targets[number].outstanding
            if outstanding < fewest:
                fewest, chosen = outstanding, number
        self._last = chosen
        return chosen


class LeastWaiting(Router):
    """Smallest 4 x waiting + running, the first of equals: where a prompt begins soonest rather than where fewest are
    (vLLM's choice among data-parallel ranks, DPLBAsyncMPClient). O(replicas)."""

    def choose(self, request: Request, targets: list[Target]) -> int:
        fewest, chosen = -1, 0
        for number, target in enumerate(targets):
            score = target.outstanding + 3 * target.waiting()
            if fewest < 0 or score < fewest:
                fewest, chosen = score, number
        return chosen


class PrefixAware(Router):
    """Where most of the prompt is cached, unless that replica is overloaded (SGLang's cache-aware router).

    It keeps what it sent where, as the set of prompt prefixes in whole blocks of `block_tokens`; it asks no replica.
    The load decides instead when the fullest replica has `balance_absolute` more outstanding requests than the
    emptiest, and `balance_relative` times as many; or when less than `match_share` of the prompt is known anywhere.
    Defaults are SGLang's (sgl-router: 64, 1.5 and 0.3, as published in its documentation).
    """

    def __init__(
        self, *, block_tokens: int = 64, remembered: int = 100_000, match_share: float = 0.3,
        balance_absolute: int = 64, balance_relative: float = 1.5,
    ) -> None:  # fmt: skip
        self._size, self._remembered, self._share = block_tokens, remembered, match_share
        self._absolute, self._relative = balance_absolute, balance_relative
        self._homes: OrderedDict[int, int] = OrderedDict()
        """Hash of a prefix to the replica that last computed it, least recently used first."""
        self._load = LeastLoaded()

    def choose(self, request: Request, targets: list[Target]) -> int:
        keys = self._keys(request)
        loads = [target.outstanding for target in targets]
        low, high = min(loads), max(loads)
        unbalanced = high - low > self._absolute and high > self._relative * low
        chosen = None
        if not unbalanced:
            for known in range(len(keys), 0, -1):
                home = self._homes.get(keys[known - 1])
                if home is not None and home < len(targets):
                    if known * self._size >= self._share * len(request.prompt):
                        chosen = home
                    break
        if chosen is None:
            chosen = self._load.choose(request, targets)
        for key in keys:
            self._homes[key] = chosen
            self._homes.move_to_end(key)
        while len(self._homes) > self._remembered:
            self._homes.popitem(last=False)
        return chosen

    def _keys(self, request: Request) -> list[int]:
        """One hash for each whole block of the prompt, of all up to its end, apart where a cache keeps them apart."""
        prompt, size = request.prompt, self._size
        key = hash((request.prefix_group or request.tenant, request.salt, request.adapter))
        keys = []
        for start in range(0, len(prompt) - size + 1, size):
            key = hash((key, tuple(prompt[start : start + size])))
            keys.append(key)
        return keys


ROUTERS: Final[dict[str, Callable[[], Router]]] = {
    "round_robin": RoundRobin,
    "least_loaded": LeastLoaded,
    "least_waiting": LeastWaiting,
    "prefix_aware": PrefixAware,
}


def build_router(name: str) -> Router:
    """The router of this name. Raises InvalidDeployment."""
    if name not in ROUTERS:
        raise InvalidDeployment(
            field="cluster.router", value=name, why="no such router", remedy="one of " + ", ".join(ROUTERS)
        )
    return ROUTERS[name]()
