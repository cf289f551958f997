"""GREETS: one file per verb, loaded when it is called, so that `penstock --help` answers at once.

Read `flags.py` for how the deployment file's keys become flags, then `serve.py`. Exit codes: 0 done, 1 failure,
2 usage, 130 interrupted. Results go to stdout; progress, logs and errors to stderr.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from inspect import cleandoc
from typing import Any, Final

from penstock.cli.options import group

VERBS: Final[dict[str, str]] = {
    "serve": "Serve a model over HTTP, with the API that OpenAI clients speak.",
    "chat": "Talk to a model in the terminal.",
    "bench": "Measure a server under load.",
    "simulate": "What a deployment would do: its control plane at virtual time, over modelled hardware.",
    "compare": "Two runs side by side, measured or simulated, with the error of the second.",
    "inspect": "Show a model, a device, or how one fits the other.",
    "calibrate": "Measure this machine, for simulate to predict it.",
    "learn": "Learn a price of operators from measured ones, for simulate.",
    "record": "Run a trace through the engine and write down its schedule.",
    "replay": "Run a recorded schedule again in the twin; show the first step that differs.",
    "reproduce": "A paper's numbers beside ours, with tolerance and verdict.",
    "metrics": "What a server exposes: reference, Grafana dashboard, alert rules.",
    "doctor": "What is here, what is missing, and whether the model in the box runs.",
    "key": "Make a key for clients, or the hash of one.",
    "version": "Print versions of Penstock and of what it runs on.",
}
"""Verb to summary. The function `verb` in penstock/cli/<verb>.py is the command."""


def main(arguments: Sequence[str] | None = None) -> None:
    """The program `penstock`. Ends with SystemExit."""
    import typer

    from penstock.errors import PenstockError

    arguments = sys.argv[1:] if arguments is None else list(arguments)
    # Shell completion passes the words typed so far in the environment.
    words = arguments or os.environ.get("COMP_WORDS", "").split()[1:]
    asked = _verb_of(words)
    app = typer.Typer(
        name="penstock",
        help="Serves language models on a control plane that a simulator shares.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"auto_envvar_prefix": "PENSTOCK", "obj": tuple(words)},
    )
    for verb, summary in VERBS.items():
        function = _load(verb) if verb == asked else _unloaded
        app.command(verb, short_help=summary, help=_unwrapped(function) if verb == asked else summary)(function)
    app.callback()(group)
    try:
        if any(word.startswith("-") for word in arguments):
            from penstock.cli.elsewhere import point_out

            point_out(asked, arguments)
        app(arguments, prog_name="penstock")
    except PenstockError as error:
        from penstock.cli.console import show_error

        show_error(error)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as error:  # noqa: BLE001 - our own mistake, said as errors are: the traceback goes to a file
        from penstock.cli.console import show_unexpected

        show_unexpected(error)
        sys.exit(1)


def _verb_of(words: Sequence[str]) -> str | None:
    """The first word that is neither an option nor the value of the one option that stands before verbs."""
    rest = iter(words)
    for word in rest:
        if word == "--options":
            next(rest, None)
        elif not word.startswith("-"):
            return word
    return None


def _load(verb: str) -> Callable[..., Any]:
    function: Callable[..., Any] = getattr(import_module(f"penstock.cli.{verb}"), verb)
    return function


def _unwrapped(function: Callable[..., Any]) -> str:
    """Its docstring with a line for each paragraph, which the terminal then breaks as wide as it is."""
    paragraphs = cleandoc(function.__doc__ or "").split("\n\n")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def _unloaded() -> None:
    """Stands in the list of verbs for one that was not asked for."""
