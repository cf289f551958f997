"""Every key of the deployment file as a flag and as an environment variable, generated from the file's own schema.

    policy.token_budget      --policy.token-budget 25k      PENSTOCK_POLICY__TOKEN_BUDGET=25k

Values are written as in the file; a list is separated by commas. Flag over environment over file over default.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Optional, TypeVar, get_args, get_origin

import typer
import yaml
from rich.markup import escape

from penstock.deployment import Deployment, Section, keys
from penstock.errors import InvalidDeployment

PREFIX: Final = "PENSTOCK_"
SERVED: Final = ("model", "hardware", "memory", "policy", "server")
Command = TypeVar("Command", bound=Callable[..., Any])

FileOption = Annotated[
    Optional[Path],  # noqa: UP045 - typer reads this at run time
    typer.Option("--file", "-f", help="Deployment file (YAML). Every key has a default.", show_default=False),
]
ModelArgument = Annotated[
    Optional[str],  # noqa: UP045
    typer.Argument(metavar="MODEL", help="Checkpoint directory; default: model.path, the model in the box.",
                   show_default=False),
]  # fmt: skip


def environment_name(key: str) -> str:
    """
    >>> environment_name("policy.token_budget")
    'PENSTOCK_POLICY__TOKEN_BUDGET'
    """
    return PREFIX + key.replace(".", "__").upper()


def flag_name(key: str) -> str:
    """
    >>> flag_name("policy.token_budget")
    '--policy.token-budget'
    """
    return "--" + key.replace("_", "-")


def with_deployment_flags(command: Command) -> Command:
    """Add a flag for each key to a command whose last parameter is `**flags`; pass that on to `load`."""
    return _with_flags(command, None)


def with_serving_flags(command: Command) -> Command:
    """The same for the sections that serving reads; the file may hold the others too."""
    return _with_flags(command, SERVED)


def _with_flags(command: Command, sections: tuple[str, ...] | None) -> Command:
    signature = inspect.signature(command, eval_str=True)
    own = [parameter for parameter in signature.parameters.values() if parameter.kind is not parameter.VAR_KEYWORD]
    generated = [_parameter(key, kind, default, text) for key, (kind, default, text) in keys().items()
                 if sections is None or key.partition(".")[0] in sections]  # fmt: skip
    command.__signature__ = signature.replace(parameters=[*own, *generated])  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *generated]}
    return command


def load(file: Path | None, model: str | None = None, flags: Mapping[str, str | None] | None = None) -> Deployment:
    """The deployment of a file, the environment and flags, as `with_deployment_flags` collects them.

    Raises:
        InvalidDeployment: as Deployment.load, and for an environment variable that names no key.
    """
    overrides: dict[str, Any] = _environment()
    if model is not None:
        overrides["model.path"] = model
    given = {key: (flags or {}).get(_identifier(key)) for key in keys()}
    overrides.update({key: _value(key, text) for key, text in given.items() if text is not None})
    return Deployment.load(file, overrides)


def _environment() -> dict[str, Any]:
    names = {environment_name(key): key for key in keys()}
    found: dict[str, Any] = {}
    for name, text in sorted(os.environ.items()):
        if name in names:
            found[names[name]] = _value(names[name], text)
        elif name.startswith(PREFIX) and "__" in name:
            raise InvalidDeployment(
                field=name, value="...", why="this environment variable names no key of the deployment file",
                remedy="unset it, or see `penstock serve --help`; a name is like PENSTOCK_POLICY__MAX_SEQS",
            )  # fmt: skip
    return found


def _value(key: str, text: str) -> object:
    kind = keys()[key][0]
    if get_origin(kind) is tuple:
        part = get_args(kind)[0]
        if isinstance(part, type) and issubclass(part, Section):
            return _inline(key, text)
        return tuple(part.strip() for part in text.split(",") if part.strip())
    return text


def _inline(key: str, text: str) -> object:
    """A list of entries, written as YAML in one line: [{name: a, hash: ...}]."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise InvalidDeployment(
            field=key, value="<hidden>", why="it is not YAML", remedy="a list in one line: [{name: ..., hash: ...}]"
        ) from None


def _identifier(key: str) -> str:
    return key.replace(".", "__")


def _parameter(key: str, kind: Any, default: Any, text: str) -> inspect.Parameter:
    shown = "" if default is None or default == () else f" Default: {_as_yaml(default)}."
    option = typer.Option(
        flag_name(key), help=escape(text + shown), metavar=_metavar(kind), show_default=False,
        envvar=environment_name(key),
        rich_help_panel=f"{key.rpartition('.')[0]} (keys of the deployment file)",
    )  # fmt: skip
    return inspect.Parameter(
        _identifier(key),
        inspect.Parameter.KEYWORD_ONLY,
        default=None,
        annotation=Annotated[Optional[str], option],  # noqa: UP045
    )


def _as_yaml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _metavar(kind: Any) -> str:
    """
    >>> _metavar(int | None), _metavar(bool), _metavar(tuple[str, ...])
    ('INT', 'BOOL', 'LIST')
    """
    if get_origin(kind) is tuple:
        return "LIST"
    first = next((part for part in get_args(kind) if part is not type(None)), kind)
    if isinstance(first, str):
        return "NAME"
    while not isinstance(first, type):
        inner = get_args(first)
        if not inner:
            return "VALUE"
        if isinstance(inner[0], str):
            return "NAME"
        first = inner[0]
    return {"str": "TEXT"}.get(first.__name__, first.__name__.upper())
