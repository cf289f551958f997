"""The virtual clock: any number of replicas behind a router, fed by a source, until nothing is left or a limit is met.

Time jumps from event to event. Ties are decided: requests first, in the order of the source; then replicas by number.
A replica's stretch of plain decodes ends early when a request comes to it, so what a router does never depends on how
far a replica was computed ahead.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator
from heapq import heappop, heappush
from typing import Final, Literal

from penstock.control.cluster.router import Router, Target
from penstock.control.request import Request
from penstock.control.step import Finished, Step, Update
from penstock.errors import InvalidRequest
from penstock.runtime.collect import Collector, Outcome
from penstock.runtime.driven import IDLE, Alarms, Driven
from penstock.runtime.instance import Instance, Observer
from penstock.runtime.limits import Limits as Limits
from penstock.runtime.limits import Stuck as Stuck
from penstock.runtime.token_ids import answer_ids, token_ids
from penstock.twin.twin import Row
from penstock.workload.source import Source, TimedRequest, cut_short

Stop = Literal["done", "events", "wall time", "virtual time", "interrupted"]
_CHECK_EVERY: Final = 4096
"""Events between two looks at the wall clock."""
_MOST_AT_ONCE: Final = 100_000
"""Requests of one moment, after which a replica that still has nothing to do has refused them all."""


class Cluster(Observer):
    """Runs one simulation.

    Args:
        instances: replicas, numbered as they stand; to be filled before the run, and this is their observer.
        router: who serves what.
        source: what arrives.
        collector: where results go.
        max_sequence_tokens: longer ones are refused, as an engine refuses them; None: only what no memory holds.
        max_tokens: the bound a client states; control sees it, not the length. None: just what the output needs.
        on_first: told of each end of a prompt, before its request joins the decode set; None: saves the time.
    """

    def __init__(
        self, router: Router, source: Source, collector: Collector, *,
        max_tokens: Callable[[TimedRequest], int] | None = None, max_sequence_tokens: int | None = None,
        limits: Limits | None = None, on_progress: Callable[[int, float], None] | None = None,
        on_first: Callable[[Row, float], None] | None = None,
    ) -> None:  # fmt: skip
        self.instances: list[Driven] = []
        self._targets: list[Target] = []
        """The same, as routers know them."""
        self._router, self._source, self._collector = router, source, collector
        self._max_sequence_tokens = max_sequence_tokens
        self._block_tokens = source.block_tokens
        self._follows = bool(getattr(source, "follows", True))
        """Whether an end may bring about a request."""
        self._max_tokens, self._limits, self._on_progress = max_tokens, limits or Limits(), on_progress
        self._on_first = on_first
        self._later: list[tuple[float, int, TimedRequest]] = []
        """Heap of requests that ends have brought about."""
        self._live: dict[int, TimedRequest] = {}

    # -- Observer ---------------------------------------------------------------------------------------------------

    def stepped(self, instance: Instance, step: Step, started: float, ended: float) -> None:
        self._collector.stepped(instance, step, started, ended)

    def coasted(self, instance: Instance, started: float, ends: list[float]) -> None:
        self._collector.coasted(instance, started, ends)

    def first_token(self, row: Row, now: float) -> None:
        self._collector.first_token(row.index, now)
        if self._on_first is not None:
            self._on_first(row, now)

    def ended(self, row: Row, update: Update, now: float) -> None:
        index = row.index
        request = self._live[index]
        del self._live[index]
        cached = 0
        outcome: Outcome = "failed"
        if type(update) is Finished:
            cached = update.cached_tokens
            outcome = "cancelled" if 0 < request.cancel_tokens < request.output_tokens else "completed"
        self._collector.ended(index, now, outcome, row.total, cached, row.preemptions)
        if self._follows:
            self._follow(request, now)

    # -- running ----------------------------------------------------------------------------------------------------

    def run(self) -> Stop:
        """Everything until the source and all replicas are done, or a limit is met; Ctrl-C counts as one.

        Raises Stuck: requests are left, and no replica will ever run them.
        """
        # A simulation makes no reference cycles that live long; looking for some takes a third of its time.
        collecting = gc.isenabled()
        gc.disable()
        try:
            return self._run()
        except KeyboardInterrupt:
            return "interrupted"
        finally:
            if collecting:
                gc.enable()

    def _run(self) -> Stop:
        limits, instances = self._limits, self.instances
        self._targets = list(instances)
        arrivals = self._source.initial()
        request = _next(arrivals)
        following = IDLE if request is None else request.arrival_s
        """When `request` arrives."""
        alarms = Alarms(instances)
        alone = instances[0] if len(instances) == 1 else None
        deadline = IDLE if limits.wall_s is None else time.monotonic() + limits.wall_s
        last = IDLE if limits.virtual_s is None else limits.virtual_s
        events = 0
        most_events = limits.events if limits.events is not None else 1 << 62
        due = min(_CHECK_EVERY, most_events + 1)
        while True:
            arrival = following
            if self._later and self._later[0][0] < arrival:
                arrival = self._later[0][0]
            if alone is not None:
                alone.horizon = arrival
            instance = alarms.first()
            wake = instance.wake
            now = arrival if arrival <= wake else wake
            if now == IDLE:
                break
            if now > last:
                for one in instances:
                    one.halt(last)
                return "virtual time"
            events += 1
            if events >= due:
                if events > most_events:
                    return "events"
                due = min(events + _CHECK_EVERY, most_events + 1)
                if time.monotonic() > deadline:
                    return "wall time"
                if self._on_progress is not None:
                    self._on_progress(self._collector.ended_count, now)
            if arrival <= wake:
                # Nearly always one request comes at a time.
                touched: Driven | None = None
                others: dict[int, Driven] | None = None
                at_once = 0
                while True:
                    if self._later and self._later[0][0] == now:
                        instance = self._submit(heappop(self._later)[2], now)
                    elif request is not None and following == now:
                        instance = self._submit(request, now)
                        request = _next(arrivals)
                        following = IDLE if request is None else request.arrival_s
                    else:
                        break
                    if touched is None:
                        touched = instance
                    elif instance is not touched:
                        if others is None:
                            others = {}
                        others[instance.number] = instance
                    at_once += 1
                    if at_once > _MOST_AT_ONCE and not instance.outstanding:
                        why = next(iter(self._collector.reasons), "")
                        raise Stuck(f"{at_once} requests came at {now:.3f} s, each after a refusal: {why}")
                if touched is not None:
                    touched.start(now)
                    alarms.changed(touched)
                    if others is not None:
                        for one in others.values():
                            one.start(now)
                            alarms.changed(one)
            else:
                instance.fire()
                alarms.changed(instance)
        if self._live:
            left = sum(instance.outstanding for instance in instances)
            raise Stuck(
                f"{left} requests are left at {self._collector.last_s:.3f} s and no replica runs them: "
                f"{instances[0].lanes()[0].replica.statistics()}"
            )
        return "done"

    def settle(self) -> None:
        """After a run that was cut off: note what the unfinished requests have made so far."""
        for instance in self.lanes():
            for row in instance.unfinished():
                self._collector.made(row.index, row.made(instance.twin.clock))

    def lanes(self) -> list[Instance]:
        """All schedulers, in order of their numbers."""
        return [lane for one in self.instances for lane in one.lanes()]

    # -- inside -----------------------------------------------------------------------------------------------------

    def _submit(self, timed: TimedRequest, now: float) -> Driven:
        """Route one request. Returns where it went, refused or not: either way its stretch may have been cut short."""
        index = timed.index
        output = max_tokens = timed.output_tokens
        if self._max_tokens is not None:
            max_tokens = self._max_tokens(timed)
            if max_tokens < output:
                # The answer ends there, for the turns that follow too, and nobody leaves after that.
                timed, output = cut_short(timed, max_tokens), max_tokens
        prompt_tokens = timed.prompt_tokens
        prompt = token_ids(timed, self._block_tokens)
        request = Request(
            id=str(index), prompt=prompt, max_tokens=max_tokens, tenant=timed.tenant, priority=timed.priority
        )
        instances = self.instances
        instance = instances[0] if len(instances) == 1 else instances[self._router.choose(request, self._targets)]
        self._collector.arrived(index, now, prompt_tokens, output, instance.lane(request))
        self._live[index] = timed
        if 0 < timed.cancel_tokens < output:
            output = timed.cancel_tokens
        longest = self._max_sequence_tokens
        try:
            # The last token is never an input, so it needs no position.
            if longest is not None and prompt_tokens + max_tokens - 1 > longest:
                raise InvalidRequest(
                    field="max_tokens", value=max_tokens, why=f"the sequence exceeds {longest} tokens",
                    remedy="a shorter prompt, or fewer tokens",
                )  # fmt: skip
            words = answer_ids(timed, self._block_tokens, output)
            instance.submit(request, now, output_tokens=output, index=index, output=words)
        except InvalidRequest as error:
            del self._live[index]
            self._collector.refused(index, now, error.why)
            self._follow(timed, now)
        return instance

    def _follow(self, request: TimedRequest, now: float) -> None:
        caused = self._source.after(request, now)
        if caused is not None:
            heappush(self._later, (caused.arrival_s, caused.index, caused))


def _next(arrivals: Iterator[TimedRequest]) -> TimedRequest | None:
    # Compiled, a loop asks the iterator itself, and `next` would be looked up and called.
    for request in arrivals:
        return request
    return None
