"""Schedules are what they were when they were recorded (record.py says how to record them anew, and when)."""

from __future__ import annotations

import json

import pytest

from tests.goldens.record import FILE, SETUPS, schedule


@pytest.mark.parametrize("name", SETUPS)
def test_the_schedule_is_the_recorded_one(name: str) -> None:
    recorded = json.loads(FILE.read_text(encoding="utf-8"))[name]
    made = schedule(SETUPS[name])
    for number, (now, then) in enumerate(zip(made, recorded, strict=False), start=1):
        assert now == then, f"step {number} differs"
    assert len(made) == len(recorded)
