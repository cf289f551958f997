"""Flags of every verb from a file or the environment, as the deployment file does for its own keys.

    penstock --options load.yaml bench        with    bench: {url: "http://127.0.0.1:8000", rate: 4, slo-ttft: 500ms}
    PENSTOCK_BENCH_RATE=4 penstock bench --url http://127.0.0.1:8000

A flag on the command line wins over the environment, and that over the file.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer

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
    if options is not None:
        context.default_map = dict(_read(options, context))


def _read(file: Path, context: typer.Context) -> Mapping[str, Mapping[str, Any]]:
    """Verb to parameter to value. Raises BadInput for what names no verb or flag."""
    import yaml

    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
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
