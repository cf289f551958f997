"""Fair share between tenants by a virtual token counter (VTC: Sheng et al., Fairness in Serving LLMs, OSDI 2024).

Each tenant has a counter of the work done for it, in weighted tokens. The next request is the first one of the waiting
tenant with the smallest counter. A tenant that comes back after a pause is lifted to the smallest counter among the
waiting: idling earns no credit. While several tenants wait, no counter runs away from another by more than one
request's prompt plus what the running ones still decode.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from penstock.control.order.arrival import Arrival
from penstock.control.sequence import Sequence

INPUT_WEIGHT: Final = 1.0
OUTPUT_WEIGHT: Final = 2.0
"""VTC's defaults: an output token costs about twice an input token."""


class _Tenant:
    __slots__ = ("decoding", "join_clocks", "queue", "settled")

    def __init__(self) -> None:
        self.queue = Arrival()
        self.settled = 0.0
        self.decoding = 0
        self.join_clocks = 0

    def counter(self, clock: int) -> float:
        """Work so far, decodes under way included: sum over them of (clock - join clock), without touching any."""
        return self.settled + OUTPUT_WEIGHT * (self.decoding * clock - self.join_clocks)


class FairShare:
    """Smallest counter first; inside a tenant, first come first served. O(waiting tenants) per admission."""

    def __init__(self) -> None:
        self._tenants: dict[str, _Tenant] = {}
        self._clock = 0
        self._shown: _Tenant | None = None

    def push(self, sequence: Sequence) -> None:
        tenant = self._tenants.setdefault(sequence.request.tenant, _Tenant())
        if not len(tenant.queue):
            floor = min((t.counter(self._clock) for t in self._tenants.values() if len(t.queue)), default=None)
            if floor is None:
                floor = min((t.counter(self._clock) for t in self._tenants.values() if t.decoding), default=0.0)
            tenant.settled += max(0.0, floor - tenant.counter(self._clock))
        tenant.queue.push(sequence)

    def peek(self, clock: int) -> Sequence | None:
        self._clock = clock
        waiting = [tenant for tenant in self._tenants.values() if len(tenant.queue)]
        if not waiting:
            return None
        self._shown = min(waiting, key=lambda tenant: tenant.counter(clock))
        return self._shown.queue.peek(clock)

    def pop(self) -> Sequence:
        assert self._shown is not None, "pop follows peek"
        return self._shown.queue.pop()

    def remove(self, sequence: Sequence) -> None:
        self._tenants[sequence.request.tenant].queue.remove(sequence)

    def victim(self, running: Iterable[Sequence]) -> Sequence:
        """The newest request of the tenant that has had most."""

        def had(sequence: Sequence) -> tuple[float, int]:
            return (self._tenants[sequence.request.tenant].counter(self._clock), sequence.number)

        return max(running, key=had)

    def charge(self, sequence: Sequence, prefill_tokens: int) -> None:
        self._tenants[sequence.request.tenant].settled += INPUT_WEIGHT * prefill_tokens

    def joined(self, sequence: Sequence, clock: int) -> None:
        tenant = self._tenants[sequence.request.tenant]
        tenant.decoding += 1
        tenant.join_clocks += clock

    def left(self, sequence: Sequence, clock: int) -> None:
        tenant = self._tenants[sequence.request.tenant]
        tenant.decoding -= 1
        tenant.join_clocks -= sequence.join_clock
        tenant.settled += OUTPUT_WEIGHT * (clock - sequence.join_clock)

    def counters(self, clock: int) -> dict[str, float]:
        """Weighted tokens of work per tenant so far."""
        return {name: tenant.counter(clock) for name, tenant in self._tenants.items()}

    def __len__(self) -> int:
        return sum(len(tenant.queue) for tenant in self._tenants.values())
