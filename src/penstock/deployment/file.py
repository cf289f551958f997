"""Loading the file: YAML, overrides, validation, and the list of its keys."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml
from pydantic import BaseModel, ValidationError

from penstock.deployment.rules import RULES
from penstock.deployment.section import Section
from penstock.deployment.serving import Hardware, Memory, Model, Policy, Server
from penstock.deployment.simulation import Cluster, Layout, Precision, Slo, Twin, Workload
from penstock.deployment.yaml_text import read_yaml
from penstock.errors import InvalidDeployment
from penstock.units import reason

_LENGTHS: Final = ("prompt_tokens", "output_tokens")


class Deployment(Section):
    """The whole file."""

    model: Model = Model()
    hardware: Hardware = Hardware()
    memory: Memory = Memory()
    policy: Policy = Policy()
    server: Server = Server()
    layout: Layout = Layout()
    precision: Precision = Precision()
    cluster: Cluster = Cluster()
    twin: Twin = Twin()
    workload: Workload = Workload()
    slo: Slo = Slo()

    @classmethod
    def load(cls, file: Path | None = None, *overrides: Mapping[str, Any]) -> Deployment:
        """Read a YAML file (or nothing) and lay each of `overrides` ({'policy.token_budget': 256}) on top.

        Raises:
            InvalidDeployment: unreadable file, unknown key, wrong value, or keys that contradict each other.
        """
        data = _read(file) if file else {}
        for over in overrides:
            data = overlaid(data, over)
        return cls.parse(data)

    @classmethod
    def parse(cls, data: Mapping[str, Any]) -> Deployment:
        """Validate plain data. Raises InvalidDeployment."""
        # A section whose keys are all commented out reads as None.
        data = {name: {} if value is None and name in cls.model_fields else value for name, value in data.items()}
        try:
            deployment = cls.model_validate(data)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(str(part) for part in first["loc"])
            value = "<hidden>" if field.startswith(("server.api_keys", "server.keys")) else first.get("input")
            raise InvalidDeployment(
                field=field, value=value, why=reason(first["msg"]), remedy=_remedy(field, first["type"])
            ) from None
        for rule in RULES:
            rule(deployment)
        return deployment

    def to_yaml(self) -> str:
        """The resolved file, defaults written out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def overlaid(data: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """What a file says with what is said over it, by dotted key: `merge`, but for a trace, whose lengths take the place
    of those below it. Lengths that are said beside a trace, or over one, stay and are refused: nothing would read them.

    >>> overlaid({"workload": {"prompt_tokens": 64, "rate": 2}}, {"workload.trace": "azure.csv"})
    {'workload': {'rate': 2, 'trace': 'azure.csv'}}
    """
    below = data.get("workload")
    if over.get("workload.trace") is not None and isinstance(below, Mapping):
        data = {**data, "workload": {key: value for key, value in below.items() if key not in _LENGTHS}}
    return merge(data, over)


def merge(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with dotted keys laid over it; neither is changed.

    >>> merge({"policy": {"order": "arrival"}}, {"policy.max_seqs": 8})
    {'policy': {'order': 'arrival', 'max_seqs': 8}}
    """
    result = {key: dict(value) if isinstance(value, Mapping) else value for key, value in base.items()}
    for dotted, value in overrides.items():
        head, _, rest = dotted.partition(".")
        if rest:
            inner = result.get(head)
            if inner is not None and not isinstance(inner, Mapping):
                raise InvalidDeployment(
                    field=head, value=inner, why="it is a section, not a value", remedy=f"'{head}:' and keys below it"
                )
            result[head] = merge(inner or {}, {rest: value})
        else:
            result[head] = value
    return result


def keys(section: type[BaseModel] = Deployment, prefix: str = "") -> dict[str, tuple[Any, Any, str]]:
    """Every leaf key of the file, dotted, with its type, default and description: flags and docs are made from it."""
    found: dict[str, tuple[Any, Any, str]] = {}
    for name, info in section.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            found.update(keys(kind, f"{prefix}{name}."))
        else:
            found[prefix + name] = (kind, info.default, info.description or "")
    return found


def _read(file: Path) -> dict[str, Any]:
    try:
        data = read_yaml(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:  # text that is not UTF-8 or not YAML is a ValueError
        raise InvalidDeployment(
            field="file", value=str(file), why=str(error).replace("\n", " "), remedy="give a readable YAML file"
        ) from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise InvalidDeployment(
            field="file", value=str(file), why="its top level is not a mapping", remedy="start with 'model:', say"
        )
    return data


def _remedy(field: str, kind: str) -> str:
    if kind == "extra_forbidden":
        section = field.rpartition(".")[0]
        siblings = [key for key in keys() if key.rpartition(".")[0] == section]
        return "known here: " + ", ".join(siblings or sorted({key.split(".")[0] for key in keys()}))
    known = keys().get(field)
    if known is None:
        return "see docs/deployment.md"
    return known[2] if known[1] in (None, ()) else f"{known[2]} Default: {known[1]}"
