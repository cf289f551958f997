"""A server takes as many open files as the hard limit allows: connections are what runs out first."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytest.importorskip("resource")

CODE = """
import json, resource, sys
from penstock.cli.descriptors import ENOUGH, raise_limit, usable
soft, hard = json.loads(sys.argv[1])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
said = usable()
raise_limit()
raise_limit()
print(json.dumps([said, *resource.getrlimit(resource.RLIMIT_NOFILE)]))
"""


@pytest.mark.parametrize(("soft", "hard", "then"), [(64, 900, 900), (900, 900, 900), (64, 64, 64)])
def test_the_soft_limit_is_raised_to_the_hard_one(soft: int, hard: int, then: int) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CODE, json.dumps([soft, hard])], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout) == [then, then, hard]


def test_no_more_is_taken_than_is_of_use(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    from penstock.cli import descriptors

    limits, taken = {"now": (1024, resource.RLIM_INFINITY)}, []
    monkeypatch.setattr(resource, "getrlimit", lambda which: limits["now"])
    monkeypatch.setattr(resource, "setrlimit", lambda which, wanted: taken.append(wanted))
    descriptors.raise_limit()
    assert taken == [(descriptors.ENOUGH, resource.RLIM_INFINITY)]
    for high in ((descriptors.ENOUGH + 1, 2 * descriptors.ENOUGH), (resource.RLIM_INFINITY, resource.RLIM_INFINITY)):
        limits["now"] = high
        descriptors.raise_limit()
    assert len(taken) == 1, "a limit that is higher is left"
