"""Several tenants at a bounded queue: shares, times that can be kept or not, and places kept for who comes back."""

from __future__ import annotations

import heapq
import random
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import Overloaded
from penstock.runtime.admission import MAX_RETRY_S, MIN_RETRY_S, Admission
from penstock.runtime.facts import TimeBounds
from penstock.runtime.line import MAX_PLACES


def queue(requests: int = 10, tokens: int = 10_000, *, fair: bool = True) -> Admission:
    return Admission(max_requests=requests, max_prompt_tokens=tokens, shared=True, fair=fair)


def fill(books: Admission, tenant: str, now: float = 0.0, weight: float = 1.0) -> int:
    """As many requests of 10 tokens as it is let in with."""
    for number in range(10_000):
        try:
            books.admit(f"{tenant}{number}", 10, now, tenant=tenant, weight=weight)
        except Overloaded:
            return number
    raise AssertionError("without bound")


def test_a_tenant_alone_may_use_most_of_the_queue_and_the_next_still_finds_room() -> None:
    books = queue(100)
    assert fill(books, "flood") == 80
    assert fill(books, "quiet") >= 16
    assert books.requests <= 100


def test_a_weight_is_a_share_of_the_queue_too() -> None:
    books = queue(100)
    assert fill(books, "light", weight=0.25) == 50
    assert fill(books, "heavy", weight=4.0) > 45


def test_a_refusal_names_the_queue_own_use_own_share_and_when_to_come_back_in_words_and_in_numbers() -> None:
    books = queue(10)
    assert fill(books, "flood") == 8
    books.admit("q", 10, 0.0, tenant="quiet")
    with pytest.raises(Overloaded) as refused:
        books.admit("one more", 10, 0.0, tenant="flood", content=7)
    details = refused.value.details
    assert details is not None
    assert details["queue_requests"] == 9
    assert details["own_requests"] == 8
    assert details["own_share_requests"] == 7
    assert details["own_prompt_tokens"] == 80
    assert details["weight"] == 1.0
    assert details["retry_after_ms"] == round(refused.value.retry_after_s * 1e3)
    assert details["place_kept"] is True
    for words in ("9 of 10 requests", "8 requests", "your share is 7"):
        assert words in str(refused.value)


def test_the_wait_is_that_of_the_own_line_and_not_of_the_whole_queue() -> None:
    books = queue(20)
    for number in range(16):
        books.admit(f"f{number}", 10, 0.0, tenant="flood")
    books.admit("q0", 10, 0.0, tenant="quiet")
    for second in range(1, 9):  # the flood's line moves by one a second
        books.started(f"f{second}", float(second))
        if second == 1:
            books.started("q0", 1.0)
    flood = books.wait_s("flood", 10, 8.0)
    assert flood == pytest.approx(9.0, rel=0.15), "8 of its own are before it"
    assert books.wait_s("quiet", 10, 8.0) < flood / 2


def measured(fair: bool = True) -> Admission:
    """A tenant's line of 8 that moves by two a second."""
    books = queue(10, fair=fair)
    for number in range(20):
        if number >= 8:
            books.started(f"f{number - 8}", (number - 7) / 2)
        books.admit(f"f{number}", 10, max(0.0, (number - 7) / 2), tenant="flood")
    return books


def test_a_first_token_or_a_deadline_that_cannot_be_kept_is_refused_at_once_and_one_that_can_is_not() -> None:
    books = measured()
    for name in ("ttft_s", "deadline_s"):
        books.started("f19", 6.0)
        with pytest.raises(Overloaded) as refused:
            books.admit("late", 10, 6.0, tenant="flood", bounds=TimeBounds(**{name: 1.0}))
        details = refused.value.details
        assert details is not None
        assert details["reason"] == name.removesuffix("_s")
        assert 2_500 < int(str(details["predicted_ms"])) < 5_500
        assert refused.value.retry_after_s == pytest.approx(int(str(details["predicted_ms"])) / 1e3 - 1.0, abs=0.01)
        assert "cannot be kept" in str(refused.value)
    books.admit("patient", 10, 6.0, tenant="flood", bounds=TimeBounds(ttft_s=30.0))
    books.admit("other", 10, 6.0, tenant="quiet", bounds=TimeBounds(ttft_s=3.0))


def test_a_token_time_that_the_server_does_not_make_now_is_refused_and_forgotten_when_it_rests() -> None:
    books = queue()
    for tick in range(100):
        books.stepped(0.05, tick * 0.05)
    with pytest.raises(Overloaded, match="a token takes 50 ms now, and at most 20 ms"):
        books.admit("fast", 10, 5.0, bounds=TimeBounds(tpot_s=0.02))
    books.admit("slow", 10, 5.0, bounds=TimeBounds(tpot_s=0.1))
    books.admit("later", 10, 60.0, bounds=TimeBounds(tpot_s=0.02))


def test_an_idle_server_refuses_no_time_that_is_asked_for() -> None:
    books = queue()
    books.admit("first", 10, 0.0, bounds=TimeBounds(ttft_s=1e-3, tpot_s=1e-3, deadline_s=1e-3))
    assert books.requests == 1


def refused(books: Admission, content: int, now: float) -> float:
    with pytest.raises(Overloaded) as told:
        books.admit(f"r{content}", 10, now, tenant="flood", content=content)
    return told.value.retry_after_s


