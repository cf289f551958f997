"""The timeline is valid trace-event JSON: spans balanced, counters numeric, written as it goes."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterator

from penstock.report.timeline import Event, Level, RequestSpan, StepSpan, timeline, write_timeline

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

    def events() -> Iterator[Event]:
        for number in range(20_000):
            if number == 19_999:
                assert file.tell() > 1_000_000, "earlier events are out before the last one is asked for"
            yield StepSpan(0, number, number / 100, number / 100 + 0.01, 8, 8, 0)

    assert write_timeline(file, events()) == 20_003
    assert len(json.loads(file.getvalue())["traceEvents"]) == 20_003


def test_no_event_at_all_is_a_valid_file() -> None:
    assert json.loads(timeline([])) == {"displayTimeUnit": "ms", "traceEvents": []}
