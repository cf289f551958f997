"""How the command line shows things: colour on terminals only, NO_COLOR honoured, plain lines in a pipe."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.markup import escape

from penstock.errors import PenstockError


def stderr() -> Console:
    """For progress, logs and errors. rich itself looks at the terminal and at NO_COLOR."""
    return Console(stderr=True, highlight=False, soft_wrap=True)


def stdout() -> Console:
    """For results."""
    return Console(highlight=False, soft_wrap=True)


def show_error(error: PenstockError) -> None:
    """One line, the cause first; the error's own text carries the remedy."""
    text = " ".join(str(error).split())
    stderr().print(f"[bold red]error:[/] {escape(text)}")
    sys.stderr.flush()
