"""What all tests rest on."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# No test is told by the clock of a machine that may be busy. Examples are the same in every run, so that a change is
# judged by what it changes; `make properties` looks for new ones.
settings.register_profile("penstock", deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
settings.register_profile("new-examples", settings.get_profile("penstock"), derandomize=False)
settings.load_profile("penstock")
# Before torch is imported, here or in a process that a test starts: threads that wait for work sleep, as those of our
# own workers do. Else two test processes on two cores spend most of their time on waiting.
os.environ |= {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "10000"}
# Every HTTP client reads the root certificates when it is made, which takes longer than what most tests ask. Here
# everything is loopback, and certificates that a test needs it makes itself: this directory holds none.
os.environ.pop("SSL_CERT_FILE", None)
os.environ["SSL_CERT_DIR"] = str(Path(__file__).parent)


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_reaches_what_tests_start() -> Iterator[None]:
    """Shells let what they start in the background ignore Ctrl-C, and it hands that on to whatever it starts."""
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Models this small gain nothing from a second thread, and lose much when the other core is busy. Anew for each
    test, since an engine that is built sets what its deployment says."""
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _shared_workers() -> Iterator[None]:
    """Services that tests start in this process fork their workers from one process (forks.py)."""
    if sys.platform != "linux":
        yield
        return
    from penstock.runtime import service
    from tests.forks import SharedForks

    forks, usual = SharedForks(), service.launcher_for
    with pytest.MonkeyPatch.context() as here:
        here.setattr(service, "launcher_for", lambda command: forks if command is None else usual(command))
        yield
    forks.end()
