"""Flags of every verb from a file or the environment, as the deployment file does for its own keys.

    penstock --options load.yaml bench        with    bench: {url: "http://127.0.0.1:8000", rate: 4, slo-ttft: 500ms}
    PENSTOCK_BENCH_RATE=4 penstock bench --url http://127.0.0.1:8000

A flag on the command line wins over the environment, and that over the file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

from penstock.cli.environment import unknown_names

if TYPE_CHECKING:
    from penstock.errors import BadInput


def group(
    context: typer.Context,
    options: Annotated[
        Optional[Path],  # noqa: UP045 - typer reads this at run time
        typer.Option("--options", help="YAML file with flags by verb: `bench: {rate: 4}`.", show_default=False),
    ] = None,
) -> None:
    """Serves language models on a control plane that a simulator shares."""
    _look_at_environment(context)
    if options is not None:
        context.default_map = dict(_read(options, context))


def _look_at_environment(context: typer.Context) -> None:
    """Tell of names that look like ours and are not; the context's object is the words of the command line.

    Raises InvalidDeployment: one is nearly ours, and it is not help that is asked for.
    """
    verbs: Mapping[str, Any] = getattr(context.command, "commands", {})
    verb = context.invoked_subcommand
    if verb is None or verb not in verbs or "--help" in context.obj:
        return
    unknown = unknown_names(os.environ, verb, verbs, _names(verb, verbs[verb]))
    if unknown:
        from rich.markup import escape

        from penstock.cli.console import stderr

        told = (name + (f" (the nearest is {nearest})" if nearest else "") for name, nearest in unknown.items())
        stderr().print(f"[yellow]warning:[/] in the environment, and no setting of ours: {escape(', '.join(told))}")


def _names(verb: str, command: Any) -> Iterator[str]:
    """Names of a verb's options in the environment."""
    for parameter in command.params:
        if parameter.param_type_name == "option":
            yield parameter.envvar or f"PENSTOCK_{verb}_{parameter.name}".upper()


def _read(file: Path, context: typer.Context) -> Mapping[str, Mapping[str, Any]]:
    """Verb to parameter to value. Raises BadInput for what names no verb or flag."""
    from penstock.deployment.yaml_text import read_yaml

    try:
        data = read_yaml(file.read_text(encoding="utf-8")) or {}
    except (OSError, ValueError) as error:  # text that is not UTF-8 or not YAML is a ValueError
        raise _wrong("--options", str(file), " ".join(str(error).split()), "a readable YAML file") from None
    if not isinstance(data, dict) or not all(isinstance(flags, dict) for flags in data.values()):
        raise _wrong("--options", str(file), "it does not map verbs to flags", "such as bench: {rate: 4}")
    verbs: Mapping[str, Any] = getattr(context.command, "commands", {})
    made: dict[str, dict[str, Any]] = {}
    for verb, flags in data.items():
        if verb not in verbs:
            raise _wrong(f"--options {verb}", file.name, "there is no such verb", "one of " + ", ".join(verbs))
        if verb != context.invoked_subcommand:
            continue
        known = {name.lstrip("-"): one.name for one in verbs[verb].params for name in one.opts}
        for flag, value in flags.items():
            if flag not in known:
                raise _wrong(
                    f"--options {verb}.{flag}", value, "the verb has no such flag", "one of " + ", ".join(sorted(known))
                )
            made.setdefault(verb, {})[known[flag]] = value if isinstance(value, bool) else str(value)
    return made


def _wrong(field: str, value: object, why: str, remedy: str) -> BadInput:
    from penstock.errors import BadInput

    return BadInput(field=field, value=value, why=why, remedy=remedy)
