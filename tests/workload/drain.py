"""A system without limits: every request takes `service_s`; what a source gives it, in order of arrival."""

from __future__ import annotations

import heapq

from penstock.workload.source import Source, TimedRequest


def drain(source: Source, service_s: float = 1.0) -> list[TimedRequest]:
    initial = source.initial()
    following = next(initial, None)
    events: list[tuple[float, int, bool, TimedRequest]] = []
    seen: list[TimedRequest] = []
    number = 0

    def arrive(request: TimedRequest) -> None:
        nonlocal number
        seen.append(request)
        number += 1
        heapq.heappush(events, (request.arrival_s + service_s, number, True, request))

    while following is not None or events:
        if following is not None and (not events or following.arrival_s <= events[0][0]):
            arrive(following)
            following = next(initial, None)
            continue
        now, _, ends, request = heapq.heappop(events)
        if not ends:
            arrive(request)
            continue
        after = source.after(request, now)
        if after is not None:
            assert after.arrival_s >= now
            number += 1
            heapq.heappush(events, (after.arrival_s, number, False, after))
    return seen
