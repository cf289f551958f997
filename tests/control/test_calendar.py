"""A calendar is a plain dict of lists by tick, only cheaper."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from penstock.control.calendar import NEVER, Calendar, Dated


@given(seed=st.integers(0, 2**31), ticks=st.sampled_from((1, 3, 50, 10_000)))
def test_a_calendar_is_a_dict_of_lists(seed: int, ticks: int) -> None:
    chance = random.Random(seed)
    calendar, plain = Calendar(), {}  # type: ignore[var-annotated]
    away = [Dated() for _ in range(chance.randrange(1, 30))]
    for _ in range(120):
        if away and chance.random() < 0.6:
            one, tick = away.pop(chance.randrange(len(away))), chance.randrange(ticks)
            calendar.enter(one, tick)
            assert one.due == tick
            plain.setdefault(tick, []).append(one)
        elif plain and chance.random() < 0.5:
            tick = chance.choice(list(plain))
            one = plain[tick].pop(chance.randrange(len(plain[tick])))
            if not plain[tick]:
                del plain[tick]
            calendar.leave(one)
            assert one.due == -1
            away.append(one)
        else:
            first = min(plain, default=NEVER)
            assert calendar.first() == first
            assert calendar.take(first - 1) is None
            taken = calendar.take(first) or []
            assert taken == plain.pop(first, [])
            assert all(one.due == -1 for one in taken)
            away += taken
        assert len(calendar) == sum(map(len, plain.values()))
        assert not calendar.misplaced()


def test_a_member_that_stands_wrong_is_noticed() -> None:
    calendar, members = Calendar(), [Dated() for _ in range(5)]
    for tick, one in enumerate(members):
        calendar.enter(one, tick)
    members[4].due = -5
    assert calendar.misplaced()


def test_a_cleared_calendar_holds_nobody() -> None:
    calendar, one = Calendar(), Dated()
    calendar.enter(one, 4)
    calendar.clear()
    assert (calendar.first(), len(calendar), one.due) == (NEVER, 0, -1)
