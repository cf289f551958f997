"""The one file: what is served, on what, under which policy. `serve`, `bench` and the twin read the same YAML.

Every key has a default, so an empty file serves the model in the box. A section checks itself; rules across sections
are named functions below. Every key is also a flag (`--policy.token-budget 256`) and an environment variable
(`PENSTOCK_POLICY__TOKEN_BUDGET=256`); the order of precedence is flag, environment, file, default.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from penstock.errors import InvalidDeployment
from penstock.units import Count, Seconds


class Section(BaseModel):
    """A part of the file: unknown keys are errors, values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class Model(Section):
    """Which weights, and in what precision."""

    path: str = Field("millrace", description="Checkpoint directory in Hugging Face layout, or the model in the box.")
    name: str | None = Field(None, description="Name that clients ask for; default: the directory's name.")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="Precision of weights, activations and KV.")
    max_sequence_tokens: Count | None = Field(
        None, gt=0, description="Longest prompt + output; default: what the model was trained for."
    )


class Hardware(Section):
    """Where it runs."""

    device: Literal["cpu", "cuda"] = Field("cpu", description="Device that computes.")
    threads: int | None = Field(None, gt=0, description="CPU threads of the engine; default: all cores.")


class Memory(Section):
    """How KV blocks are kept."""

    kind: Literal["prefix_tree", "paged", "reserved"] = Field(
        "prefix_tree",
        description="prefix_tree shares equal prefixes; paged shares nothing; reserved gives each request room for the "
        "longest sequence at once (the baseline before paging).",
    )
    block_tokens: Count = Field(16, ge=1, le=1024, description="Tokens in one KV block.")
    kv_bytes: Count = Field(256 * 2**20, gt=0, description="Device memory for KV blocks.")
    host_bytes: Count = Field(0, ge=0, description="Host memory for swapped blocks; needed by evict: swap.")
    watermark: float = Field(
        0.01, ge=0, lt=1, description="Share of blocks kept free when a prompt is admitted, so that decodes can grow."
    )


PolicyName = Literal["sarathi", "splitfuse", "orca", "vllm_prefill_first", "request_level"]
OrderName = Literal["arrival", "priority", "shortest", "fair_share"]
ComposeName = Literal["stall_free", "splitfuse", "mixed_prompts", "prefill_first", "request_level"]
EvictName = Literal["recompute", "swap"]


class Policy(Section):
    """Who is next, how a step is filled, who gives way: order x compose x evict. A name sets compose."""

    name: PolicyName = Field("sarathi", description="A named combination; the keys below override its parts.")
    order: OrderName = Field("arrival", description="Who of the waiting is next.")
    compose: ComposeName | None = Field(None, description="How a step's token budget is filled; default: the name's.")
    evict: EvictName = Field("recompute", description="What happens to a sequence that must give way.")
    token_budget: Count = Field(
        512, gt=0, description="Tokens in one step, decodes included; a prompt that may not be cut can exceed it."
    )
    max_seqs: Count = Field(128, gt=0, le=4096, description="Sequences that hold KV at the same time.")
    ageing_s: Seconds = Field(
        30.0,
        gt=0,
        description="Waiting this long outweighs one priority level, or 1,000 prompt tokens in shortest.",
    )
    plan_ahead: bool = Field(True, description="Plan one step while the one before still runs.")


ApiKey = Annotated[str, StringConstraints(pattern=r"^\S+$")]


class Queue(Section):
    """Bounds of what waits. Beyond them requests are refused with 429."""

    max_requests: Count = Field(1024, gt=0, description="Requests accepted that have no token yet.")
    max_prompt_tokens: Count = Field(1_000_000, gt=0, description="Their prompt tokens together.")


class Server(Section):
    """The HTTP front end."""

    host: str = Field("127.0.0.1", description="Address to listen on; another than loopback needs api_keys.")
    port: int = Field(8000, ge=0, le=65535, description="0 takes a free one.")
    api_keys: tuple[ApiKey, ...] = Field((), description="Keys that clients must send; none: open, loopback only.")
    allow_public_without_key: bool = Field(False, description="Listen on a public address with no key, for everyone.")
    drain_timeout: Seconds = Field(30.0, ge=0, description="Time running requests get after SIGTERM.")
    queue: Queue = Queue()
    max_body_bytes: Count = Field(8 * 10**6, gt=0, description="Largest request body.")
    step_deadline: Seconds = Field(120.0, gt=0, description="A worker whose step takes longer is replaced.")
    record: str | None = Field(
        None, description="Write the schedule to this new file, for `penstock replay`; compressed if it ends in .gz."
    )


