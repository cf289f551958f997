"""On a real terminal: colour where it is wanted, none with NO_COLOR, and a bar while large weights are read."""

from __future__ import annotations

import io
import os
import pty
import re
import subprocess
import sys
from typing import Any

import pytest
from rich.console import Console

from penstock.cli.loading import LINE_EVERY_S, Loading

from .program import environment

COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:[349][0-7]|10[0-7]|[34]8;[25];[\d;]+)(?:;\d+)*m")
"""An escape sequence that sets a colour; bold and dim are none."""
WRONG = ("serve", "/nowhere", "--dry-run", "--server.port", "x")


def on_a_terminal(*arguments: str, expect: int, **more: str) -> str:
    """What the program writes to a pseudo-terminal that is its stdin, stdout and stderr."""
    ours, theirs = pty.openpty()
    told = environment(TERM="xterm-256color", **more)
    if "NO_COLOR" not in more:
        told.pop("NO_COLOR", None)
    process = subprocess.Popen(
        [sys.executable, "-m", "penstock", *arguments], env=told, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    pieces = []
    try:
        while piece := os.read(ours, 65536):
            pieces.append(piece)
    except OSError:  # Linux: the other end is closed
        pass
    finally:
        os.close(ours)
        code = process.wait(timeout=60)
    text = b"".join(pieces).decode()
    assert code == expect, text
    return text


@pytest.mark.parametrize(("arguments", "expect"), [(WRONG, 2), (("bench", "--help"), 0)])
def test_a_terminal_gets_colour_and_with_no_color_it_gets_none(arguments: tuple[str, ...], expect: int) -> None:
    coloured = on_a_terminal(*arguments, expect=expect)
    plain = on_a_terminal(*arguments, expect=expect, NO_COLOR="1")
    assert COLOUR.search(coloured)
    assert not COLOUR.search(plain)

    def words(text: str) -> list[str]:
        return re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", text).split()

    assert words(plain) == words(coloured)


class Lines:
    """A log that is no terminal."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def print(self, *objects: Any) -> None:
        self.lines.extend(map(str, objects))


def test_in_a_pipe_reading_is_told_in_a_line_now_and_then_and_not_at_all_if_it_is_quick() -> None:
    log, times = Lines(), iter([1.0, 2.0, 5.9, 1.0 + LINE_EVERY_S, 7.0, 8.0, 20.0, 21.0])
    loading = Loading(log, lambda: next(times))
    for _ in range(3):
        loading.read(2**20, 2**30)
    assert log.lines == []
    for _ in range(3):
        loading.read(2**29, 2**30)
    assert len(log.lines) == 1
    assert "512.0 MiB of 1.0 GiB" in log.lines[0]
    loading.over()
    for _ in range(2):  # another reading: it has to take long by itself
        loading.read(2**20, 2**30)
    assert len(log.lines) == 1


def test_on_a_terminal_reading_is_a_bar_that_goes_when_it_is_over() -> None:
    screen = io.StringIO()
    loading = Loading(Console(file=screen, force_terminal=True, width=100, legacy_windows=False))
    loading.read(2**29, 2**30)
    loading.read(2**29 + 2**28, 2**30)
    loading.over()
    assert "load weights" in screen.getvalue()
    assert "GiB" in screen.getvalue()
    after = screen.tell()
    loading.over()
    assert screen.tell() == after
