"""The bounded queue: what is refused, and when to come back."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import InvalidRequest, Overloaded
from penstock.runtime.admission import MAX_RETRY_S, MIN_RETRY_S, Admission


def queue(requests: int = 4, tokens: int = 100) -> Admission:
    return Admission(max_requests=requests, max_prompt_tokens=tokens)


def test_requests_are_bounded() -> None:
    full = queue(requests=2)
    full.admit("a", 1, now=0.0)
    full.admit("b", 1, now=0.0)
    with pytest.raises(Overloaded, match="2 of 2 requests"):
        full.admit("c", 1, now=0.0)


def test_prompt_tokens_are_bounded() -> None:
    full = queue(tokens=100)
    full.admit("a", 60, now=0.0)
    with pytest.raises(Overloaded, match="60 of 100 prompt tokens"):
        full.admit("b", 41, now=0.0)
    full.admit("c", 40, now=0.0)


def test_an_empty_queue_takes_a_prompt_beyond_the_bound() -> None:
    books = queue(tokens=100)
    books.admit("long", 5_000, now=0.0)
    assert (books.requests, books.prompt_tokens) == (1, 5_000)


def test_a_group_is_taken_whole_or_not_at_all() -> None:
    books = queue(requests=4, tokens=100)
    books.admit("a", 10, now=0.0)
    for group in ({f"r{i}": 1 for i in range(4)}, {"long": 60, "longer": 31}):
        with pytest.raises(Overloaded):
            books.admit_group(group, now=0.0)
        assert (books.requests, books.prompt_tokens) == (1, 10)
    books.admit_group({"b": 40, "c": 40, "d": 10}, now=0.0)
    assert (books.requests, books.prompt_tokens) == (4, 100)


@pytest.mark.parametrize("group", [{f"r{i}": 1 for i in range(5)}, {"a": 60, "b": 41}])
@pytest.mark.parametrize("busy", [False, True])
def test_a_group_that_no_queue_could_take_is_not_told_to_come_back(group: dict[str, int], busy: bool) -> None:
    books = queue(requests=4, tokens=100)
    if busy:
        books.admit("waits", 1, now=0.0)
    with pytest.raises(InvalidRequest, match=r"n = .*4 requests and 100 prompt tokens.*several smaller") as refused:
        books.admit_group(group, now=0.0, field="n")
    assert refused.value.field == "n"
    assert books.requests == busy


def test_a_first_token_makes_room() -> None:
    full = queue(requests=1)
    full.admit("a", 10, now=0.0)
    full.started("a", now=1.0)
    full.admit("b", 10, now=1.0)
    assert (full.requests, full.saturated) == (1, True)


def test_a_cancelled_request_makes_room_and_says_nothing_about_the_rate() -> None:
    full = queue(requests=1)
    full.admit("a", 10, now=0.0)
    before = full.retry_after_s(now=1.0)
    full.gone("a", now=1.0)
    full.admit("b", 10, now=1.0)
    assert full.retry_after_s(now=1.0) == before


def test_retry_after_is_the_queue_over_the_measured_rate() -> None:
    busy = queue(requests=10, tokens=10_000)
    for i in range(5):
        busy.admit(f"r{i}", 100, now=0.0)
    busy.started("r0", now=1.0)  # 100 tokens in one second, 400 left
    assert busy.retry_after_s(now=1.0) == pytest.approx(4.0, rel=0.1)


def test_time_without_a_queue_does_not_lower_the_rate() -> None:
    rested = queue(tokens=10_000)
    rested.admit("a", 100, now=0.0)
    rested.started("a", now=1.0)
    rested.admit("b", 100, now=1_000.0)
    assert rested.retry_after_s(now=1_000.0) == pytest.approx(1.0, rel=0.1)


moves = st.sampled_from(["admit", "start", "go"])
events = st.lists(st.tuples(moves, st.integers(0, 9), st.floats(0, 50)), max_size=60)


@given(events)
def test_books_balance_and_retry_after_stays_in_bounds(script: list[tuple[str, int, float]]) -> None:
    books, waiting, now = queue(requests=4, tokens=100), {}, 0.0
    for kind, number, seconds in script:
        now += seconds
        id = f"r{number}"
        if kind == "admit" and id not in waiting:
            with suppress(Overloaded):
                books.admit(id, number * 9, now)
                waiting[id] = number * 9
        elif kind == "start":
            books.started(id, now)
            waiting.pop(id, None)
        elif kind == "go":
            books.gone(id, now)
            waiting.pop(id, None)
        assert (books.requests, books.prompt_tokens) == (len(waiting), sum(waiting.values()))
        assert books.requests <= 4
        assert MIN_RETRY_S <= books.retry_after_s(now) <= MAX_RETRY_S
