"""Fair share between tenants by a virtual token counter (VTC: Sheng et al., Fairness in Serving LLMs, OSDI 2024).

Each tenant has a counter of the work done for it, in weighted tokens, over its own weight. The next request is the
first one of the waiting tenant with the smallest counter. A tenant that comes back after a pause is lifted to the
smallest counter among the waiting, or if nobody waits, to that of the tenant served last: idling earns no credit. While
several tenants wait, no counter runs away from another by more than one request's prompt plus what the running ones
still decode.

Places in the batch are shared as well: once there is a second tenant, one that has some may take another only while
enough stay free (dynamic thresholds, Choudhury and Hahne, IEEE/ACM ToN 1998). So who comes while another floods finds a
place at once, and need not wait until a long answer has ended.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from penstock.control.order.arrival import Arrival
from penstock.control.order.queue import Order
from penstock.control.sequence import Sequence

INPUT_WEIGHT: Final = 1.0
OUTPUT_WEIGHT: Final = 2.0
"""VTC's defaults: an output token costs about twice an input token."""
PLACES: Final = 8
"""A tenant's sequences in the batch may be so many times the places that then are free."""
LEAST_PLACES: Final = 8
"""A batch of fewer is given to whoever is next: a place that stays free would be too much of it."""
REMEMBERED: Final = 1024
"""Tenants kept before those whose counter no longer matters are forgotten."""


class _Tenant:
    __slots__ = ("decoding", "join_clocks", "lift", "queue", "running", "settled", "weight")

    def __init__(self) -> None:
        self.queue = Arrival()
        self.lift = 0.0
        """What it was lifted by when it came back."""
        self.settled = 0.0
        """Work that is done, of whatever weight."""
        self.decoding = 0
        self.join_clocks = 0
        self.running = 0
        """Sequences in the batch."""
        self.weight = 1.0

    def counter(self, clock: int) -> float:
        """Work so far, decodes under way included: sum over them of (clock - join clock), without touching any."""
        return self.lift + (self.settled + OUTPUT_WEIGHT * (self.decoding * clock - self.join_clocks)) / self.weight

    def weigh(self, weight: float, clock: int) -> None:
        """Its weight from now on; what it had stays as it was."""
        before = self.counter(clock)
        self.weight = weight
        self.lift += before - self.counter(clock)


class FairShare(Order):
    """Smallest counter first; inside a tenant, first come first served. O(waiting tenants) per admission."""

    def __init__(self, places: int = 0) -> None:
        """`places`: sequences in the batch at the same time; 0: as many as come."""
        self._places = places if places >= LEAST_PLACES else 0
        self._running = 0
        self._tenants: dict[str, _Tenant] = {}
        self._waiting: dict[str, _Tenant] = {}
        self._count = 0
        self._shown: str | None = None
        self._served = _Tenant()
        """Whose request was taken last."""

    def push(self, sequence: Sequence, clock: int) -> None:
        name = sequence.request.tenant
        tenant = self._tenant(name, clock)
        if tenant.weight != sequence.request.weight:
            tenant.weigh(sequence.request.weight, clock)
        if name not in self._waiting:
            tenant.lift += max(0.0, self._floor(clock) - tenant.counter(clock))
            self._waiting[name] = tenant
        tenant.queue.push(sequence, clock)
        self._count += 1

    def peek(self, clock: int) -> Sequence | None:
        if not self._waiting:
            return None
        best: tuple[float, int] | None = None
        for name, tenant in self._waiting.items():
            if self._may_have_another(tenant):
                key = (tenant.counter(clock), tenant.running)
                if best is None or key < best:
                    best, self._shown = key, name
        return None if best is None or self._shown is None else self._waiting[self._shown].queue.peek(clock)

    def pop(self) -> Sequence:
        assert self._shown is not None, "pop follows peek"
        self._served = self._waiting[self._shown]
        self._served.running += 1
        self._running += 1
        sequence = self._served.queue.pop()
        self._taken(self._shown)
        return sequence

    def remove(self, sequence: Sequence) -> None:
        self._waiting[sequence.request.tenant].queue.remove(sequence)
        self._taken(sequence.request.tenant)

    def victim(self, running: Iterable[Sequence], clock: int) -> Sequence:
        """The newest request of the tenant that has had most."""

        def had(sequence: Sequence) -> tuple[float, int]:
            return (self._tenant(sequence.request.tenant, clock).counter(clock), sequence.number)

        return max(running, key=had)

    def charge(self, sequence: Sequence, prefill_tokens: int) -> None:
        tenant = self._tenants.setdefault(sequence.request.tenant, _Tenant())
        tenant.settled += INPUT_WEIGHT * prefill_tokens + OUTPUT_WEIGHT

    def joined(self, sequence: Sequence, clock: int) -> None:
        tenant = self._tenant(sequence.request.tenant, clock)
        tenant.decoding += 1
        tenant.join_clocks += clock

    def left(self, sequence: Sequence, clock: int) -> None:
        tenant = self._tenants[sequence.request.tenant]
        tenant.decoding -= 1
        tenant.join_clocks -= sequence.join_clock
        tenant.settled += OUTPUT_WEIGHT * (clock - sequence.join_clock)

    def departed(self, sequence: Sequence) -> None:
        self._tenants[sequence.request.tenant].running -= 1
        self._running -= 1

    def counters(self, clock: int) -> dict[str, float]:
        """Weighted tokens of work per tenant so far."""
        return {name: tenant.counter(clock) for name, tenant in self._tenants.items()}

    def __len__(self) -> int:
        return self._count

    def _may_have_another(self, tenant: _Tenant) -> bool:
        if not tenant.running or not self._places or len(self._tenants) < 2:
            return True
        return tenant.running < PLACES * (self._places - self._running - 1)

    def _floor(self, clock: int) -> float:
        if self._waiting:
            return min(tenant.counter(clock) for tenant in self._waiting.values())
        return self._served.counter(clock)

    def _taken(self, name: str) -> None:
        self._count -= 1
        if not len(self._waiting[name].queue):
            del self._waiting[name]

    def _tenant(self, name: str, clock: int) -> _Tenant:
        tenant = self._tenants.get(name)
        if tenant is None:
            if len(self._tenants) >= REMEMBERED + 2 * len(self._waiting):
                self._forget(clock)
            tenant = self._tenants[name] = _Tenant()
        return tenant

    def _forget(self, clock: int) -> None:
        """Drop idle tenants that would be lifted to the floor anyway when they come back."""
        floor = self._floor(clock)
        self._tenants = {
            name: tenant
            for name, tenant in self._tenants.items()
            if name in self._waiting or tenant.running or tenant.decoding or tenant.counter(clock) > floor
        }
