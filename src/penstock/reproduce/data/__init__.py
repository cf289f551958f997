"""Published numbers that reproductions compare with, as files that say where each is from."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import yaml


def read_text(name: str) -> str:
    """The file `name` of this folder."""
    return (files(__name__) / name).read_text(encoding="utf-8")


def read_yaml(name: str) -> Any:
    """The YAML file `name` of this folder."""
    return yaml.safe_load(read_text(name))


def read_table(name: str) -> list[list[float]]:
    """The numbers of a CSV file, without its comments and its line of names."""
    lines = [line for line in read_text(name).splitlines() if line and not line.startswith("#")]
    return [[float(cell) for cell in line.split(",")] for line in lines[1:]]
