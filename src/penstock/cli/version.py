"""`penstock version`: what a bug report asks for, without loading torch."""

from __future__ import annotations

import os
import platform
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed
from typing import Annotated, Final

import typer

_PACKAGES: Final = (
    "penstock", "torch", "numpy", "tokenizers", "safetensors", "fastapi", "uvicorn", "msgspec", "pydantic",
)  # fmt: skip


def version(as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False) -> None:
    """Print versions of Penstock and of what it runs on."""
    facts = {name: _installed(name) for name in _PACKAGES}
    facts |= {"python": platform.python_version(), "system": platform.platform(), "cores": str(os.cpu_count())}
    if as_json:
        import json

        print(json.dumps(facts))
        return
    width = max(map(len, facts))
    for name, value in facts.items():
        print(f"{name:<{width}}  {value}")


def _installed(name: str) -> str:
    try:
        return installed(name)
    except PackageNotFoundError:
        return "not installed"
