"""How the command line shows things: colour on terminals only, NO_COLOR honoured, plain lines in a pipe."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import traceback
from pathlib import Path
from typing import IO, Any, Protocol, cast

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from penstock.errors import PenstockError
from penstock.observe.logs import LogFormat


def stderr() -> Console:
    """For progress, logs and errors. rich itself looks at the terminal and at NO_COLOR."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def stdout() -> Console:
    """For results."""
    return Console(highlight=False, soft_wrap=True)


def show_unexpected(error: Exception) -> None:
    """An error nobody foresaw: one line, and its traceback in a file of the user's own."""
    cause = f"{type(error).__name__}: {' '.join(str(error).split())}" if str(error) else type(error).__name__
    directory = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "penstock"
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        file = directory / "last-error.txt"
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as out:
            traceback.print_exception(error, file=out)
        remedy = f"report it with {file} and the output of penstock doctor"
    except OSError:
        traceback.print_exception(error)
        remedy = "report it with the lines above and the output of penstock doctor"
    stderr().print(f"[bold red]error:[/] {escape(cause)}: nobody foresaw this. Remedy: {escape(remedy)}")
    sys.stderr.flush()


class Narrator(Protocol):
    """Tells how the start and the end of a server go."""

    def print(self, *objects: Any) -> None:
        """One line of rich's markup."""


def narrator(log_format: LogFormat) -> Narrator:
    """On stderr: the terminal's lines, or where logs are to be JSON, records like all others.

    What cannot be written is lost, as it is with logs: a full disk, or a reader that has gone, ends no server.
    """
    if log_format == "json":
        return _Records()
    return Console(file=cast("IO[str]", _Lossy(sys.stderr)), highlight=False, soft_wrap=True)


class _Lossy:
    """A stream that may fail to write."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        with contextlib.suppress(OSError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _Records:
    def print(self, *objects: Any) -> None:
        text = Text.from_markup(" ".join(map(str, objects))).plain
        logging.getLogger("penstock").info(" ".join(text.split()))


def show_error(error: PenstockError) -> None:
    """One line, the cause first; the error's own text carries the remedy."""
    text = " ".join(str(error).split())
    stderr().print(f"[bold red]error:[/] {escape(text)}")
    sys.stderr.flush()
