"""Every key of the deployment file as a flag and as an environment variable, generated from the file's own schema.

    policy.token_budget      --policy.token-budget 25k      PENSTOCK_POLICY__TOKEN_BUDGET=25k

Values are written as in the file; a list is separated by commas. Flag over environment over file over default. A verb
offers the keys that it reads. Of the others it says why they are no flags of its own; a file may hold them for another.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, Optional, TypeVar, get_args, get_origin

import typer
from rich.markup import escape

from penstock.cli.environment import environment_name
from penstock.deployment import Deployment, Reader, Section, keys, why_unread
from penstock.deployment.yaml_text import NotYaml, read_yaml
from penstock.errors import InvalidDeployment

_SECRET: Final = ("server.api_keys", "server.keys")
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


def flag_name(key: str) -> str:
    """
    >>> flag_name("policy.token_budget")
    '--policy.token-budget'
    """
    return "--" + key.replace("_", "-")


def with_flags_of(reader: Reader) -> Callable[[Command], Command]:
    """Add a flag for each key that the command reads to one whose last parameter is `**flags`; pass that on to `load`.

    Flags of the other keys are there too, hidden, so that `load` can say why they are none.
    """

    def add(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        own = [parameter for parameter in signature.parameters.values() if parameter.kind is not parameter.VAR_KEYWORD]
        generated = [
            _parameter(key, kind, default, text, hidden=why_unread(reader, key) is not None)
            for key, (kind, default, text) in keys().items()
        ]
        command.__signature__ = signature.replace(parameters=[*own, *generated])  # type: ignore[attr-defined]
        command.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *generated]}
        return command

    return add


def load(
    file: Path | None, model: str | None = None, flags: Mapping[str, str | None] | None = None, *, reader: Reader
) -> Deployment:
    """The deployment of a file, the environment and flags, as `with_flags_of` collects them.

    Raises:
        InvalidDeployment: as Deployment.load; or a flag or an environment variable gives a key that `reader` has no use
            for.
    """
    named = {environment_name(key): (key, os.environ.get(environment_name(key))) for key in keys()}
    given = {flag_name(key): (key, (flags or {}).get(_identifier(key))) for key in keys()}
    argument = {} if model is None else {"model.path": model}
    return Deployment.load(file, _values(named, reader), argument | _values(given, reader))


def _values(given: Mapping[str, tuple[str, str | None]], reader: Reader) -> dict[str, Any]:
    """Key to value, of names to keys and texts."""
    found: dict[str, Any] = {}
    for name, (key, text) in given.items():
        if text is None:
            continue
        if (unread := why_unread(reader, key)) is not None:
            raise InvalidDeployment(
                field=name, value="<hidden>" if key in _SECRET else text, why=unread[0], remedy=unread[1]
            )
        if key in _SECRET and not text.strip(" ,"):
            # An unset variable of a script would otherwise open the server to whoever asks.
            raise InvalidDeployment(
                field=name, value=text, why="it holds no key, and without one everybody may come in",
                remedy="a key, or unset it",
            )  # fmt: skip
        found[key] = _value(key, text)
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
        return read_yaml(text)
    except NotYaml as error:
        raise InvalidDeployment(
            field=key,
            value="<hidden>",
            why=f"it is not YAML: {error}",
            remedy="a list in one line: [{name: ..., hash: ...}]",
        ) from None


def _identifier(key: str) -> str:
    return key.replace(".", "__")


def _parameter(key: str, kind: Any, default: Any, text: str, *, hidden: bool) -> inspect.Parameter:
    shown = "" if default is None or default == () else f" Default: {_as_yaml(default)}."
    option = typer.Option(
        flag_name(key), help=escape(text + shown), metavar=_metavar(kind), show_default=False,
        envvar=environment_name(key), hidden=hidden,
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
