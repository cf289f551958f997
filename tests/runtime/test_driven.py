"""Who wakes next is the minimum, whatever the wakes were before."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from penstock.runtime.driven import IDLE, Alarms, Driven


@given(seed=st.integers(0, 2**31), count=st.integers(1, 40))
def test_the_first_alarm_is_the_earliest_and_of_equals_the_lowest_number(seed: int, count: int) -> None:
    chance = random.Random(seed)
    driven = [Driven(number) for number in range(count)]
    alarms = Alarms(driven)
    assert alarms.first() is driven[0]
    for _ in range(100):
        several = chance.random() < 0.2
        for one in chance.sample(driven, chance.randrange(1, count + 1) if several else 1):
            one.wake = chance.choice((IDLE, float(chance.randrange(9)), chance.random()))
            alarms.changed(one)
        assert alarms.first() is min(driven, key=lambda each: (each.wake, each.number))
