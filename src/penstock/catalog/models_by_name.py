"""From a name to a model's shape: a checkpoint directory, a model in the box, or one of the public architectures.

Names are those of Hugging Face, in any case, with or without the organisation; `-Instruct` and the like make no
difference to a shape, and a quantisation suffix only to the type its weights are in.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Final

import yaml

from penstock.catalog.config import shape_from_config
from penstock.catalog.load import models_in_the_box, resolve_model
from penstock.catalog.shape import Dtype, ModelShape
from penstock.errors import InvalidDeployment, UnsupportedModel

_SUFFIXES: Final[tuple[tuple[str, Dtype | None], ...]] = (
    (r"instruct|chat|base|it|pt|hf|thinking|latest|bf16|fp16|dynamic|static|pertensor|tensorwise|bnb|v1|\d{4}", None),
    (r"fp8-block|fp8block", "fp8_block"),
    (r"(?:quantized\.)?w8a8|int8|8bit", "int8"),
    (r"(?:quantized\.)?w4a16|gptq|awq|int4|4bit", "int4"),
    (r"nvfp4|fp4", "nvfp4"),
    (r"mxfp4", "mxfp4"),
    (r"fp8", "fp8"),
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """One entry of catalog/architectures/*.yaml."""

    name: str
    config: Mapping[str, Any]
    parameters: int
    """As published."""
    exact: bool = False
    active: int | None = None
    not_counted: int = 0
    """Parameters of the published count that are not the language model's."""
    repository: str | None = None
    aliases: tuple[str, ...] = ()
    quantised: Mapping[str, Dtype] = field(default_factory=dict)
    source: str = ""
    note: str = ""

    def shape(self) -> ModelShape:
        return replace(shape_from_config(self.config, self.name), source=self.source)


@cache
def architectures() -> Mapping[str, Architecture]:
    """Every public architecture by its name, in the order of the files."""
    found = {}
    folder = files("penstock.catalog") / "architectures"
    for file in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if file.name.endswith(".yaml"):
            for entry in yaml.safe_load(file.read_text(encoding="utf-8"))["models"]:
                architecture = _architecture(entry)
                found[architecture.name] = architecture
    return found


def model_shape(name_or_path: str) -> ModelShape:
    """The shape of a checkpoint directory (or its config.json), a model in the box, or a public architecture.

    Raises:
        InvalidDeployment: nothing has this name; the nearest names are told.
        UnsupportedModel: the directory's config.json is of no kind that is known.

    >>> model_shape("meta-llama/Llama-3.1-8B-Instruct").parameters
    8030261248
    >>> model_shape("nvidia/Qwen3-32B-NVFP4").dtype
    'nvfp4'
    """
    path = Path(name_or_path).expanduser()
    if path.suffix == ".json" and path.is_file():
        path = path.parent
    if path.is_dir() or name_or_path in models_in_the_box():
        return _shape_of(resolve_model(str(path) if path.is_dir() else name_or_path))
    return _public(name_or_path)


@cache
def _public(name: str) -> ModelShape:
    wanted, dtype = name.strip().lower(), None
    index = _index()
    while wanted not in index:
        short = wanted.rpartition("/")[2]
        if short in index:
            wanted = short
            break
        wanted, found = _without_suffix(short)
        if wanted == short:
            raise _unknown(name)
        dtype = dtype or found
    architecture, stated = index[wanted]
    shape = architecture.shape()
    if (narrow := stated or dtype) is None:
        return shape
    # Checkpoints of a block-scaled family that only say fp8 are block-scaled too.
    if narrow == "fp8" and shape.dtype == "fp8_block":
        return shape
    return replace(shape, dtype=narrow, experts_dtype=None)


def _without_suffix(name: str) -> tuple[str, Dtype | None]:
    for pattern, dtype in _SUFFIXES:
        shorter = re.sub(rf"[-_](?:{pattern})$", "", name)
        if shorter != name:
            return shorter, dtype
    return name, None


@cache
def _index() -> Mapping[str, tuple[Architecture, Dtype | None]]:
    """Everything an architecture is called, in lower case, with and without organisation. Its own name wins."""
    index: dict[str, tuple[Architecture, Dtype | None]] = {}
    for architecture in architectures().values():
        names: dict[str, Dtype | None] = dict.fromkeys((architecture.repository or "", *architecture.aliases))
        names |= architecture.quantised
        for full, dtype in names.items():
            for called in (full.lower(), full.lower().rpartition("/")[2]):
                if called:
                    index.setdefault(called, (architecture, dtype))
    return index | {name: (architecture, None) for name, architecture in architectures().items()}


def _unknown(name: str) -> InvalidDeployment:
    short = name.strip().lower().rpartition("/")[2]
    index = _index()
    near = difflib.get_close_matches(short, index, n=6, cutoff=0.6)
    nearest = list(dict.fromkeys(index[key][0].name for key in near))[:3]
    return InvalidDeployment(
        field="model.path", value=name,
        why="there is no such directory, model in the box, or public architecture"
        + (f"; the nearest names are {', '.join(nearest)}" if nearest else ""),
        remedy=f"one of {len(architectures())} names (`penstock inspect model` lists them), or a config.json",
    )  # fmt: skip


def _shape_of(directory: Path) -> ModelShape:
    config = _read(directory / "config.json")
    separate = directory / "hf_quant_config.json"
    if "quantization_config" not in config and separate.is_file():
        # ModelOpt writes its quantisation beside the config.
        config = {
            **config,
            "quantization_config": {"quant_method": "modelopt", **_read(separate).get("quantization", {})},
        }
    return replace(shape_from_config(config, directory.name), source=f"{directory.name}/config.json")


def _read(file: Path) -> dict[str, Any]:
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnsupportedModel(
            field=file.name, value=str(file), why=f"it cannot be read: {error}", remedy="a config.json in JSON"
        ) from error
    if not isinstance(value, dict):
        raise UnsupportedModel(field=file.name, value=str(file), why="it is no JSON object", remedy="a config.json")
    return value


def _architecture(entry: Mapping[str, Any]) -> Architecture:
    published = entry["published"]
    repository = entry.get("repository")
    return Architecture(
        name=entry["name"], config=entry["config"], parameters=published["parameters"],
        exact=published.get("exact", False), active=published.get("active"),
        not_counted=published.get("not_counted", 0), repository=repository, aliases=tuple(entry.get("aliases", ())),
        quantised=entry.get("quantised", {}), note=entry.get("note", ""),
        source=entry.get("source", f"https://huggingface.co/{repository}/blob/main/config.json"),
    )  # fmt: skip
