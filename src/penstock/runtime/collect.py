"""What a simulation remembers: a row for each request, and a bounded number of samples over time.

A row is one small object, written field by field as things happen; columns are made of them at the end. Samples are
taken at even virtual time, per replica; when there are too many, every other one goes and the distance doubles, so
their memory is bounded whatever the length of the run.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Final, Literal

from penstock.control.replica import Replica
from penstock.control.step import Step
from penstock.report.simulation import OUTCOMES, UNFINISHED
from penstock.runtime.instance import Instance
from penstock.twin.load import StepLoad
from penstock.twin.twin import Twin, blocks_of

Outcome = Literal["completed", "rejected", "failed", "cancelled", "unfinished"]
_CODES: Final = {name: code for code, name in enumerate(OUTCOMES)}
MOST_SAMPLES: Final = 1024
"""Of all replicas together; at least FEWEST of each. The distance doubles whenever there are more."""
FEWEST: Final = 256
FIRST_SAMPLE_S: Final = 0.05
NEVER: Final = float("nan")

OnStep = Callable[[int, float, float, int, int, int], None]
"""Replica, start, end, sequences decoding, chunks, prompt tokens: for a timeline."""


class Sample:
    """One replica at one moment, and the step that had just run."""

    __slots__ = ("busy_s", "kv_used", "load", "running", "step_s", "t", "together", "waiting")

    def __init__(
        self, t: float, replica: Replica, load: StepLoad, together: list[StepLoad], step_s: float, busy_s: float
    ) -> None:
        self.t, self.load, self.step_s = t, load, step_s
        self.together = together
        """Loads of all ranks, where it is one of several in lockstep."""
        self.waiting, self.running, self.kv_used = replica.waiting, replica.running, replica.kv_used
        self.busy_s = busy_s
        """Of the replica until then."""


class Seen:
    """One request, seen from outside. What has not happened is NEVER or 0."""

    __slots__ = (
        "arrival_s", "cached_tokens", "finish_s", "first_s", "outcome", "output_tokens", "preemptions", "prompt_tokens",
        "replica",
    )  # fmt: skip

    def __init__(self) -> None:
        self.arrival_s = self.first_s = self.finish_s = NEVER
        self.prompt_tokens = self.output_tokens = self.cached_tokens = self.preemptions = self.replica = 0
        self.outcome = UNFINISHED


class Lane:
    """What one instance has done so far."""

    __slots__ = ("busy_s", "distance", "due", "ended", "idle", "samples", "steps")

    def __init__(self) -> None:
        self.steps = 0
        self.busy_s = 0.0
        self.ended = NEVER
        """When its last step ended."""
        self.samples: list[Sample] = []
        self.distance = FIRST_SAMPLE_S
        """Between two samples."""
        self.due = 0.0
        """When the next sample is."""
        self.idle: list[tuple[float, float]] = []
        """From when to when it had nothing to do, as far as that is longer than the distance of samples."""


class Collector:
    """Told by the cluster; read by the report.

    Args:
        replicas: how many instances there are; each rank of a replica counts.
        on_step: called for each step, coasted ones included; for a timeline. None: saves the time.
    """

    def __init__(self, replicas: int, on_step: OnStep | None = None) -> None:
        self._rows: list[Seen] = []
        """By index of the request; some may never have arrived."""
        self.lanes = [Lane() for _ in range(replicas)]
        self.ended_count = 0
        self.last_s = 0.0
        """When the last step or request ended."""
        self.reasons: dict[str, int] = {}
        """Why requests were refused, and how many."""
        self._most = max(FEWEST, MOST_SAMPLES // replicas)
        self._on_step = on_step

    @property
    def steps(self) -> list[int]:
        """Of each instance."""
        return [lane.steps for lane in self.lanes]

    # -- requests ---------------------------------------------------------------------------------------------------

    def arrived(self, index: int, now: float, prompt_tokens: int, output_tokens: int, replica: int) -> None:
        """A request was sent to a replica. `output_tokens`: what it will make if nothing stops it."""
        rows = self._rows
        while index >= len(rows):
            rows.append(Seen())
        row = rows[index]
        row.arrival_s = now
        row.prompt_tokens = prompt_tokens
        row.output_tokens = output_tokens
        row.replica = replica

    def first_token(self, index: int, now: float) -> None:
        """A prompt is done. Only the first time counts: an evicted request computes its prompt again."""
        row = self._rows[index]
        if row.first_s != row.first_s:
            row.first_s = now

    def made(self, index: int, output_tokens: int) -> None:
        """The run is over, and an unfinished request has made so many tokens."""
        self._rows[index].output_tokens = output_tokens

    def ended(self, index: int, now: float, outcome: Outcome, output_tokens: int, cached: int, evicted: int) -> None:
        """A request ended at `now` with so many tokens made."""
        row = self._rows[index]
        row.finish_s = self.last_s = now
        row.outcome = _CODES[outcome]
        row.output_tokens = output_tokens
        row.cached_tokens = cached
        row.preemptions = evicted
        self.ended_count += 1

    def refused(self, index: int, now: float, why: str) -> None:
        """A replica cannot ever run it."""
        self.ended(index, now, "rejected", 0, 0, 0)
        self.reasons[why] = self.reasons.get(why, 0) + 1

    # -- columns, by index; each is made when it is asked for -------------------------------------------------------

    @property
    def arrival_s(self) -> array[float]:
        """NEVER where a request never arrived."""
        return array("d", [row.arrival_s for row in self._rows])

    @property
    def first_s(self) -> array[float]:
        """Of the first token."""
        return array("d", [row.first_s for row in self._rows])

    @property
    def finish_s(self) -> array[float]:
        """Of whatever end."""
        return array("d", [row.finish_s for row in self._rows])

    @property
    def prompt_tokens(self) -> array[int]:
        """Of all that arrived."""
        return array("q", [row.prompt_tokens for row in self._rows])

    @property
    def output_tokens(self) -> array[int]:
        """Made so far, or to be made."""
        return array("q", [row.output_tokens for row in self._rows])

    @property
    def cached_tokens(self) -> array[int]:
        """Prompt tokens found in the prefix cache."""
        return array("q", [row.cached_tokens for row in self._rows])

    @property
    def preemptions(self) -> array[int]:
        """How often each gave way."""
        return array("l", [row.preemptions for row in self._rows])

    @property
    def replica(self) -> array[int]:
        """Who served it."""
        return array("l", [row.replica for row in self._rows])

    @property
    def outcome(self) -> array[int]:
        """As places in OUTCOMES."""
        return array("b", [row.outcome for row in self._rows])

    # -- steps ------------------------------------------------------------------------------------------------------

    def stepped(self, instance: Instance, step: Step, started: float, ended: float) -> None:
        """One step from `started` to `ended`."""
        lane = self.lanes[instance.number]
        lane.steps += 1
        lane.busy_s += ended - started
        before = lane.ended
        if started > before:
            _rested(lane, before, started)
        lane.ended = ended
        if ended > self.last_s:
            self.last_s = ended
        if ended >= lane.due:
            self._sample(lane, instance, step, ended, ended - started)
        if self._on_step is not None:
            chunks, number = step.chunks, instance.number
            self._on_step(number, started, ended, step.decoding, len(chunks), sum([chunk.tokens for chunk in chunks]))

    def coasted(self, instance: Instance, started: float, ends: list[float]) -> None:
        """Consecutive plain decode steps."""
        lane = self.lanes[instance.number]
        count, last = len(ends), ends[-1]
        lane.steps += count
        lane.busy_s += last - started
        lane.ended = last
        if last > self.last_s:
            self.last_s = last
        if last >= lane.due:
            before = ends[-2] if count > 1 else started
            self._sample(lane, instance, None, last, last - before, count // 2)
        if self._on_step is not None:
            number, decoding = instance.number, instance.twin.decoding
            for end in ends:
                self._on_step(number, started, end, decoding, 0, 0)
                started = end

    def finish(self, number: int) -> None:
        """A replica has nothing left to do while others went on to the end of the run."""
        lane = self.lanes[number]
        if self.last_s > lane.ended:
            _rested(lane, lane.ended, self.last_s)

    def _sample(
        self, lane: Lane, instance: Instance, step: Step | None, now: float, step_s: float, back: int = 0
    ) -> None:
        load = _load(step, instance.twin, back)
        together: list[StepLoad] = []
        for peer in instance.peers:
            if peer.running is not None:
                together.append(_load(None if step is None else peer.running, peer.twin, back))
        samples = lane.samples
        samples.append(Sample(now, instance.replica, load, together, step_s, lane.busy_s))
        if len(samples) >= self._most:
            del samples[1::2]
            lane.distance *= 2
            lane.idle = [gap for gap in lane.idle if gap[1] - gap[0] >= lane.distance]
        lane.due = now + lane.distance


def _load(step: Step | None, twin: Twin, back: int) -> StepLoad:
    """Of a step; None: of the plain decode step so many before the next one."""
    if step is None:
        return StepLoad(twin.decoding, twin.context - back * twin.decoding, twin.squares, (), twin.decoding)
    chunks = tuple([(chunk.start, chunk.tokens) for chunk in step.chunks])
    sampled = step.decoding + sum([chunk.last for chunk in step.chunks])
    return StepLoad(
        step.decoding, step.decode_context, twin.squares, chunks, sampled, blocks_of(step.swap_in),
        blocks_of(step.swap_out),
    )  # fmt: skip


def _rested(lane: Lane, begin: float, end: float) -> None:
    """It had nothing to do in between."""
    if end - begin >= lane.distance:
        lane.idle.append((begin, end))
