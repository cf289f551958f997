"""Links with a state: transfers that overlap share them, max-min fair. Sans-I/O: time goes in, completions come out.

A transfer uses the links of its path all at once (cut-through) and moves at the least of its shares. Rates change only
when a transfer starts to flow or ends, so time advances from event to event and the bytes come out exact. Latency is
paid before the first byte: a transfer alone takes latency + bytes / bandwidth.

Max-min fairness by progressive filling (Bertsekas and Gallager, Data Networks, 6.5): raise all rates alike until a link
is full, freeze the transfers on it, go on with the rest. One event costs O(active transfers x links of a path).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from math import inf

from penstock.errors import ProtocolError


@dataclass(frozen=True, slots=True)
class LinkStatistics:
    """What a link has done up to the last time it was told of."""

    bytes: float
    busy_s: float
    """Seconds in which at least one transfer moved."""
    active: int


@dataclass(slots=True)
class _Transfer:
    path: tuple[str, ...]
    bytes: float
    left: float
    rate: float = 0.0


@dataclass(slots=True)
class _State:
    bytes_per_s: float
    moved: float = 0.0
    busy_s: float = 0.0
    flowing: dict[int, None] = field(default_factory=dict)
    """Ids in the order they began to flow: never iterated by hash."""


class Network:
    """Links by name, and the transfers on them.

    Args:
        bytes_per_s: capacity of each link, one direction.
    """

    def __init__(self, bytes_per_s: Mapping[str, float]) -> None:
        for name, rate in bytes_per_s.items():
            if not 0.0 < rate < inf:
                raise ProtocolError(f"link {name!r} carries {rate} bytes/s")
        self._links = {name: _State(rate) for name, rate in bytes_per_s.items()}
        self._transfers: dict[int, _Transfer] = {}
        self._waiting: list[tuple[float, int]] = []
        """(end of latency, id): transfers that do not flow yet."""
        self._done: list[tuple[float, int]] = []
        """Ended and not yet handed out by `advance`."""
        self._next_id = 0
        self._now = 0.0

    def start(self, now: float, size: float, path: Iterable[str], *, latency_s: float = 0.0) -> int:
        """Begins to move `size` bytes over all links of `path`. Returns the transfer's id.

        Raises ProtocolError: time runs backwards, an unknown link, an empty path, a negative size or latency.
        """
        route = tuple(dict.fromkeys(path))
        unknown = [name for name in route if name not in self._links]
        if not route or unknown or size < 0.0 or latency_s < 0.0:
            raise ProtocolError(f"no transfer of {size} bytes over {route} after {latency_s} s (unknown: {unknown})")
        self._to(now)
        transfer = self._next_id
        self._next_id += 1
        self._transfers[transfer] = _Transfer(route, size, size)
        heapq.heappush(self._waiting, (now + latency_s, transfer))
        self._to(now)
        return transfer

    def next_completion(self) -> tuple[float, int] | None:
        """When the next transfer ends and which, if nothing else starts; None: nothing is under way.

        Latencies that end before it change the rates, and are looked through. The time lies in the past if `start` was
        told a later one and `advance` has not handed the end out yet: call `advance` first.
        """
        if self._done:
            return self._done[0]
        ahead = self._copy()
        while ahead._transfers:
            ahead._to(ahead._next_event())
            if ahead._done:
                return ahead._done[0]
        return None

    def advance(self, now: float) -> list[tuple[float, int]]:
        """Goes to `now`. Returns the transfers that ended since the last call: (time, id), by time and then by id.

        Raises ProtocolError: time runs backwards.
        """
        self._to(now)
        done, self._done = self._done, []
        return done

    def cancel(self, now: float, transfer: int) -> float:
        """Stops a transfer. Returns the bytes it had still to move; 0 if it had ended. The others speed up at once."""
        self._to(now)
        stopped = self._transfers.pop(transfer, None)
        if stopped is None:
            return 0.0
        self._waiting = [entry for entry in self._waiting if entry[1] != transfer]
        heapq.heapify(self._waiting)
        for name in stopped.path:
            self._links[name].flowing.pop(transfer, None)
        self._share()
        return stopped.left

    def rate(self, transfer: int) -> float:
        """Bytes/s at which a transfer moves now; 0 while it waits for its latency, or has ended."""
        found = self._transfers.get(transfer)
        return found.rate if found else 0.0

    def left(self, transfer: int) -> float:
        """Bytes that it has still to move."""
        found = self._transfers.get(transfer)
        return found.left if found else 0.0

    def statistics(self, link: str) -> LinkStatistics:
        """Of one link, up to the last time that was told."""
        state = self._links[link]
        return LinkStatistics(bytes=state.moved, busy_s=state.busy_s, active=len(state.flowing))

    def check(self) -> None:
        """A recount: no link carries more than it can, and every transfer that flows has a link that holds it back."""
        for name, state in self._links.items():
            carried = sum(self._transfers[each].rate for each in state.flowing)
            if carried > state.bytes_per_s * (1 + 1e-9):
                raise ProtocolError(f"link {name!r} carries {carried} of {state.bytes_per_s} bytes/s")
            if any(name not in self._transfers[each].path for each in state.flowing):
                raise ProtocolError(f"link {name!r} carries a transfer whose path it is not on")
        for each, transfer in self._transfers.items():
            full = [name for name in transfer.path if self._fair_at(name, transfer.rate)]
            if each in self._links[transfer.path[0]].flowing and not full:
                raise ProtocolError(f"transfer {each} at {transfer.rate} bytes/s is held back by no link")

    # -- time -----------------------------------------------------------------------------------------------------

    def _to(self, now: float) -> None:
        """Goes through the events up to `now`, those at `now` included."""
        if now < self._now:
            raise ProtocolError(f"links were at {self._now} s and are told {now} s")
        while (event := self._next_event()) <= now:
            # Told before the move: what rounding leaves of a transfer's bytes must not put its end off.
            due = [
                each
                for each, transfer in self._transfers.items()
                if transfer.rate > 0.0 and self._now + transfer.left / transfer.rate <= event
            ]
            self._move(event - self._now)
            self._now = event
            self._settle(event, due)
        self._move(now - self._now)
        self._now = now

    def _next_event(self) -> float:
        event = self._waiting[0][0] if self._waiting else inf
        for transfer in self._transfers.values():
            if transfer.rate > 0.0:
                event = min(event, self._now + transfer.left / transfer.rate)
        return event

    def _move(self, seconds: float) -> None:
        if seconds <= 0.0:
            return
        for state in self._links.values():
            if state.flowing:
                state.busy_s += seconds
                for each in state.flowing:
                    state.moved += min(self._transfers[each].left, self._transfers[each].rate * seconds)
        for transfer in self._transfers.values():
            if transfer.rate > 0.0:
                transfer.left = max(0.0, transfer.left - transfer.rate * seconds)

    def _settle(self, now: float, ended: list[int]) -> None:
        """Ends and beginnings at `now`, then new shares."""
        while self._waiting and self._waiting[0][0] <= now:
            _, each = heapq.heappop(self._waiting)
            if self._transfers[each].left > 0.0:
                for name in self._transfers[each].path:
                    self._links[name].flowing[each] = None
            else:
                ended.append(each)
        for each in sorted(ended):
            transfer = self._transfers.pop(each)
            for name in transfer.path:
                self._links[name].moved += transfer.left
                self._links[name].flowing.pop(each, None)
            self._done.append((now, each))
        self._share()

    def _share(self) -> None:
        """Max-min fair rates by progressive filling."""
        spare = {name: state.bytes_per_s for name, state in self._links.items() if state.flowing}
        users = {name: len(self._links[name].flowing) for name in spare}
        frozen: set[int] = set()
        while users:
            tightest = min(users, key=lambda name: spare[name] / users[name])
            rate = spare[tightest] / users[tightest]
            for each in self._links[tightest].flowing:
                if each in frozen:
                    continue
                frozen.add(each)
                self._transfers[each].rate = rate
                for name in self._transfers[each].path:
                    if name in users:
                        spare[name] = max(0.0, spare[name] - rate)
                        users[name] -= 1
            users = {name: count for name, count in users.items() if count > 0}

    def _fair_at(self, name: str, rate: float) -> bool:
        """Whether `name` is full and no other transfer on it is faster: the max-min condition."""
        rates = [self._transfers[each].rate for each in self._links[name].flowing]
        full = sum(rates) >= self._links[name].bytes_per_s * (1 - 1e-9)
        return full and rate >= max(rates, default=0.0) * (1 - 1e-9)

    def _copy(self) -> Network:
        twin = Network({})
        twin._links = {
            name: _State(state.bytes_per_s, state.moved, state.busy_s, dict(state.flowing))
            for name, state in self._links.items()
        }
        twin._transfers = {
            each: _Transfer(held.path, held.bytes, held.left, held.rate) for each, held in self._transfers.items()
        }
        twin._waiting, twin._done = list(self._waiting), list(self._done)
        twin._now, twin._next_id = self._now, self._next_id
        return twin


class SharedLink:
    """One link by itself: O(log n) per event, as all its transfers move at the same rate.

    Virtual time counts the bytes that a transfer would have moved had it been there from the beginning; a transfer ends
    when that clock has gone on by its size (Parekh and Gallager's fair queueing, IEEE/ACM ToN 1993).

    Args:
        bytes_per_s: one direction.
        latency_s: before the first byte of each transfer.
    """

    def __init__(self, bytes_per_s: float, latency_s: float = 0.0) -> None:
        if not 0.0 < bytes_per_s < inf or latency_s < 0.0:
            raise ProtocolError(f"a link of {bytes_per_s} bytes/s and {latency_s} s")
        self.bytes_per_s, self.latency_s = bytes_per_s, latency_s
        self._flowing: list[tuple[float, int]] = []
        """(virtual time at which it ends, id)."""
        self._waiting: list[tuple[float, int, float]] = []
        """(end of latency, id, bytes)."""
        self._done: list[tuple[float, int]] = []
        self._virtual = 0.0
        self._now = 0.0
        self._next_id = 0
        self._moved = 0.0
        self._busy_s = 0.0

    def start(self, now: float, size: float) -> int:
        """Begins a transfer of `size` bytes. Returns its id. Raises ProtocolError: time runs backwards, size < 0."""
        if size < 0.0:
            raise ProtocolError(f"a transfer of {size} bytes")
        self._to(now)
        transfer = self._next_id
        self._next_id += 1
        heapq.heappush(self._waiting, (now + self.latency_s, transfer, size))
        self._to(now)
        return transfer

    def next_completion(self) -> tuple[float, int] | None:
        """When the next transfer ends and which, if nothing else starts; None: nothing is under way.

        O(n) in the transfers whose latency ends before.
        """
        if self._done:
            return self._done[0]
        if not self._waiting:
            return (self._end_of_first(), self._flowing[0][1]) if self._flowing else None
        ahead = SharedLink(self.bytes_per_s, self.latency_s)
        ahead._flowing, ahead._waiting = list(self._flowing), list(self._waiting)
        ahead._virtual, ahead._now = self._virtual, self._now
        while not ahead._done:
            ahead._to(ahead._next_event())
        return ahead._done[0]

    def advance(self, now: float) -> list[tuple[float, int]]:
        """Goes to `now`. Returns the transfers that ended since the last call: (time, id), by time and then by id."""
        self._to(now)
        done, self._done = self._done, []
        return done

    def statistics(self) -> LinkStatistics:
        """Up to the last time that was told."""
        return LinkStatistics(bytes=self._moved, busy_s=self._busy_s, active=len(self._flowing))

    def _to(self, now: float) -> None:
        if now < self._now:
            raise ProtocolError(f"the link was at {self._now} s and is told {now} s")
        while (event := self._next_event()) <= now:
            first_ends = self._end_of_first() <= event
            self._move(event)
            if first_ends:  # Whatever rounding left of its bytes.
                self._virtual = self._flowing[0][0]
            while self._waiting and self._waiting[0][0] <= event:
                _, transfer, size = heapq.heappop(self._waiting)
                heapq.heappush(self._flowing, (self._virtual + size, transfer))
            while self._flowing and self._end_of_first() <= event:
                ends, transfer = heapq.heappop(self._flowing)
                self._moved += ends - self._virtual  # What rounding left or took.
                self._done.append((event, transfer))
            if not self._flowing:
                self._virtual = 0.0  # Keeps the clock small, and so exact.
        self._move(now)

    def _move(self, now: float) -> None:
        seconds = now - self._now
        self._now = now
        if self._flowing and seconds > 0.0:
            self._virtual += seconds * self.bytes_per_s / len(self._flowing)
            self._moved += seconds * self.bytes_per_s
            self._busy_s += seconds

    def _next_event(self) -> float:
        latency = self._waiting[0][0] if self._waiting else inf
        return min(latency, self._end_of_first())

    def _end_of_first(self) -> float:
        if not self._flowing:
            return inf
        return self._now + max(0.0, self._flowing[0][0] - self._virtual) * len(self._flowing) / self.bytes_per_s
