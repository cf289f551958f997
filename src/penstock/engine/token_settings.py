"""What the files beside tokenizer.json say: begin and end tokens, chat templates, sampling defaults."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

from penstock.errors import InvalidDeployment

_SAMPLING: Final = {
    "temperature": (0.0, math.inf), "top_k": (-1, math.inf), "top_p": (math.ulp(0.0), 1.0), "min_p": (0.0, 1.0),
    "repetition_penalty": (0.01, math.inf),
}  # fmt: skip
"""What is taken from generation_config.json, and from where to where it may be."""


@dataclass(frozen=True, slots=True)
class TokenSettings:
    """Immutable; everything that a checkpoint does not say is empty."""

    bos_token: str | None = None
    eos_token: str | None = None
    eos_ids: tuple[int, ...] = ()
    """From generation_config.json, or config.json if that names none."""
    frames_text: tuple[bool, bool] | None = None
    """Whether bos_token and eos_token go around a text, where add_bos_token or add_eos_token says so."""
    named_tokens: dict[str, str] = field(default_factory=dict)
    """bos_token, eos_token, pad_token, ...: what chat templates may use by name."""
    templates: dict[str, str] = field(default_factory=dict)
    """Chat templates by name; the usual one is 'default'."""
    sampling_defaults: dict[str, float] = field(default_factory=dict)

    @property
    def template_text(self) -> str:
        """All chat templates in one string."""
        return "\n".join(self.templates.values())

    @classmethod
    def load(cls, directory: Path | str) -> Self:
        """Read them. Raises InvalidDeployment, naming the file, for one that is not a JSON object."""
        path = Path(directory)
        config = _optional(path / "tokenizer_config.json")
        names = _token_names(_optional(path / "special_tokens_map.json")) | _token_names(config)
        generation = _optional(path / "generation_config.json")
        eos = generation.get("eos_token_id")
        if eos is None:
            eos = _optional(path / "config.json").get("eos_token_id")
        return cls(
            bos_token=names.get("bos_token"),
            eos_token=names.get("eos_token"),
            eos_ids=tuple(eos) if isinstance(eos, list) else () if eos is None else (eos,),
            frames_text=(bool(config.get("add_bos_token")), bool(config.get("add_eos_token")))
            if config.keys() & {"add_bos_token", "add_eos_token"}
            else None,
            named_tokens=names,
            templates=_templates(path, config),
            sampling_defaults=_sampling(generation),
        )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises InvalidDeployment."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InvalidDeployment(
            field="model.path", value=str(path), why=f"it cannot be read: {error}", remedy="download the file again"
        ) from error
    if not isinstance(content, dict):
        raise InvalidDeployment(
            field="model.path", value=str(path), why="it holds no JSON object", remedy="download the file again"
        )
    return content


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _sampling(generation: dict[str, Any]) -> dict[str, float]:
    """Raises InvalidDeployment: requests that say nothing of it would be refused for what they never said."""
    found = {}
    for name, (least, most) in _SAMPLING.items():
        value = generation.get(name)
        if not isinstance(value, int | float) or isinstance(value, bool):
            continue
        if not (least <= value <= most and math.isfinite(value)):
            raise InvalidDeployment(
                field="generation_config.json", value=f"{name}: {value}", why="that is out of its range",
                remedy="correct or delete that line",
            )  # fmt: skip
        found[name] = value
    return found


def _token_names(config: dict[str, Any]) -> dict[str, str]:
    """Every ..._token of a configuration, written as a string or as an object with `content`."""
    names = {}
    for name, value in config.items():
        if name.endswith("_token"):
            spelling = value.get("content") if isinstance(value, dict) else value
            if isinstance(spelling, str):
                names[name] = spelling
    return names


def _templates(path: Path, config: dict[str, Any]) -> dict[str, str]:
    """The later source wins: tokenizer_config.json, chat_template.json, chat_template.jinja, more templates by name."""
    templates: dict[str, str] = {}
    for source in (config.get("chat_template"), _optional(path / "chat_template.json").get("chat_template")):
        if isinstance(source, str):
            templates["default"] = source
        elif isinstance(source, list):
            templates |= {entry["name"]: entry["template"] for entry in source}
        elif isinstance(source, dict):
            templates |= source
    if (file := path / "chat_template.jinja").is_file():
        templates["default"] = file.read_text("utf-8")
    for file in sorted((path / "additional_chat_templates").glob("*.jinja")):
        templates[file.stem] = file.read_text("utf-8")
    return templates
