"""The command line in this process: exit code, stdout and stderr of what it is told."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from penstock.cli import main

from .program import environment

Run = Callable[..., tuple[int, str, str]]
Penstock = Callable[..., "subprocess.CompletedProcess[str]"]


def _exit_code(words: tuple[str | Path, ...]) -> int:
    try:
        main([str(word) for word in words])
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*words: str | Path) -> tuple[int, str, str]:
        code = _exit_code(words)
        seen = capsys.readouterr()
        return code, seen.out, seen.err

    return call


@pytest.fixture
def penstock(capsys: pytest.CaptureFixture[str]) -> Penstock:
    """`program.penstock` where a process of its own is not the point: the same call, the same environment and result,
    without the imports that take a process most of its time."""

    def call(*words: str | Path, expect: int = 0, stdin: str = "", **more: str) -> subprocess.CompletedProcess[str]:
        with pytest.MonkeyPatch.context() as here:
            told = environment(**more)
            for name in os.environ.keys() - told.keys():
                here.delenv(name)
            for name in more:
                here.setenv(name, told[name])
            here.setattr(sys, "stdin", io.StringIO(stdin))
            code = _exit_code(words)
        seen = capsys.readouterr()
        assert code == expect, f"exit code {code}\n{seen.out}\n{seen.err}"
        return subprocess.CompletedProcess(words, code, seen.out, seen.err)

    return call


@pytest.fixture
def port() -> Iterator[int]:
    """Of the loopback, for a server that a test starts. Held meanwhile: no other process is given it, and whoever asks
    before the server is there cannot be connected with itself."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        yield int(held.getsockname()[1])
