"""Runs a recorded schedule again in the twin, and shows the first step that differs (Contract 3).

From the recording come the deployment, when requests arrived and were given up, how long each step took, and how many
tokens each request made. Everything else must follow: a virtual clock orders arrivals and step ends by time (ties by
their place in the recording), the same Loop and the same control plane plan, and twin/twin.py counts tokens. Each
planned step is compared with the recorded one, down to the block numbers.

    duration of step n = its end - max(when it was launched, end of step n - 1)

as control saw them. A launch happens at the event that made control look for work, so times in the replay are those of
the recording to the nanosecond, as long as the steps are.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from time import perf_counter
from typing import Any, Final

import msgspec

from penstock.control.request import Request, Sampling
from penstock.control.statistics import Statistics
from penstock.control.step import Step, StepResult
from penstock.deployment import Deployment
from penstock.errors import BadInput, InvalidRequest, ProtocolError
from penstock.runtime.build import replica_for
from penstock.runtime.local import Loop
from penstock.runtime.schedule import NANOSECONDS, Cancel, Done, End, Plan, Schedule, Submit, plan_of
from penstock.twin.load import StepLoad
from penstock.twin.twin import Pricing, Twin

_AROUND: Final = 3
_SKIPPED: Final = ("event", "t", "n")


@dataclass(frozen=True, slots=True)
class Difference:
    """Where the replay left the recording."""

    step: int
    field: str
    """Of the step, as control/step.py names it; or `step`: one of them has none; `finished`, `failed`: its result."""
    recorded: Any
    replayed: Any
    at_s: float
    around: tuple[str, ...]
    """The recorded events before and after, one line each."""

    def __str__(self) -> str:
        shown = "\n".join(f"    {line}" for line in self.around)
        return (
            f"step {self.step} differs in `{self.field}` at {self.at_s:.6f} s\n"
            f"  recorded: {_short(self.recorded)}\n  replayed: {_short(self.replayed)}\n  around it:\n{shown}"
        )


@dataclass(frozen=True, slots=True)
class Replayed:
    """What a replay found."""

    steps: int
    """Planned steps that are identical."""
    difference: Difference | None
    statistics: Statistics
    """Of the replayed control plane at the end."""
    virtual_s: float
    wall_s: float
    truncated: bool
    schedule: Schedule = field(repr=False)
    """What was replayed, as a recording of its own: the recorded arrivals and cancellations, steps and ends anew."""
    policy: dict[str, Any] = field(default_factory=dict)

    @property
    def identical(self) -> bool:
        return self.difference is None

    def to_json(self) -> dict[str, Any]:
        difference = None if self.difference is None else asdict(self.difference)
        return {
            "identical": self.identical, "steps": self.steps, "difference": difference, "policy": self.policy,
            "statistics": asdict(self.statistics), "virtual_s": self.virtual_s, "wall_s": self.wall_s,
            "truncated": self.truncated,
        }  # fmt: skip


class _Differs(Exception):
    def __init__(self, difference: Difference) -> None:
        self.difference = difference


class _NoTime(Pricing):
    """A price of nothing: how long a step takes, the recording says."""

    def seconds(self, load: StepLoad) -> float:
        return 0.0

    def decode_ends(
        self, decoding: int, context: int, squares: int, now: float, most: int, until: float
    ) -> list[float]:
        return [now] * (most if now < until else 1)


class _Told:
    """The twin, told how long each output was: the only thing here that knows."""

    def __init__(self, ends: Mapping[str, deque[End | None]], outputs: Mapping[str, deque[tuple[int, ...]]]) -> None:
        self._twin = Twin(_NoTime())
        self._ends, self._outputs = ends, outputs

    def add(self, request: Request) -> None:
        end, output = self._ends[request.id].popleft(), self._outputs[request.id].popleft()
        self._twin.add(request, None if end is None else end.output_tokens, output=output)

    def run(self, step: Step) -> StepResult:
        return self._twin.run(step)

    def close(self) -> None:
        self._twin.close()


class _Replay:
    """One run of it. Times are the recording's nanoseconds."""

    def __init__(self, schedule: Schedule) -> None:
        header = schedule.header
        self.schedule, self.size = schedule, header.block_tokens
        self.now = 0
        self.plans: list[Plan] = []
        self.arrivals: deque[tuple[int, int, Submit | Cancel]] = deque()
        self.requests: dict[int, Request] = {}
        self.durations: dict[int, int] = {}
        self.dones: dict[int, tuple[int, Done]] = {}
        self.together: set[tuple[int, int]] = set()
        """Places of events next to each other, the second of which had come when the first was handled."""
        ends = self._read()
        self.deployment = Deployment.parse(header.deployment)
        self.replica = replica_for(
            self.deployment, blocks=header.blocks, max_sequence_tokens=header.max_sequence_tokens,
            host_blocks=header.host_blocks,
        )  # fmt: skip
        self.launched: deque[tuple[int, Step]] = deque()
        self.last_end = 0
        self.planned = 0
        self.events: list[Submit | Cancel | Plan | Done] = []
        """What happens in the replay."""
        self.live: set[str] = set()
        """What the recorder knew: submitted, and neither ended nor cancelled."""
        self.loop = Loop(
            self.replica, ends, clock=self._seconds, plan_ahead=header.plan_ahead, launch=self._launch
        )  # fmt: skip
        self.twin = ends

    # -- the recording, taken apart ---------------------------------------------------------------------------------

    def _read(self) -> _Told:
        """Arrivals, durations and outputs. Raises BadInput: lines that no loop could have written."""
        ends: dict[str, deque[End | None]] = {}
        outputs: dict[str, deque[tuple[int, ...]]] = {}
        open_: dict[str, int] = {}
        found: dict[int, End] = {}
        submits: list[tuple[int, Submit]] = []
        looked = previous = 0
        before, clock = -1, 0
        launches: dict[int, int] = {}
        for number, event in enumerate(self.schedule.events):
            if event.t < clock:
                raise self._wrong(number, "the clock went backwards")
            clock = event.t
            if not isinstance(event, Plan):
                if event.joined:
                    self.together.add((before, number))
                before = number
            match event:
                case Submit():
                    self.arrivals.append((event.t, number, event))
                    submits.append((number, event))
                    open_[event.id] = number
                    looked = event.t
                case Cancel():
                    self.arrivals.append((event.t, number, event))
                    looked = event.t
                case Plan():
                    if event.n != len(self.plans) + 1:
                        raise self._wrong(number, f"plan of step {event.n} after step {len(self.plans)}")
                    self.plans.append(event)
                    launches[event.n] = looked
                case Done():
                    if event.n not in launches or event.n != len(self.dones) + 1:
                        raise self._wrong(number, f"result of step {event.n} after that of step {len(self.dones)}")
                    self.durations[event.n] = event.t - max(launches[event.n], previous)
                    self.dones[event.n] = (number, event)
                    looked = previous = event.t
                    for ended in event.finished:
                        if ended.id not in open_:
                            raise self._wrong(number, f"{ended.id!r} finished and was never submitted")
                        found[open_[ended.id]] = ended
        for number, submit in submits:
            end = found.get(number)
            request, output = self._request(number, submit, end)
            self.requests[number] = request
            ends.setdefault(submit.id, deque()).append(end)
            outputs.setdefault(submit.id, deque()).append(output)
        return _Told(ends, outputs)

    def _request(self, number: int, submit: Submit, end: End | None) -> tuple[Request, tuple[int, ...]]:
        """Tokens that are equal block for block wherever the recorded ones were, and nowhere else."""
        made = submit.output_tokens if end is None else end.output_tokens
        total = submit.prompt_tokens + made
        hashes = [*submit.blocks, *(() if end is None else end.blocks)]
        tokens: list[int] = []
        for text in hashes:
            tokens += [int(text, 16)] * self.size
        tokens += [-1 - number] * (total - len(tokens))
        prompt, output = tuple(tokens[: submit.prompt_tokens]), tuple(tokens[submit.prompt_tokens : total])
        request = Request(
            id=submit.id, prompt=prompt, max_tokens=submit.max_tokens, output=output[: submit.output_tokens],
            tenant=submit.tenant, prefix_group=submit.group, weight=submit.weight, salt=submit.salt,
            priority=submit.priority,
            sampling=Sampling(prompt_logprobs=0 if submit.uncached else None),
        )  # fmt: skip
        return request, output

    def _wrong(self, number: int, why: str) -> BadInput:
        return BadInput(
            field=f"schedule line {number + 2}", value=why, why="no loop writes this", remedy="an unchanged recording"
        )

    # -- the virtual clock --------------------------------------------------------------------------------------------

    def run(self) -> Difference | None:
        try:
            while (event := self._next()) is not None:
                self._handle(event)
                # What had come already is handled before anything is planned.
                following = self._next()
                if following is None or (event[1], following[1]) not in self.together:
                    self.loop.advance()
            return self._rest()
        except _Differs as found:
            return found.difference
        except ProtocolError as error:
            return self._difference(self.planned, "step", "went on", f"ProtocolError: {error}")
        finally:
            self.twin.close()

    def _next(self) -> tuple[int, int, Submit | Cancel | Step] | None:
        """The earliest of the next arrival and the running step's end."""
        arrival = self.arrivals[0] if self.arrivals else None
        if self.launched:
            launched, step = self.launched[0]
            if step.number in self.durations:
                end = max(launched, self.last_end) + self.durations[step.number]
                number = self.dones[step.number][0]
                if arrival is None or (end, number) < arrival[:2]:
                    return end, number, step
        return arrival

    def _handle(self, event: tuple[int, int, Submit | Cancel | Step]) -> None:
        self.now, number, what = event
        if not isinstance(what, Step):
            self.events.append(what)
        match what:
            case Submit():
                self.arrivals.popleft()
                try:
                    self.loop.submit(self.requests[number])
                except InvalidRequest:
                    return  # refused then, refused now: the loop tells the executor with the next step
                self.live.add(what.id)
            case Cancel():
                self.arrivals.popleft()
                self.live.discard(what.id)
                self.loop.cancel(what.id)
            case Step():
                self._end(what)

    def _end(self, step: Step) -> None:
        self.launched.popleft()
        self.last_end = self.now
        result = self.twin.run(step)
        done = self.dones[step.number][1]
        recorded = [end.id for end in done.finished]
        made = result.finished
        ended = [request_id for request_id in made if request_id in self.live and request_id not in done.failed]
        if set(ended) != set(recorded):
            raise _Differs(self._difference(step.number, "finished", recorded, ended))
        # The order in which an executor reports the ends of one step is its own.
        result.finished = {request_id: made[request_id] for request_id in recorded}
        result.failed = dict(done.failed)
        self.live.difference_update(recorded, done.failed)
        ends = [End(id, finish.reason, len(finish.output)) for id, finish in result.finished.items()]
        self.events.append(
            Done(t=self.now, n=step.number, start=self.now, end=self.now, finished=ends, failed=result.failed)
        )
        seconds = self._seconds()
        self.loop.done(result, seconds, seconds)

    def _launch(self, step: Step) -> None:
        self.launched.append((self.now, step))
        self.planned += 1
        replayed = plan_of(step, self.now)
        self.events.append(replayed)
        if step.number > len(self.plans):
            if self.now < self.schedule.events[-1].t:
                raise _Differs(self._difference(step.number, "step", None, replayed))
            return  # the recording ends here
        recorded = self.plans[step.number - 1]
        for name in recorded.__struct_fields__:
            if name not in _SKIPPED and getattr(recorded, name) != getattr(replayed, name):
                raise _Differs(
                    self._difference(step.number, name, getattr(recorded, name), getattr(replayed, name))
                )  # fmt: skip

    def _rest(self) -> Difference | None:
        """Nothing is left to do: then nothing may be left in the recording."""
        if self.planned < len(self.plans):
            return self._difference(self.planned + 1, "step", self.plans[self.planned], None)
        return None

    def _seconds(self) -> float:
        return (self.schedule.header.origin_ns + self.now) / NANOSECONDS

    def _difference(self, step: int, name: str, recorded: Any, replayed: Any) -> Difference:
        events = self.schedule.events
        at = next((i for i, event in enumerate(events) if isinstance(event, Plan) and event.n >= step), len(events))
        around = tuple(
            ("> " if i == at else "  ") + _short(msgspec.json.encode(events[i]).decode())
            for i in range(max(0, at - _AROUND), min(len(events), at + _AROUND + 1))
        )
        return Difference(step, name, _plain(recorded), _plain(replayed), self.now / NANOSECONDS, around)


def replay(schedule: Schedule) -> Replayed:
    """Run a recorded schedule in the twin. Raises BadInput: the file contradicts itself."""
    started = perf_counter()
    run = _Replay(schedule)
    difference = run.run()
    same = min(run.planned, len(run.plans))
    return Replayed(
        steps=same if difference is None else min(same, difference.step - 1), difference=difference,
        statistics=run.replica.statistics(), virtual_s=run.now / NANOSECONDS, wall_s=perf_counter() - started,
        truncated=schedule.truncated, schedule=Schedule(schedule.header, run.events, schedule.truncated),
        policy=run.deployment.policy.model_dump(mode="json"),
    )  # fmt: skip


def _plain(value: Any) -> Any:
    return msgspec.to_builtins(value)


def _short(value: object, most: int = 300) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= most else text[: most - 3] + "..."
