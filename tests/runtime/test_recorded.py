"""A recording's token times are those of the results that control took, whoever was preempted, cancelled or failed."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any
from unittest import mock

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings

from penstock.control.request import Request
from penstock.control.step import StepResult
from penstock.errors import BadInput
from penstock.runtime.legs import Legs
from penstock.runtime.record import Recorder, free_name
from penstock.runtime.recorded import requests_of
from penstock.runtime.replay import replay
from penstock.runtime.schedule import NANOSECONDS, Done, End, Header, Plan, Schedule, Submit, read_schedule
from tests.runtime.test_record import LONG, deployment, kinds, play, scripts


class Watching(Recorder):
    """Notes besides how each request ended, and when each of its tokens was there."""

    def __init__(self, path: Path, header: Header) -> None:
        super().__init__(path, header)
        self.live: set[str] = set()
        self.outcomes: dict[str, str] = {}
        self.tokens: dict[str, list[float]] = defaultdict(list)

    def submitted(self, request: Request, now: float) -> None:
        super().submitted(request, now)
        self.live.add(request.id)

    def cancelled(self, request_id: str, now: float) -> None:
        super().cancelled(request_id, now)
        if request_id in self.live:
            self.outcomes[request_id] = "cancelled"
            self.live.remove(request_id)

    def done(self, result: StepResult, started: float, ended: float, now: float) -> None:
        super().done(result, started, ended, now)
        for id in result.tokens:
            if id in self.live:
                self.tokens[id].append(now)
        for id in (*result.finished, *result.failed):
            if id in self.live:
                self.outcomes[id] = "failed" if id in result.failed else "completed"
                self.live.remove(id)


def watched(out: Path, script: list[tuple[str, int]], kind: dict[str, Any], fails: tuple[str, ...] = ()) -> Watching:
    seen: list[Watching] = []

    def watching(path: Path, header: Header) -> Watching:
        seen.append(Watching(path, header))
        return seen[-1]

    with mock.patch("penstock.runtime.record.Recorder", watching):
        play(out, deployment(**kind), script, fails=fails)
    return seen[0]


@settings(
    max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(script=scripts, kind=kinds)
def test_token_times_are_those_that_control_saw(
    tmp_path: Path, script: list[tuple[str, int]], kind: dict[str, Any]
) -> None:
    out = free_name(tmp_path / "run.jsonl")
    seen = watched(out, script, kind)
    schedule = read_schedule(out)
    found = requests_of(schedule)
    origin = schedule.header.origin_ns / NANOSECONDS
    names = [event.id for event in schedule.events if isinstance(event, Submit)]
    assert {names[record.index]: record.outcome for record in found.records} == seen.outcomes
    assert found.without_end == found.continued == 0
    for record in found.records:
        id = names[record.index]
        assert record.outcome == "cancelled" or [origin + at for at in record.token_s] == pytest.approx(
            seen.tokens[id], abs=2e-9
        )
        assert record.output_tokens == len(record.token_s)
        assert record.arrival_s == record.sent_s <= record.end_s


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(script=scripts, kind=kinds)
def test_what_is_replayed_has_the_latencies_of_the_recording(
    tmp_path: Path, script: list[tuple[str, int]], kind: dict[str, Any]
) -> None:
    out = free_name(tmp_path / "run.jsonl")
    play(out, deployment(**kind), script)
    schedule = read_schedule(out)
    assert requests_of(replay(schedule).schedule) == requests_of(schedule)


def test_a_request_that_failed_is_no_answer(tmp_path: Path) -> None:
    seen = watched(tmp_path / "run.jsonl", LONG, {}, fails=("q2", "q7"))
    found = requests_of(read_schedule(tmp_path / "run.jsonl"))
    failed = [record for record in found.records if record.outcome == "failed"]
    assert len(failed) == sum(outcome == "failed" for outcome in seen.outcomes.values()) > 0
    assert all(record.reason for record in failed)


HEADER = Header(
    format=1, penstock="0", deployment={}, blocks=8, block_tokens=4, max_sequence_tokens=32,
)  # fmt: skip


def by_hand(name: str, second: str) -> Schedule:
    """A prompt of 8 that makes 3 tokens; then, as `second`, it goes on to 5 from other KV."""
    return Schedule(
        HEADER,
        [
            Submit(t=0, id=name, prompt_tokens=8, max_tokens=3),
            Plan(t=0, n=1, admit=[(name, (0, 1, 2), 4)], chunks=[(name, 4, 4, True)]),
            Done(t=10, n=1, start=0, end=10),
            Plan(t=10, n=2, join=[name], decoding=1),
            Done(t=20, n=2, start=10, end=20),
            Plan(t=20, n=3, decoding=1),
            Done(t=30, n=3, start=20, end=30, finished=[End(name, "length", 3)]),
            Submit(t=30, id=second, prompt_tokens=8, max_tokens=5, output_tokens=3),
            Plan(t=30, n=4, release=[name], admit=[(second, (3, 4, 5), 0)], chunks=[(second, 0, 11, True)]),
            Done(t=50, n=4, start=30, end=50),
            Plan(t=50, n=5, join=[second], decoding=1),
            Done(t=60, n=5, start=50, end=60, finished=[End(second, "length", 5)]),
        ],
    )


def test_a_request_of_two_legs_is_one_to_whoever_waits_for_it() -> None:
    (record,) = requests_of(by_hand("a", Legs(0).ids("a")[1])).records
    assert [round(NANOSECONDS * at) for at in record.token_s] == [10, 20, 30, 50, 60]
    assert (record.output_tokens, record.cached_tokens, record.arrival_s) == (5, 4, 0.0)


def test_what_was_made_by_a_worker_before_is_not_counted_again() -> None:
    found = requests_of(by_hand("a", "b"))
    first, second = found.records
    assert found.continued == 1
    assert (first.output_tokens, second.output_tokens) == (3, 2)
    assert [round(NANOSECONDS * at) for at in second.token_s] == [50, 60]


def test_requests_without_an_end_are_counted_and_left_out() -> None:
    schedule = by_hand("a", "b")
    found = requests_of(Schedule(HEADER, schedule.events[:9]))
    assert (len(found.records), found.without_end) == (1, 1)


@pytest.mark.parametrize(
    ("place", "other", "why"),
    [
        (6, Done(t=30, n=3, start=20, end=30, finished=[End("a", "length", 7)]), "its steps made 3"),
        (2, Done(t=10, n=9, start=0, end=10), "no such step"),
    ],
)
def test_a_recording_that_contradicts_itself_is_refused(place: int, other: Done, why: str) -> None:
    events = [msgspec.structs.replace(event) for event in by_hand("a", "b").events]
    events[place] = other
    with pytest.raises(BadInput, match=why):
        requests_of(Schedule(HEADER, events))
