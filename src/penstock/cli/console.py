"""How the command line shows things: colour on terminals only, NO_COLOR honoured, plain lines in a pipe."""

from __future__ import annotations

import logging
import sys
from typing import Any, Protocol

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


class Narrator(Protocol):
    """Tells how the start and the end of a server go."""

    def print(self, *objects: Any) -> None:
        """One line of rich's markup."""


def narrator(log_format: LogFormat) -> Narrator:
    """On stderr: the terminal's lines, or where logs are to be JSON, records like all others."""
    return _Records() if log_format == "json" else stderr()


class _Records:
    def print(self, *objects: Any) -> None:
        text = Text.from_markup(" ".join(map(str, objects))).plain
        logging.getLogger("penstock").info(" ".join(text.split()))


def show_error(error: PenstockError) -> None:
    """One line, the cause first; the error's own text carries the remedy."""
    text = " ".join(str(error).split())
    stderr().print(f"[bold red]error:[/] {escape(text)}")
    sys.stderr.flush()
