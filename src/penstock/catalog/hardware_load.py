"""From a name to a `Device`, `Link`, `Tier`, `Node` or `Cluster`: YAML in the box, in the user's directory, at a path.

Devices have a file each; links.yaml, tiers.yaml, nodes.yaml and clusters.yaml hold the others, and a user's own add to
those in the box.

A file is checked whole: no unknown key, no figure without basis and source, no source that its own table lacks, no
negative number, nothing measured above its peak.
"""

from __future__ import annotations

import dataclasses
import os
import types
import typing
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import yaml

from penstock.catalog.device import Cluster, Device, Figure, FigureBasis, Link, Node, Source, Tier
from penstock.catalog.shape import DTYPE_BYTES
from penstock.errors import InvalidDeployment

T = TypeVar("T")
_FORM: Final = "a number with its source: {value: 3.35e+12, basis: datasheet, source: sheet}"
_TABLES: Final = ("links", "tiers", "nodes", "clusters")
"""Files in the folder of devices that hold other things."""
_LOADER: Final[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""The safe loader, in C where PyYAML was built with it: 30 files take 0.15 s and not 1 s."""


def devices() -> list[str]:
    """Names of all devices in the box and in the user's directory, sorted."""
    return sorted(_files())


def device(name: str) -> Device:
    """The device called `name`: a catalogue name, one of its aliases, or the path of a YAML file of the same form.

    Upper case, blanks and underscores do not matter in names. A file in the user's directory (PENSTOCK_HARDWARE_DIR,
    else ~/.config/penstock/hardware) wins over one in the box.

    Raises:
        InvalidDeployment: nothing has this name (the nearest names are given), or the file is not well formed.
    """
    if name.endswith((".yaml", ".yml")):
        path = Path(name).expanduser()
        if not path.is_file():
            raise InvalidDeployment(
                field="hardware.name", value=name, why="there is no such file",
                remedy="a path to a device file, or a name from `penstock inspect hardware`",
            )  # fmt: skip
        return load_device(path)
    found, names = _look_up(name)
    if found is not None:
        return found
    raise InvalidDeployment(
        field="hardware.name", value=name, why="no device has this name",
        remedy=f"{_nearest(name, names)}; or a YAML file",
    )  # fmt: skip


Kept = Device | Node | Cluster | Link | Tier
"""All kinds of hardware that have a name."""


def hardware(name: str) -> Kept:
    """Whatever hardware is called `name`: a device (also by a file's path), node, cluster, link or tier.

    Raises InvalidDeployment: as `device`; the nearest names are of all kinds.
    """
    wanted = _plain(name)
    if wanted not in _files():  # An alias of a device may be the name of a node.
        for table in (nodes(), clusters(), links(), tiers()):
            if wanted in table:
                return table[wanted]
    if name.endswith((".yaml", ".yml")):
        return device(name)
    found, names = _look_up(name)
    if found is not None:
        return found
    names += [*nodes(), *clusters(), *links(), *tiers()]
    raise InvalidDeployment(
        field="hardware", value=name, why="no device, node, cluster, link or tier has this name",
        remedy=_nearest(name, names),
    )  # fmt: skip


def _look_up(name: str) -> tuple[Device | None, list[str]]:
    """The device called so, if there is one, else all names that there are."""
    known, wanted = _files(), _plain(name)
    if wanted in known:
        return load_device(known[wanted]), []
    names = dict.fromkeys(known)
    for path in known.values():
        found = load_device(path)
        for alias in map(_plain, (found.name, found.title, *found.aliases)):
            if alias == wanted:
                return found, []
            names[alias] = None
    return None, list(names)


def _nearest(name: str, names: list[str]) -> str:
    wanted = _plain(name)
    near = get_close_matches(wanted, names, n=5, cutoff=0.4) or [each for each in names if each.startswith(wanted[:3])]
    return "one of " + ", ".join(near) if near else "a name from `penstock inspect hardware`"


def load_device(path: Path) -> Device:
    """The device that a file describes. Raises InvalidDeployment: it is not well formed."""
    return _device_at(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=256)
def _device_at(path: Path, _changed_ns: int) -> Device:
    found = _convert(_read(path), Device, path)
    check_device(found, str(path))
    return found


def link(name: str, field: str = "hardware.link") -> Link:
    """An interconnect: nvlink-4, pcie-5-x16, infiniband-ndr. Raises InvalidDeployment: unknown, in `field`."""
    return _named(links(), name, "link", field)


def links() -> dict[str, Link]:
    """All interconnects by name."""
    return _table("links", Link)


def tier(name: str) -> Tier:
    """A storage tier: ddr5-8ch, nvme-gen4. Raises InvalidDeployment: unknown."""
    return _named(tiers(), name, "tier", "memory.host_tier")


def tiers() -> dict[str, Tier]:
    """All storage tiers by name."""
    return _table("tiers", Tier)


def node(name: str) -> Node:
    """A machine: dgx-h100. Raises InvalidDeployment: unknown."""
    return _named(nodes(), name, "node", "hardware.node")


def nodes() -> dict[str, Node]:
    """All machines by name."""
    return _table("nodes", Node)


def cluster(name: str) -> Cluster:
    """A cluster: dgx-h100-superpod-32. Raises InvalidDeployment: unknown."""
    return _named(clusters(), name, "cluster", "hardware.cluster")


def clusters() -> dict[str, Cluster]:
    """All clusters by name."""
    return _table("clusters", Cluster)


def link_sources() -> dict[str, Source]:
    """What the figures of links refer to."""
    return {key: source for path in _table_files("links") for key, source in _parsed(*path)[1].items()}


def render_device(found: Device) -> str:
    """The YAML text of a device, in the form that `device` reads. `penstock calibrate` writes it."""
    return yaml.safe_dump(_bare(found), sort_keys=False, allow_unicode=True, width=120)


def figures(holder: object, prefix: str = "") -> Iterator[tuple[str, Figure]]:
    """Every figure of a device, link, tier, node or cluster with its dotted place, in the order of the fields."""
    if isinstance(holder, Figure):
        yield prefix, holder
    elif isinstance(holder, Mapping):
        for key, value in holder.items():
            yield from figures(value, f"{prefix}.{key}" if prefix else str(key))
    elif dataclasses.is_dataclass(holder):
        for field in dataclasses.fields(holder):
            yield from figures(getattr(holder, field.name), f"{prefix}.{field.name}" if prefix else field.name)


def check_device(found: Device, where: str) -> None:
    """Raises InvalidDeployment: a figure is negative, has no source in the table, or was measured above its peak."""
    _check_figures(found, found.sources, where)
    measured = {"reached_flop_per_s": found.reached_flop_per_s}
    measured |= {f"kernel_paths.{path}": by_dtype for path, by_dtype in found.kernel_paths.items()}
    for place, by_dtype in {"matrix_flop_per_s": found.matrix_flop_per_s, **measured}.items():
        for dtype, figure in by_dtype.items():
            if dtype not in DTYPE_BYTES:
                _refuse(where, f"{place}.{dtype}", dtype, "no such dtype", f"one of {', '.join(DTYPE_BYTES)}")
            peak = found.matrix_flop_per_s.get(dtype)
            if peak is None or figure.value > peak.value:
                why = (
                    "measured, but no peak stands for this dtype" if peak is None else f"above the peak {peak.value:g}"
                )
                _refuse(where, f"{place}.{dtype}", figure.value, why, "a measurement at or below matrix_flop_per_s")
    for name in ("compute_efficiency", "memory_efficiency"):
        share: Figure | None = getattr(found, name)
        if share is not None and not 0.0 < share.value <= 1.0:
            _refuse(where, name, share.value, "not a share", "above 0, at most 1")
    if not found.matrix_flop_per_s:
        _refuse(where, "matrix_flop_per_s", {}, "empty", f"at least one dtype, each {_FORM}")
    if found.idle_watts and found.peak_watts and found.idle_watts.value > found.peak_watts.value:
        _refuse(where, "idle_watts", found.idle_watts.value, f"above peak_watts {found.peak_watts.value:g}", "less")


def _check_figures(holder: object, sources: Mapping[str, Source], where: str) -> None:
    for place, figure in figures(holder):
        if figure.source not in sources:
            known = ", ".join(sources) or "it is empty"
            _refuse(where, f"{place}.source", figure.source, "not in the file's table of sources", f"one of: {known}")
        if figure.value < 0.0 or figure.value != figure.value or figure.value == float("inf"):
            _refuse(where, f"{place}.value", figure.value, "negative or not finite", "a number from 0")
        if figure.value == 0.0 and place.rsplit(".", 1)[-1].endswith(("bytes", "bytes_per_s")):
            _refuse(where, f"{place}.value", figure.value, "zero", "a number above 0")


# -- reading --------------------------------------------------------------------------------------------------------


def _box() -> Path:
    return Path(str(files("penstock.catalog") / "hardware"))


def user_directory() -> Path:
    """Where a user's own device files stand."""
    stated = os.environ.get("PENSTOCK_HARDWARE_DIR")
    return Path(stated).expanduser() if stated else Path("~/.config/penstock/hardware").expanduser()


def _files() -> dict[str, Path]:
    found: dict[str, Path] = {}
    for root in (_box(), user_directory()):
        if root.is_dir():
            found |= {_plain(path.stem): path for path in sorted(root.glob("*.yaml")) if path.stem not in _TABLES}
    return found


def _plain(name: str) -> str:
    return "-".join(name.lower().replace("_", " ").split())


def _read(path: Path) -> dict[str, Any]:
    try:
        document = yaml.load(path.read_text(encoding="utf-8"), Loader=_LOADER)  # noqa: S506  safe, see _LOADER
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        text = " ".join(str(error).split())
        raise InvalidDeployment(
            field=f"hardware ({path.name})", value=str(path), why=f"not YAML: {text}", remedy="a YAML mapping",
        ) from error  # fmt: skip
    if not isinstance(document, dict):
        _refuse(str(path), "", document, "not a mapping", "name:, title:, kind:, ... as in the files in the box")
    return typing.cast(dict[str, Any], document)


def _table_files(table: str) -> list[tuple[Path, int]]:
    """A table in the box and the user's, each with the time it was changed; what stands later wins."""
    paths = (root / f"{table}.yaml" for root in (_box(), user_directory()))
    return [(path, path.stat().st_mtime_ns) for path in paths if path.is_file()]


@lru_cache(maxsize=16)
def _parsed(path: Path, _changed_ns: int) -> tuple[dict[str, Any], dict[str, Source]]:
    document = _read(path)
    return document, _convert(document.pop("sources", {}), dict[str, Source], path)


def _table(table: str, kind: type[T]) -> dict[str, T]:
    found: dict[str, T] = {}
    for path, changed in _table_files(table):
        document, sources = _parsed(path, changed)
        for name, body in document.items():
            if not isinstance(body, dict):
                _refuse(str(path), name, body, "not a mapping", "keys and values, as in the files in the box")
            body = {"name": name, **body}
            if kind is not Link:  # A link is part of a device as a rule, and that has the table.
                body["sources"] = {key: _bare(value) for key, value in sources.items()}
            found[name] = _convert(body, kind, path, name)
            _check_figures(found[name], sources, str(path))
    return found


def _named(found: dict[str, T], name: str, what: str, field: str) -> T:
    if _plain(name) in found:
        return found[_plain(name)]
    near = get_close_matches(_plain(name), found, n=5, cutoff=0.4) or list(found)
    raise InvalidDeployment(
        field=field, value=name, why=f"no {what} has this name", remedy=f"one of {', '.join(near)}",
    )  # fmt: skip


def _convert(document: Any, kind: type[T], path: Path, place: str = "") -> T:
    _check_keys(document, kind, str(path), place)
    try:
        return msgspec.convert(document, kind)
    except msgspec.ValidationError as error:
        why, _, at = str(error).partition(" - at `$")
        at = f"{place}{at.rstrip('`')}".strip(".")
        raise InvalidDeployment(
            field=f"hardware ({path.name}){'.' if at else ''}{at}", value=_value_at(document, at.removeprefix(place)),
            why=why, remedy=f"the form of the files in the box; every figure is {_FORM}",
        ) from error  # fmt: skip


def _check_keys(document: Any, kind: Any, where: str, place: str) -> None:
    """Unknown keys, and figures that are none; msgspec checks the other types."""
    if kind is Figure:
        _check_figure(document, where, place)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        for option in arguments:
            if dataclasses.is_dataclass(option):
                _check_keys(document, option, where, place)
    elif dataclasses.is_dataclass(kind) and isinstance(document, dict):
        hints = typing.get_type_hints(kind)
        for key, value in document.items():
            here = f"{place}.{key}".strip(".")
            if key not in hints:
                near = get_close_matches(str(key), hints, n=1)
                hint = f"{near[0]}, or leave it out" if near else f"one of {', '.join(hints)}"
                _refuse(where, here, value, "unknown key", hint)
            _check_keys(value, hints[key], where, here)
    elif arguments and isinstance(document, dict):
        for key, value in document.items():
            _check_keys(value, arguments[-1], where, f"{place}.{key}".strip("."))


def _check_figure(document: Any, where: str, place: str) -> None:
    if not isinstance(document, dict):
        _refuse(where, place, document, "a bare value", _FORM)
    for key in ("value", "basis", "source"):
        if key not in document:
            _refuse(where, place, document, f"{key} is missing", _FORM)
    value, basis = document["value"], document["basis"]
    if isinstance(value, str):
        _refuse(where, f"{place}.value", value, "text and not a number", "YAML needs point and sign: 3.35e+12")
    if basis not in typing.get_args(FigureBasis):
        allowed = ", ".join(typing.get_args(FigureBasis))
        _refuse(where, f"{place}.basis", basis, "no such basis", f"one of {allowed}")


def _value_at(document: Any, at: str) -> Any:
    for key in filter(None, at.replace("[...]", "").split(".")):
        document = document.get(key) if isinstance(document, dict) else document
    return document


def _refuse(where: str, place: str, value: object, why: str, remedy: str) -> typing.NoReturn:
    name = Path(where).name
    raise InvalidDeployment(field=f"hardware ({name}).{place}".rstrip("."), value=value, why=why, remedy=remedy)


def _bare(value: Any) -> Any:
    """Plain mappings and lists, defaults left out."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        body = {}
        for field in dataclasses.fields(value):
            held = getattr(value, field.name)
            if held is None or (held in ((), "") or held == {}) or held == field.default:
                continue
            body[field.name] = _bare(held)
        return body
    if isinstance(value, Mapping):
        return {key: _bare(held) for key, held in value.items()}
    return list(value) if isinstance(value, tuple) else value
