"""Contention: bytes are conserved, alone is bytes / bandwidth + latency, n take n times as long, shares are fair."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import ProtocolError
from penstock.twin.links import Network, SharedLink

sizes = st.floats(1.0, 1e9)
gaps = st.floats(0.0, 2.0)
PATHS = (("up",), ("down",), ("up", "down"), ("up", "net"), ("net", "down"), ("up", "net", "down"))


def drain(link: SharedLink | Network) -> list[tuple[float, int]]:
    """Runs a link dry by its own announcements."""
    done: list[tuple[float, int]] = []
    while (coming := link.next_completion()) is not None:
        ended = link.advance(coming[0])
        assert ended[0] == coming
        done += ended
    return done


@given(sizes, st.floats(1e3, 1e9), st.floats(0.0, 1.0), st.floats(0.0, 100.0))
def test_alone_is_latency_and_bytes_over_bandwidth(size: float, rate: float, latency: float, now: float) -> None:
    for link in (SharedLink(rate, latency), Network({"a": rate})):
        if isinstance(link, SharedLink):
            transfer = link.start(now, size)
        else:
            transfer = link.start(now, size, ["a"], latency_s=latency)
        assert drain(link) == [(pytest.approx(now + latency + size / rate, rel=1e-9, abs=1e-9), transfer)]


@given(st.integers(1, 30), sizes)
def test_n_at_once_take_n_times_as_long(count: int, size: float) -> None:
    link, network = SharedLink(1e6), Network({"a": 1e6})
    for _ in range(count):
        link.start(0.0, size)
        network.start(0.0, size, ["a"])
    for each in (link, network):
        done = drain(each)
        assert [transfer for _, transfer in done] == list(range(count))
        assert all(time == pytest.approx(count * size / 1e6, rel=1e-9) for time, _ in done)


@given(st.lists(st.tuples(gaps, sizes), min_size=1, max_size=25), st.floats(0.0, 0.5))
def test_one_link_conserves_bytes_and_agrees_with_the_network(
    script: list[tuple[float, float]], latency: float
) -> None:
    link, network, now = SharedLink(1e8, latency), Network({"a": 1e8}), 0.0
    done: list[tuple[float, int]] = []
    also: list[tuple[float, int]] = []
    for gap, size in script:
        now += gap
        done += link.advance(now)
        also += network.advance(now)
        assert link.start(now, size) == network.start(now, size, ["a"], latency_s=latency)
        network.check()
    done += drain(link)
    also += drain(network)
    total = sum(size for _, size in script)
    assert sorted(each for _, each in done) == list(range(len(script)))
    times, others = {each: time for time, each in done}, {each: time for time, each in also}
    for each, time in times.items():
        assert time == pytest.approx(others[each], rel=1e-6, abs=1e-7)
    assert link.statistics().bytes == pytest.approx(total, rel=1e-6)
    assert network.statistics("a").bytes == pytest.approx(total, rel=1e-6)
    assert link.statistics().busy_s >= total / 1e8 * (1 - 1e-6)  # never faster than the link
    assert link.statistics().active == 0
    assert all(a[0] <= b[0] for a, b in pairwise(done))


@given(st.lists(st.tuples(gaps, sizes, st.sampled_from(PATHS), st.floats(0.0, 0.5)), min_size=1, max_size=20))
def test_paths_conserve_bytes_and_are_max_min_fair(script: list[tuple[float, float, tuple[str, ...], float]]) -> None:
    network, now = Network({"up": 1e8, "net": 3e7, "down": 2e8}), 0.0
    started: dict[int, float] = {}
    ended: dict[int, float] = {}
    for gap, size, path, latency in script:
        now += gap
        ended |= {each: time for time, each in network.advance(now)}
        started[network.start(now, size, path, latency_s=latency)] = now
        network.check()
    while (coming := network.next_completion()) is not None:
        ended |= {each: time for time, each in network.advance(coming[0])}
        network.check()
    assert set(ended) == set(started)
    capacity = {"up": 1e8, "net": 3e7, "down": 2e8}
    for each, (_, size, path, latency) in enumerate(script):
        alone = latency + size / min(capacity[name] for name in path)
        assert ended[each] - started[each] >= alone * (1 - 1e-6) - 1e-6
    for name in capacity:
        moved = sum(size for _, size, path, _ in script if name in path)
        assert network.statistics(name).bytes == pytest.approx(moved, rel=1e-6, abs=1e-3)


def test_a_path_moves_at_the_least_of_its_shares_and_leaves_the_rest() -> None:
    """Two over the narrow link get half of it each; a third on the wide one alone gets all that they leave."""
    network = Network({"wide": 10.0, "narrow": 4.0})
    first = network.start(0.0, 100.0, ["wide", "narrow"])
    second = network.start(0.0, 100.0, ["narrow"])
    third = network.start(0.0, 100.0, ["wide"])
    assert [network.rate(each) for each in (first, second, third)] == [2.0, 2.0, 8.0]
    assert network.next_completion() == (12.5, third)
    assert network.cancel(5.0, second) == 90.0
    assert network.rate(first) == 4.0
    assert network.rate(third) == 6.0
    assert network.left(third) == 60.0


def test_a_latency_that_ends_before_the_next_completion_is_counted_in() -> None:
    link = SharedLink(10.0, latency_s=1.0)
    link.start(0.0, 100.0)  # flows from 1
    link.start(5.0, 20.0)  # flows from 6: the first has 50 left, both get 5
    assert link.next_completion() == (10.0, 1)
    assert link.advance(20.0) == [(10.0, 1), (13.0, 0)]
    assert link.next_completion() is None


def test_misuse_is_a_protocol_error() -> None:
    link, network = SharedLink(1.0), Network({"a": 1.0})
    link.start(2.0, 1.0)
    network.start(2.0, 1.0, ["a"])
    for wrong in (
        lambda: link.start(1.0, 1.0), lambda: link.start(3.0, -1.0), lambda: link.advance(0.0),
        lambda: network.start(3.0, 1.0, []), lambda: network.start(3.0, 1.0, ["b"]),
        lambda: network.start(3.0, 1.0, ["a"], latency_s=-1.0), lambda: network.advance(0.0),
        lambda: SharedLink(0.0), lambda: Network({"a": float("inf")}),
    ):  # fmt: skip
        with pytest.raises(ProtocolError):
            wrong()


def test_empty_transfers_end_after_their_latency() -> None:
    network = Network({"a": 1.0})
    network.start(1.0, 0.0, ["a"], latency_s=0.5)
    assert network.next_completion() == (1.5, 0)
    assert network.advance(2.0) == [(1.5, 0)]
    link = SharedLink(1.0)
    link.start(1.0, 0.0)
    assert link.advance(1.0) == [(1.0, 0)]
