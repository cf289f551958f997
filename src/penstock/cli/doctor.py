"""`penstock doctor`: what is here, what is missing, and whether a token comes out. What a bug report asks for."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Final

import typer
from rich.markup import escape

from penstock.cli.console import stdout
from penstock.cli.flags import FileOption, ModelArgument, load

_STYLES: Final = {"ok": "green", "missing": "bold red", "warning": "yellow", "absent": "dim"}


def doctor(
    model: ModelArgument = None,
    file: FileOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
) -> None:
    """Look at this machine and installation, and run one token of the model.

    Exit code 1 if something needed is missing; what is merely slower or optional is shown with its remedy. Nothing
    leaves the machine, and no key is shown.
    """
    from penstock.cli.doctor_checks import findings

    deployment = load(file, model, reader="serve")
    found = []
    console = stdout()
    subject = ""
    for one in findings(deployment):
        found.append(one)
        if as_json:
            continue
        if one.subject != subject:
            subject = one.subject
            console.print(f"\n[bold]{subject}[/]")
        console.print(f"  [{_STYLES[one.status]}]{one.status:<8}[/] {escape(one.name):<22} {escape(one.value)}")
        if one.remedy:
            console.print(f"           [dim]remedy:[/] {escape(one.remedy)}")
    missing = [one.name for one in found if one.status == "missing"]
    if as_json:
        typer.echo(json.dumps({"ok": not missing, "findings": [asdict(one) for one in found]}, ensure_ascii=False))
    elif missing:
        console.print(f"\n[bold red]missing:[/] {escape(', '.join(missing))}")
    else:
        console.print("\nnothing needed is missing")
    raise typer.Exit(1 if missing else 0)
