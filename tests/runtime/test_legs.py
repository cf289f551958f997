"""A request in two legs leaves nothing behind, however it ends."""

from __future__ import annotations

import pytest

from penstock.control.news import Failed, Finished
from penstock.control.request import Request
from penstock.runtime.legs import Legs


@pytest.mark.parametrize("end", ["failed", "cancelled", "stopped", "forgotten"])
def test_a_request_that_ends_on_the_near_side_is_forgotten(end: str) -> None:
    legs = Legs(beyond=10)
    first = legs.begin(Request(id="x", prompt=(1,) * 5, max_tokens=50))
    assert first.max_tokens == 6
    if end == "failed":
        assert legs.outward(Failed("x", "why")) == Failed("x", "why")
    elif end == "forgotten":
        legs.forget("x")
    else:
        assert legs.rest(Finished("x", "cancelled" if end == "cancelled" else "stop"), ()) is None
    assert legs.rest(Finished("x", "length"), (1,) * 6) is None


def test_the_second_leg_holds_what_the_first_has_made() -> None:
    legs = Legs(beyond=10)
    legs.begin(Request(id="x", prompt=(1,) * 5, max_tokens=50))
    rest = legs.rest(Finished("x", "length"), range(6))
    assert rest is not None
    assert (rest.output, rest.max_tokens, rest.id != "x") == (tuple(range(6)), 50, True)
