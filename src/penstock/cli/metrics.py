"""`penstock metrics`: what a server exposes, and what to build on it; nothing runs."""

from __future__ import annotations

from typing import Annotated

import typer


def metrics(
    grafana: Annotated[bool, typer.Option("--grafana", help="A dashboard, as JSON that Grafana imports.")] = False,
    alerts: Annotated[bool, typer.Option("--alerts", help="Alert rules, as a rule file for Prometheus.")] = False,
) -> None:
    """Print the reference of all metrics, a Grafana dashboard, or alert rules.

    penstock metrics --grafana > penstock.json
    """
    from penstock.errors import BadInput

    if grafana and alerts:
        raise BadInput(field="--alerts", value=True, why="--grafana asks for another file", remedy="one of them")
    if grafana:
        from penstock.observe.grafana import dashboard

        typer.echo(dashboard(), nl=False)
    elif alerts:
        from penstock.observe.alerts import rules

        typer.echo(rules(), nl=False)
    else:
        from penstock.observe.reference import reference

        typer.echo(reference())
