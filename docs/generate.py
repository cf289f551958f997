"""Writes what follows from the code: tables in the pages, the Grafana dashboard and the alert rules under deploy/.

python docs/generate.py          write
python docs/generate.py --check  exit 1 if a file is out of date
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal, get_args, get_origin

from penstock.cli.elsewhere import reference as elsewhere
from penstock.deployment import keys, why_unread
from penstock.observe.alerts import rules
from penstock.observe.grafana import dashboard
from penstock.observe.reference import reference
from penstock.serve.reference import reference as fields

DOCS = Path(__file__).parent
DEPLOY = DOCS.parent / "deploy"


def table() -> str:
    """One row per key: name, what it takes, default, whether a server or a simulation reads it, meaning."""
    rows = ["| key | takes | default | read by | meaning |", "|---|---|---|---|---|"]
    for name, (kind, default, meaning) in keys().items():
        shown = "none" if default is None else f"`{default}`" if default != () else "none"
        rows.append(f"| `{name}` | {takes(kind)} | {shown} | {readers(name)} | {meaning} |")
    return "\n".join(rows)


def readers(key: str) -> str:
    """Who reads a key; the others refuse it as a flag and in the environment."""
    served, simulated = why_unread("serve", key) is None, why_unread("simulate", key) is None
    return "both" if served and simulated else "server" if served else "simulation"


def takes(kind: object) -> str:
    """What may be written for a type, in words."""
    if get_origin(kind) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(kind))
    inner = [part for part in get_args(kind) if part is not type(None) and part is not Ellipsis]
    if inner and get_origin(kind) is not tuple:
        return takes(inner[0])
    names = {int: "integer", float: "number", str: "text", bool: "true, false"}
    return names.get(kind, "list" if get_origin(kind) is tuple else str(kind))  # type: ignore[call-overload,no-any-return]


def within(page: Path, mark: str, made: str) -> str:
    """The page with `made` between its marks `<!-- mark: begin -->` and `<!-- mark: end -->`."""
    begin, end = f"<!-- {mark}: begin -->", f"<!-- {mark}: end -->"
    before, rest = page.read_text(encoding="utf-8").split(begin)
    return f"{before}{begin}\n{made}\n{end}{rest.split(end)[1]}"


def files() -> dict[Path, str]:
    """Every file that is generated, in whole or in part, as it should be."""
    return {
        DOCS / "deployment.md": within(DOCS / "deployment.md", "keys", table()),
        DOCS / "metrics.md": within(DOCS / "metrics.md", "metrics", reference()),
        DOCS / "api.md": within(DOCS / "api.md", "fields", fields()),
        DOCS / "migration.md": within(DOCS / "migration.md", "elsewhere", elsewhere()),
        DEPLOY / "grafana-dashboard.json": dashboard(),
        DEPLOY / "prometheus-alerts.yaml": rules(),
    }


def main() -> None:
    for path, made in files().items():
        if path.exists() and path.read_text(encoding="utf-8") == made:
            continue
        if "--check" in sys.argv:
            sys.exit(f"{path.name} is out of date: python docs/generate.py")
        path.write_text(made, encoding="utf-8")


if __name__ == "__main__":
    main()
