"""Writes the parts of docs/ that follow from the code: the table of keys in deployment.md.

python docs/generate.py          write
python docs/generate.py --check  exit 1 if a page is out of date
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Literal, get_args, get_origin

from penstock.deployment import keys

PAGE = Path(__file__).with_name("deployment.md")
BEGIN, END = "<!-- keys: begin -->", "<!-- keys: end -->"


def table() -> str:
    """One row per key: name, what it takes, default, meaning."""
    rows = ["| key | takes | default | meaning |", "|---|---|---|---|"]
    for name, (kind, default, meaning) in keys().items():
        shown = "none" if default is None else f"`{default}`" if default != () else "none"
        rows.append(f"| `{name}` | {takes(kind)} | {shown} | {meaning} |")
    return "\n".join(rows)


def takes(kind: object) -> str:
    """What may be written for a type, in words."""
    if get_origin(kind) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(kind))
    inner = [part for part in get_args(kind) if part is not type(None) and part is not Ellipsis]
    if inner and get_origin(kind) is not tuple:
        return takes(inner[0])
    names = {int: "integer", float: "number", str: "text", bool: "true, false"}
    return names.get(kind, "list" if get_origin(kind) is tuple else str(kind))  # type: ignore[call-overload,no-any-return]


def main() -> None:
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    after = rest.split(END)[1]
    made = f"{before}{BEGIN}\n{table()}\n{END}{after}"
    if "--check" in sys.argv:
        sys.exit(0 if made == text else f"{PAGE.name} is out of date: python docs/generate.py")
    PAGE.write_text(made, encoding="utf-8")


if __name__ == "__main__":
    main()
