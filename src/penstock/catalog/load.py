"""From a name to a checkpoint directory: the models in the box by name, all others by path."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Final

from penstock.errors import InvalidDeployment

_CONFIG: Final = "config.json"


def models_in_the_box() -> dict[str, Path]:
    """Name to directory of every checkpoint that is installed with Penstock."""
    root = Path(str(files("penstock.catalog") / "models"))
    if not root.is_dir():
        return {}
    return {entry.name: entry for entry in sorted(root.iterdir()) if (entry / _CONFIG).is_file()}


def resolve_model(name: str) -> Path:
    """The directory of the checkpoint `name`: a path, or the name of a model in the box. A path wins.

    Raises:
        InvalidDeployment: there is no such directory or name, or the directory holds no config.json.
    """
    path = Path(name).expanduser()
    if (path / _CONFIG).is_file():
        return path.resolve()
    box = models_in_the_box()
    if name in box:
        return box[name]
    if path.is_dir():
        raise InvalidDeployment(
            field="model.path", value=name, why=f"the directory holds no {_CONFIG}",
            remedy="a checkpoint directory in Hugging Face layout: config.json, *.safetensors, tokenizer.json",
        )  # fmt: skip
    known = ", ".join(box) or "none installed"
    raise InvalidDeployment(
        field="model.path", value=name, why="there is no such directory, and no model in the box has this name",
        remedy=f"a path to a checkpoint directory, or a model in the box ({known}); nothing is downloaded",
    )  # fmt: skip