def test_two_that_are_refused_together_are_told_two_times_and_each_finds_its_place() -> None:
    books = measured()
    first, second = refused(books, 1, 6.0), refused(books, 2, 6.0)
    assert first == pytest.approx(0.5, rel=0.2)
    assert second == pytest.approx(1.0, rel=0.2)
    books.started("f12", 6.5)
    with pytest.raises(Overloaded):
        books.admit("newcomer", 10, 6.5, tenant="flood", content=3)  # the place is the first one's
    books.admit("r1", 10, 6.0 + first, tenant="flood", content=1)
    books.started("f13", 7.0)
    books.admit("r2", 10, 6.0 + second, tenant="flood", content=2)


def test_who_comes_too_early_is_told_the_rest_of_the_time_and_loses_nothing() -> None:
    books = measured()
    first = refused(books, 1, 6.0)
    again = refused(books, 1, 6.0 + first / 2)
    assert again == pytest.approx(first / 2)
    books.started("f12", 6.5)
    books.admit("r1", 10, 6.0 + first, tenant="flood", content=1)


def test_places_of_those_who_never_come_are_not_kept_for_long_and_make_the_next_times_shorter() -> None:
    books = measured()
    for content in range(1, 9):
        refused(books, content, 6.0)
    far = refused(books, 99, 6.0)
    assert far > 4.0
    for number in range(12, 20):
        books.started(f"f{number}", 7.0)
    assert fill(books, "flood", 30.0) == 8, "all of them missed it"
    assert refused(books, 100, 30.0) < far


def test_appointments_are_bounded_and_beyond_that_no_place_is_promised() -> None:
    books = Admission(max_requests=1, max_prompt_tokens=10, shared=False)
    books.admit("a", 1, 0.0)
    books.started("a", 0.001)
    books.admit("b", 1, 0.001)
    kept = 0
    for content in range(1, MAX_PLACES + 100):
        with pytest.raises(Overloaded) as told:
            books.admit("x", 1, 0.002, content=content)
        assert told.value.details is not None
        kept += bool(told.value.details["place_kept"])
    assert kept <= MAX_PLACES


def crowd(comes_back: float, seconds: float, rate: float = 20.0, times: float = 3.0) -> tuple[float, float, float]:
    """A flood against a server that starts `rate` requests a second. Returns the share of those who came back that
    were let in within 30 % of the time they were told, the share of turns that found somebody waiting, and the longest
    time told."""
    rng, books, now, events, line = random.Random(1), queue(64), 0.0, [], []
    told: dict[int, tuple[float, float]] = {}
    right, seen, served, turns, longest = 0, 0, 0, 0, 0.0
    heapq.heappush(events, (0.0, 0, "serve"))
    heapq.heappush(events, (0.0, 1, "new"))
    for number in range(2, 10**9):
        now, who, what = heapq.heappop(events)
        if now > seconds:
            return right / max(seen, 1), served / turns, longest
        if what == "serve":
            heapq.heappush(events, (now + rng.expovariate(rate), number, "serve"))
            turns += 1
            if line:
                books.started(line.pop(0), now)
                served += 1
            continue
        if what == "new":
            heapq.heappush(events, (now + rng.expovariate(times * rate), number, "new"))
            who = number
        try:
            books.admit(f"{who}@{now}", 100, now, tenant="flood", content=who)
            line.append(f"{who}@{now}")
            if who in told:
                at, wait_s = told[who]
                seen += 1
                right += abs(now - at - wait_s) <= 0.3 * wait_s + 0.02
        except Overloaded as error:
            longest = max(longest, error.retry_after_s)
            if who in told or rng.random() < comes_back:
                told.setdefault(who, (now, error.retry_after_s))
                heapq.heappush(events, (now + error.retry_after_s + rng.uniform(0, 0.005), who, "back"))
    raise AssertionError("unreachable")


@pytest.mark.parametrize("comes_back", [0.05, 0.25])
def test_the_time_told_is_right_for_nearly_all_who_come_back_while_others_keep_flooding(comes_back: float) -> None:
    share, used, longest = crowd(comes_back, seconds=120.0)
    assert share > 0.95
    assert used > 0.99, "places that are kept leave nobody idle"
    assert longest < MAX_RETRY_S


moves = st.sampled_from(["admit", "start", "go", "back"])
events = st.lists(
    st.tuples(moves, st.integers(0, 19), st.sampled_from("abc"), st.floats(0, 20), st.sampled_from([0.5, 1.0, 3.0])),
    max_size=80,
)


@given(events)
def test_books_balance_for_every_tenant_whatever_happens(script: list[tuple[str, int, str, float, float]]) -> None:
    books, waiting, now, told_s = queue(requests=6, tokens=200), {}, 0.0, 1.0
    for kind, number, tenant, seconds, weight in script:
        now += seconds
        id = f"{tenant}{number}"
        if kind in ("admit", "back") and id not in waiting:
            try:
                books.admit(id, number * 9, now, tenant=tenant, weight=weight, content=number + 1)
                waiting[id] = number * 9
            except Overloaded as error:
                told_s = error.retry_after_s
        elif kind == "start":
            books.started(id, now)
            waiting.pop(id, None)
        elif kind == "go":
            books.gone(id, now)
            waiting.pop(id, None)
        assert MIN_RETRY_S <= told_s <= MAX_RETRY_S
        assert (books.requests, books.prompt_tokens) == (len(waiting), sum(waiting.values()))
        assert books.requests <= 7, "an eighth more, rounded, for who comes at its time"
        for name, told in books.by_tenant().items():
            own = [tokens for id, tokens in waiting.items() if id.startswith(name)]
            assert (told["requests"], told["prompt_tokens"]) == (len(own), sum(own))
        with suppress(Overloaded):
            assert books.wait_s(tenant, 10, now) >= 0.0
