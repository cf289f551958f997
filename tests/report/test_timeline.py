"""The timeline is valid trace-event JSON: spans balanced, counters numeric, written as it goes."""

from __future__ import annotations

import io
import json
from collections import Counter

import numpy as np

from penstock.report.simulation import SimulationResult
from penstock.report.timeline import Level, RequestSpan, StepSpan, TimelineWriter, timeline
from tests.report.simulated import columns, series

EVENTS = [
    StepSpan(0, 1, 0.0, 0.02, 512, 0, 2),
    StepSpan(0, 2, 0.02, 0.03, 8, 8, 0),
    StepSpan(1, 1, 0.0, 0.01, 9, 8, 1),
    Level(0, 0.02, 3, 8, 0.123456),
    RequestSpan(0, "r0", 0.0, 0.005, 0.02, 0.5, 100, 7),
    RequestSpan(1, 'r"1', 0.1, None, None, 0.3, 100, 0, "cancelled"),
    RequestSpan(1, "r2", 0.1, 0.2, None, 0.3, 100, 0, "failed"),
]


def test_steps_counters_and_lanes() -> None:
    trace = json.loads(timeline(EVENTS, {1: "spare"}))
    events = trace["traceEvents"]
    phases = Counter(event["ph"] for event in events)
    assert phases == {"M": 6, "X": 3, "C": 2, "b": 3 + 3 + 1 + 2, "e": 3 + 3 + 1 + 2}
    steps = [event for event in events if event["ph"] == "X"]
    assert [step["name"] for step in steps] == ["prefill", "decode", "mixed"]
    assert (steps[0]["ts"], steps[0]["dur"]) == (0.0, 20000.0)
    assert steps[0]["args"] == {"step": 1, "tokens": 512, "decoding": 0, "chunks": 2}
    names = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert names == {0: "replica 0", 1: "spare"}
    for event in events:
        if event["ph"] == "C":
            assert all(isinstance(value, int | float) for value in event["args"].values())


def test_a_lane_nests_its_phases_and_closes_each() -> None:
    events = json.loads(timeline(EVENTS))["traceEvents"]
    for lane in ("r0", 'r"1', "r2"):
        stack: list[tuple[str, float]] = []
        for event in events:
            if event.get("id") != lane:
                continue
            if event["ph"] == "b":
                stack.append((event["name"], event["ts"]))
            else:
                name, begin = stack.pop()
                assert name == event["name"]
                assert begin <= event["ts"]
        assert not stack
    spans = [(e["name"], e["ph"], e["ts"]) for e in events if e.get("id") == "r0"]
    assert spans[1:3] == [("queue", "b", 0.0), ("queue", "e", 5000.0)]


def test_it_is_written_event_by_event() -> None:
    file = io.BytesIO()
    with TimelineWriter(file) as writer:
        for number in range(20_000):
            writer.step(0, number / 100, number / 100 + 0.01, 8, 0, 0)
        assert file.tell() > 1_000_000
    events = json.loads(file.getvalue())["traceEvents"]
    assert writer.count == len(events) == 20_003
    assert events[-1]["args"] == {"step": 20_000, "tokens": 8, "decoding": 8, "chunks": 0}


def test_a_result_gives_its_counters_and_lanes() -> None:
    first = np.array([0.5, np.nan, np.nan])
    result = SimulationResult(
        title="t", series=(series(0, 5),),
        requests=columns(
            3, first_token_s=first, finish_s=np.array([1.5, 2.0, np.nan]), replica=np.array([0, 0, -1]),
            outcome=np.array([0, 3, 4]),
        ),
    )  # fmt: skip
    file = io.BytesIO()
    with TimelineWriter(file) as writer:
        writer.add_result(result)
    events = json.loads(file.getvalue())["traceEvents"]
    assert sum(event["ph"] == "C" for event in events) == 10
    begun = [event["name"] for event in events if event["ph"] == "b"]
    assert begun == ["request 0", "queue and prefill", "decode", "request 1", "queue"]


def test_no_event_at_all_is_a_valid_file() -> None:
    assert json.loads(timeline([])) == {"displayTimeUnit": "ms", "traceEvents": []}