class Deployment(Section):
    """The whole file."""

    model: Model = Model()
    hardware: Hardware = Hardware()
    memory: Memory = Memory()
    policy: Policy = Policy()
    server: Server = Server()

    @classmethod
    def load(cls, file: Path | None = None, overrides: Mapping[str, Any] | None = None) -> Deployment:
        """Read a YAML file (or nothing) and lay `overrides` ({'policy.token_budget': 256}) on top.

        Raises:
            InvalidDeployment: unreadable file, unknown key, wrong value, or keys that contradict each other.
        """
        return cls.parse(merge(_read(file) if file else {}, overrides or {}))

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
            value = "<hidden>" if field.startswith("server.api_keys") else first.get("input")
            raise InvalidDeployment(
                field=field, value=value, why=first["msg"], remedy=_remedy(field, first["type"])
            ) from None
        for rule in (_swap_needs_host_memory, _public_needs_key, _budget_holds_a_decode_batch, _nothing_without_effect):
            rule(deployment)
        return deployment

    def to_yaml(self) -> str:
        """The resolved file, defaults written out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


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
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
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
    return f"{known[2]} Default: {known[1]}" if known else "see docs/deployment.md"


def _swap_needs_host_memory(deployment: Deployment) -> None:
    if deployment.policy.evict == "swap" and deployment.memory.kind == "reserved":
        raise InvalidDeployment(
            field="policy.evict", value="swap", why="a reserved slot never grows, so nobody ever has to give way",
            remedy="policy.evict: recompute, or memory.kind: paged or prefix_tree",
        )  # fmt: skip
    if deployment.policy.evict == "swap" and deployment.memory.host_bytes == 0:
        raise InvalidDeployment(
            field="memory.host_bytes", value=0, why="policy.evict is swap, and there is no host memory to swap to",
            remedy="memory.host_bytes: 256MiB, or policy.evict: recompute",
        )  # fmt: skip
    if deployment.policy.evict != "swap" and deployment.memory.host_bytes:
        raise InvalidDeployment(
            field="memory.host_bytes", value=deployment.memory.host_bytes,
            why="nothing uses host memory unless policy.evict is swap", remedy="policy.evict: swap, or leave this out",
        )  # fmt: skip


def _public_needs_key(deployment: Deployment) -> None:
    server = deployment.server
    if not is_loopback(server.host) and not server.api_keys and not server.allow_public_without_key:
        raise InvalidDeployment(
            field="server.host", value=server.host, why="that address is reachable from outside and no key is set",
            remedy="server.api_keys: [...], or server.allow_public_without_key: true",
        )  # fmt: skip


def _budget_holds_a_decode_batch(deployment: Deployment) -> None:
    policy = deployment.policy
    compose = policy.compose or policy.name
    if compose in {"sarathi", "stall_free", "splitfuse"} and policy.token_budget <= policy.max_seqs:
        raise InvalidDeployment(
            field="policy.token_budget", value=policy.token_budget,
            why=f"max_seqs {policy.max_seqs} decodes would not fit into one step, and prompts would starve",
            remedy=f"token_budget of {policy.max_seqs + 1} or more, or a smaller max_seqs",
        )  # fmt: skip


def _nothing_without_effect(deployment: Deployment) -> None:
    """A setting somebody wrote down, and that nothing would read, is a mistake of theirs that we should name."""
    policy, memory, server = deployment.policy, deployment.memory, deployment.server
    loopback = is_loopback(server.host)
    idle = (
        ("policy.name", policy, policy.compose is not None, "policy.compose: null"),
        ("policy.ageing_s", policy, policy.order not in {"priority", "shortest"}, "policy.order: priority or shortest"),
        ("memory.watermark", memory, memory.kind == "reserved", "memory.kind: paged or prefix_tree"),
        ("server.allow_public_without_key", server, loopback, "server.host: 0.0.0.0"),
    )
    for field, section, unused, user in idle:
        name = field.rpartition(".")[2]
        value = getattr(section, name)
        if unused and name in section.model_fields_set and value != type(section).model_fields[name].default:
            raise InvalidDeployment(
                field=field, value=value, why="nothing reads it in this deployment",
                remedy=f"leave it out, or set {user}",
            )  # fmt: skip


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is reachable from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
