"""Who is blamed when workers die, with a worker made of a few lists: no process, no time, every order of events."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from dataclasses import dataclass, field
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.control.request import Request
from penstock.control.statistics import Statistics
from penstock.control.step import Finished
from penstock.deployment import Deployment
from penstock.errors import RequestFailed
from penstock.runtime import wire
from penstock.runtime.adapters import Adapters
from penstock.runtime.admission import Admission
from penstock.runtime.facts import StepReport
from penstock.runtime.in_flight import TOTALS, InFlight
from penstock.runtime.stream import Stream

TOKENS = 6
Deadly = Literal["never", "when taken in", "before it is said to be held", "in its first step"] | int
"""When a worker dies of a request; a number: of that token."""


@dataclass
class Model:
    """A worker: takes in what was sent, says what it admits, makes a token for each that it holds, or dies of one."""

    deadly: dict[str, Deadly]
    max_seqs: int
    inbox: list[wire.ToWorker] = field(default_factory=list)
    waiting: list[Request] = field(default_factory=list)
    held: dict[str, int] = field(default_factory=dict)
    """Tokens by id."""
    steps: int = 0

    def take_in(self) -> None:
        """One message. Raises EOFError: it died of it."""
        match self.inbox.pop(0):
            case wire.Submit(request):
                if self.deadly[request.id] == "when taken in":
                    raise EOFError
                self.waiting.append(request)
            case wire.Cancel(id):
                self.held.pop(id, None)
                self.waiting = [one for one in self.waiting if one.id != id]

    def step(self, in_flight: InFlight) -> None:
        """Raises EOFError: it died of it."""
        admitted = self.waiting[: self.max_seqs - len(self.held)]
        del self.waiting[: len(admitted)]
        if any(self.deadly[one.id] == "before it is said to be held" for one in admitted):
            raise EOFError
        if admitted:
            in_flight.received(wire.Admitted([one.id for one in admitted]))
        self.held |= {one.id: len(one.output) for one in admitted}
        for id, made in self.held.items():
            if self.deadly[id] == "in its first step" or self.deadly[id] == made + 1:
                raise EOFError
        self.held = {id: made + 1 for id, made in self.held.items()}
        self.steps += 1
        report = StepReport(self.steps, 0.0, 0.001, len(self.held), len(self.held), 0, len(self.held), 0, 0.0)
        over = [id for id, made in self.held.items() if made == TOKENS]
        tokens = dict(self.held)
        for id in over:
            del self.held[id]
        in_flight.received(
            wire.Stepped(report, tokens=tokens, finished=[Finished(id, "length") for id in over])
        )  # fmt: skip


class Scene:
    """Front end and worker after worker, until every request has ended."""

    def __init__(self, deadly: dict[str, Deadly], max_seqs: int, seed: int, kills: int = 0) -> None:
        self.deadly, self.max_seqs, self.kills = deadly, max_seqs, kills
        self.draw = random.Random(seed)
        self.deaths = 0
        admission = Admission(max_requests=100, max_prompt_tokens=1000, shared=False, fair=False)
        self.worker: Model | None = None
        self.in_flight = InFlight(admission, self.send, lambda: self.worker is not None)
        self.in_flight.adapters = Adapters(Deployment().model, self.send, self.nobody)

    async def nobody(self, handle: str) -> None:
        """No adapters here."""

    def send(self, message: wire.ToWorker) -> None:
        assert self.worker is not None
        self.worker.inbox.append(message)

    def arrive(self, id: str) -> None:
        stream = Stream(Request(id=id, prompt=(1,), max_tokens=TOKENS), 0.0)
        self.in_flight.streams[id] = stream
        self.in_flight.submit(stream)

    def die(self, *, killed: bool) -> None:
        self.deaths += 1
        self.worker = None
        self.in_flight.worker_gone(killed=killed)

    def play(self, to_come: list[str], most_deaths: int) -> dict[str, Stream]:
        every: dict[str, Stream] = {}
        idle = 0
        while to_come or any(not stream.ended for stream in self.in_flight.streams.values()):
            assert self.deaths <= most_deaths
            assert idle < 3, "nothing happens any more"
            if to_come and self.draw.random() < 0.5:
                self.arrive(to_come.pop(0))
            every |= self.in_flight.streams
            for stream in [one for one in every.values() if one.ended and one.request.id in self.in_flight.streams]:
                if self.draw.random() < 0.5:
                    self.in_flight.take_out(stream)
            worker = self.worker
            if worker is None:
                self.worker = Model(self.deadly, self.max_seqs)
                self.in_flight.worker_ready()
                continue
            idle = 0 if worker.inbox or worker.waiting or worker.held or to_come else idle + 1
            try:
                if worker.inbox and self.draw.random() < 0.7:
                    worker.take_in()
                elif worker.waiting or worker.held:
                    worker.step(self.in_flight)
                if self.kills and self.draw.random() < 0.1:
                    self.kills -= 1
                    self.die(killed=True)
            except EOFError:
                self.die(killed=False)
        return every


def check(deadly: dict[str, Deadly], max_seqs: int, seed: int, *, kills: int = 0, most_deaths: int) -> Scene:
    async def body() -> Scene:
        scene = Scene(deadly, max_seqs, seed, kills)
        every = scene.play(list(deadly), most_deaths)
        for id, stream in every.items():
            if deadly[id] == "never":
                assert stream.output == list(range(1, TOKENS + 1))
            else:
                assert isinstance(stream._error, RequestFailed)
        assert len(every) == len(deadly)
        return scene

    return asyncio.run(body())


@pytest.mark.parametrize("when", ["when taken in", "before it is said to be held", "in its first step", 1, 3])
@pytest.mark.parametrize("seed", range(5))
def test_of_many_requests_only_the_one_that_workers_die_of_fails(when: Deadly, seed: int) -> None:
    deadly: dict[str, Deadly] = {f"good{i}": "never" for i in range(4)} | {"bad": when}
    deadly |= {f"later{i}": "never" for i in range(4)}
    scene = check(deadly, 4, seed, most_deaths=12)
    assert scene.deaths >= 3


def test_one_that_kills_at_the_door_is_found_although_others_are_known_to_be_held() -> None:
    """The worker has said of each of its victims that it holds it, and never a word of the one it dies of."""

    async def body() -> None:
        scene = Scene({"good0": "never", "good1": "never", "bad": "when taken in"}, 8, seed=0)
        for id in scene.deadly:
            scene.arrive(id)
        for _ in range(20):
            scene.worker = worker = Model(scene.deadly, 8)
            scene.in_flight.worker_ready()
            try:
                while worker.inbox:
                    worker.take_in()
                    worker.held |= {one.id: len(one.output) for one in worker.waiting}
                    scene.in_flight.received(wire.Admitted([one.id for one in worker.waiting]))
                    worker.waiting.clear()
                while worker.held or worker.inbox or worker.waiting:
                    if worker.inbox:
                        worker.take_in()
                    worker.step(scene.in_flight)
            except EOFError:
                scene.die(killed=False)
            if all(stream.ended for stream in scene.in_flight.streams.values()):
                break
        streams = scene.in_flight.streams
        assert isinstance(streams["bad"]._error, RequestFailed)
        assert [streams[id].output for id in ("good0", "good1")] == [list(range(1, TOKENS + 1))] * 2
        assert scene.deaths <= 8

    asyncio.run(body())


def test_totals_do_not_fall_when_a_worker_dies() -> None:
    async def body() -> None:
        scene = Scene({}, 8, seed=0)
        in_flight = scene.in_flight
        whole = {name: number for number, name in enumerate(TOTALS, 1)}
        assert len(whole) + 12 == len(dataclasses.fields(Statistics)), "a new field: does it only grow?"
        for deaths in range(3):
            in_flight.received(wire.Stepped(statistics=Statistics(running=2, held_blocks=5)))
            in_flight.received(wire.Stepped(statistics=Statistics(running=3, held_blocks=7, **whole)))
            found = dataclasses.asdict(in_flight.statistics)
            assert {name: found[name] for name in TOTALS} == {k: (deaths + 1) * v for k, v in whole.items()}
            assert (found["running"], found["held_blocks"]) == (3, 7)
            in_flight.worker_gone(killed=True)
            left = dataclasses.asdict(in_flight.statistics)
            assert {name: left[name] for name in TOTALS} == {name: found[name] for name in TOTALS}
            assert not any(number for name, number in left.items() if name not in TOTALS)

    asyncio.run(body())


@settings(max_examples=400, deadline=None)
@given(
    deadly=st.lists(
        st.one_of(
            st.just("never"), st.just("never"), st.integers(1, TOKENS),
            st.sampled_from(["when taken in", "before it is said to be held", "in its first step"]),
        ),
        min_size=1, max_size=10,
    ),
    max_seqs=st.integers(1, 8), seed=st.integers(0, 2**32), kills=st.integers(0, 2),
)  # fmt: skip
def test_in_any_order_of_events_the_guilty_fail_alone_and_everything_ends(
    deadly: list[Deadly], max_seqs: int, seed: int, kills: int
) -> None:
    guilty = sum(one != "never" for one in deadly)
    by_id = {f"{number} {one}": one for number, one in enumerate(deadly)}
    check(by_id, max_seqs, seed, kills=kills, most_deaths=kills + 8 * guilty * (guilty + 1))
