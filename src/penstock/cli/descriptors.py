"""As many open files as the system lets this process have: a connection takes one, and the usual 1,024 are few."""

from __future__ import annotations

import contextlib
import sys
from typing import Final

ENOUGH: Final = 65_536


def usable() -> int:
    """Open files that a server takes: the hard limit up to ENOUGH, or the soft one where that is higher."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = ENOUGH if hard == resource.RLIM_INFINITY else min(hard, ENOUGH)
    return max(allowed, ENOUGH if soft == resource.RLIM_INFINITY else soft)


def raise_limit() -> None:
    """Raise the soft limit to what is usable; one that is higher already is left."""
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < (wanted := usable()):
        with contextlib.suppress(OSError, ValueError):  # some systems allow less than they say
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
