"""`penstock key`: make a key for clients, or the hash of one. The server keeps hashes only."""

from __future__ import annotations

import hashlib
import json
import secrets
import sys
from enum import StrEnum
from typing import Annotated, Final, Optional

import typer
import yaml
from pydantic import ValidationError
from rich.console import Console

from penstock.deployment import Key
from penstock.errors import BadInput

PREFIX: Final = "pk-"
RANDOM_BYTES: Final = 32


class Action(StrEnum):
    new = "new"
    hash = "hash"


def key(
    action: Annotated[Action, typer.Argument(help="new: make one; hash: of a key on standard input.")],
    name: Annotated[str, typer.Option(help="For logs and messages; unique among the keys.")] = "client",
    scope: Annotated[
        Optional[list[str]],  # noqa: UP045 - typer reads this at run time
        typer.Option(help="inference, metrics, admin; may be given several times. Default: inference."),
    ] = None,
    tenant: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Whose share it uses; default: the name."),
    ] = None,
    weight: Annotated[float, typer.Option(help="Share relative to other tenants.")] = 1.0,
    as_json: Annotated[bool, typer.Option("--json", help="As one JSON object.")] = False,
) -> None:
    """Make a key for clients, or the hash of one.

    The lines go into server.keys of the deployment file, or into a file of `keys:` named by server.key_file, which a
    running server reads again when it changes. The key itself is shown this once and stored nowhere.
    """
    text = PREFIX + secrets.token_urlsafe(RANDOM_BYTES) if action is Action.new else _read()
    digest = f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"
    if action is Action.hash:
        print(json.dumps({"hash": digest}) if as_json else digest)
        return
    entry = {"name": name, "hash": digest, "scopes": scope or ["inference"], "tenant": tenant, "weight": weight}
    try:
        checked = Key.model_validate(entry)
    except ValidationError as error:
        first = error.errors()[0]
        where = str(first["loc"][0])
        raise BadInput(
            field=f"--{where.removesuffix('s')}", value=entry.get(where), why=first["msg"], remedy="penstock key --help"
        ) from None
    shown = checked.model_dump(mode="json", exclude_defaults=True) | {"scopes": list(checked.scopes)}
    if as_json:
        print(json.dumps({"key": text, "entry": shown}))
        return
    Console(stderr=True, highlight=False).print("The key, shown this once; then the lines for the file:")
    print(text)
    print(yaml.safe_dump([shown], sort_keys=False), end="")


def _read() -> str:
    """From standard input, since arguments are seen by every process of the machine."""
    text = sys.stdin.readline().strip()
    if not text or not text.isascii() or " " in text:
        raise BadInput(field="key", value="", why="standard input holds no key", remedy="echo KEY | penstock key hash")
    return text
