"""A short form of Show 3 (fuzz_server.py): fuzzed requests against the model in the box in its own process."""

from __future__ import annotations

from .conftest import Real
from .fuzz_server import Pool, fuzz


def test_fuzzed_requests_neither_break_the_server_nor_change_what_it_says(real: Real) -> None:
    restarts = real.service.restarts
    tally = fuzz(real.url, Pool(120, 1), 600, 1)
    assert tally.done == 600
    assert not tally.wrong
    statuses = {status for counts in tally.by_path.values() for status in counts}
    assert {200, 400} <= statuses
    assert not [status for status in statuses if status >= 500]
    assert real.service.restarts == restarts
    assert real.service.in_flight == 0
