"""Weights come from the disk into the system's memory while torch is imported: the load need not wait for them."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from threading import Thread
from typing import Final

from penstock.runtime.available import available_bytes

_PIECE_BYTES: Final = 64 << 20


def read_ahead(files: Sequence[Path], most: int | None = None) -> Thread:
    """Read `files` in this order, in the thread that is returned, and keep nothing of them here.

    Files that are in memory cost 15 ms per GB. No more than `most` bytes are read, by default half of the memory that
    is available: beyond that, what was read first would be gone before it is wanted. On systems other than Linux
    nothing is read.
    """
    if most is None:
        most = (available_bytes() or 0) // 2
    wanted = files if sys.platform == "linux" else ()
    thread = Thread(target=_read, args=(wanted, most), name="penstock-read-ahead", daemon=True)
    thread.start()
    return thread


def _read(files: Sequence[Path], left: int) -> None:
    # What cannot be read, the load will say.
    with contextlib.suppress(OSError), Path(os.devnull).open("wb") as nowhere:
        for file in files:
            with contextlib.suppress(OSError), file.open("rb") as stream:
                at = 0
                while left > 0 and (
                    sent := os.sendfile(nowhere.fileno(), stream.fileno(), at, min(left, _PIECE_BYTES))
                ):
                    at, left = at + sent, left - sent
