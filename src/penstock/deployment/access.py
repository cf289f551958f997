"""Who may use a server: one entry per key, with the key's hash and never the key, and what its holder is entitled to.

Entries stand in the deployment file (`server.keys`) or in a file of their own (`server.key_file`), which a running
server reads again when it changes: what is taken out there is revoked at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field, StringConstraints, ValidationError

from penstock.deployment.section import Section
from penstock.deployment.yaml_text import NotYaml, read_yaml
from penstock.errors import InvalidDeployment
from penstock.units import Count

Scope = Literal["inference", "admin", "metrics"]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]
ModelName = Annotated[str, StringConstraints(min_length=1, max_length=256)]
KeyHash = Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]

_OF_A_TENANT: Final = (
    "weight", "sharing_group", "max_concurrent", "requests_per_minute", "tokens_per_minute", "kv_share",
)  # fmt: skip
"""What keys of one tenant must agree on: these are counted for the tenant, all its keys together."""


class Key(Section):
    """One key. Keys are random and long (`penstock key new`), so a plain SHA-256 of one cannot be turned back."""

    name: Name = Field(description="For logs and messages; unique.")
    hash: KeyHash = Field(description="sha256: and 64 hex digits, as `penstock key hash` prints them.")
    scopes: tuple[Scope, ...] = Field(("inference",), min_length=1, description="What it opens.")
    tenant: Name | None = Field(None, description="Whose share, limits and cached prefixes it uses; default: its name.")
    weight: float = Field(1.0, gt=0, le=1e6, description="Share of the tenant relative to others, under fair_share.")
    sharing_group: Name | None = Field(None, description="Tenants that name the same group share cached prefixes.")
    max_concurrent: Count | None = Field(None, gt=0, description="Requests of the tenant at the same time.")
    requests_per_minute: Count | None = Field(None, gt=0, description="Requests that the tenant may begin.")
    tokens_per_minute: Count | None = Field(None, gt=0, description="Prompt and output tokens together.")
    models: tuple[ModelName, ...] | None = Field(
        None, min_length=1, description="Of GET /v1/models, those that the key may use and see; default: all."
    )
    kv_share: float | None = Field(
        None, gt=0, le=1, description="Share of the KV memory that the tenant's requests in flight may come to hold."
    )

    @property
    def owner(self) -> str:
        """The tenant's name."""
        return self.tenant or self.name


class KeyFile(Section):
    """A file of keys."""

    keys: tuple[Key, ...] = ()


def check_keys(keys: Sequence[Key], *, field: str, order: str) -> None:
    """What holds between entries, and between them and the policy's order. Raises InvalidDeployment."""
    for what in ("name", "hash"):
        seen: set[str] = set()
        for key in keys:
            value = getattr(key, what)
            if value in seen:
                raise InvalidDeployment(
                    field=field, value=key.name, why=f"two entries have this {what}", remedy=f"one entry per {what}"
                )
            seen.add(value)
    first: dict[str, Key] = {}
    for key in keys:
        other = first.setdefault(key.owner, key)
        for what in _OF_A_TENANT:
            if getattr(key, what) != getattr(other, what):
                raise InvalidDeployment(
                    field=f"{field}.{what}", value=getattr(key, what), remedy=f"the same {what} in both",
                    why=f"{other.name} and {key.name} are keys of one tenant, {key.owner}, and differ",
                )  # fmt: skip
        if key.weight != 1.0 and order != "fair_share":
            raise InvalidDeployment(
                field=f"{field}.weight", value=key.weight, why=f"policy.order {order} knows no shares",
                remedy="policy.order: fair_share, or leave it out",
            )  # fmt: skip


def read_key_file(file: str, *, order: str) -> tuple[Key, ...]:
    """The entries of a key file. Raises InvalidDeployment, which shows no value of the file."""
    field = "server.key_file"
    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidDeployment(
            field=field, value=file, why=f"it cannot be read: {error}", remedy="a readable YAML file"
        ) from None
    try:
        data = read_yaml(text)
    except NotYaml as error:
        raise InvalidDeployment(
            field=field, value=file, why=f"it is not YAML: {error}", remedy="`keys:` and a list"
        ) from None
    try:
        keys = KeyFile.model_validate({} if data is None else data).keys
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidDeployment(
            field=field, value=file, why=f"{where}: {first['msg']}", remedy="entries as `penstock key new` prints them"
        ) from None
    check_keys(keys, field=field, order=order)
    return keys
