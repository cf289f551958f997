"""What holds between sections, one function a rule. Each raises InvalidDeployment with the remedy."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING, Final

from penstock.deployment.access import check_keys
from penstock.errors import InvalidDeployment

if TYPE_CHECKING:
    from penstock.deployment.file import Deployment


def swap_needs_host_memory(deployment: Deployment) -> None:
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


def public_needs_key(deployment: Deployment) -> None:
    server = deployment.server
    if not is_loopback(server.host) and not server.locked and not server.allow_public_without_key:
        raise InvalidDeployment(
            field="server.host", value=server.host, why="that address is reachable from outside and no key is set",
            remedy="server.keys or server.api_keys: [...], or server.allow_public_without_key: true",
        )  # fmt: skip


def keys_agree(deployment: Deployment) -> None:
    check_keys(deployment.server.keys, field="server.keys", order=deployment.policy.order)


def administration_has_a_key(deployment: Deployment) -> None:
    server = deployment.server
    admins = any("admin" in key.scopes for key in server.keys) or server.key_file is not None
    if server.admin_port is not None and server.locked and not admins:
        raise InvalidDeployment(
            field="server.admin_port", value=server.admin_port, why="no key has the scope admin: nobody could use it",
            remedy="a key with scopes: [admin] in server.keys (`penstock key new --scope admin`)",
        )  # fmt: skip


def certificate_and_key_come_together(deployment: Deployment) -> None:
    server = deployment.server
    if (server.tls_certificate is None) != (server.tls_key is None):
        missing, given = ("tls_key", server.tls_certificate) if server.tls_key is None else ("tls_certificate", "...")
        raise InvalidDeployment(
            field=f"server.{missing}", value=None, why=f"the other half of TLS is given ({given})",
            remedy="both server.tls_certificate and server.tls_key, or neither",
        )  # fmt: skip


def budget_holds_a_decode_batch(deployment: Deployment) -> None:
    policy = deployment.policy
    compose = policy.compose or policy.name
    if compose in {"sarathi", "stall_free", "splitfuse"} and policy.token_budget <= policy.max_seqs:
        raise InvalidDeployment(
            field="policy.token_budget", value=policy.token_budget,
            why=f"max_seqs {policy.max_seqs} decodes would not fit into one step, and prompts would starve",
            remedy=f"token_budget of {policy.max_seqs + 1} or more, or a smaller max_seqs",
        )  # fmt: skip


def nothing_without_effect(deployment: Deployment) -> None:
    """A setting somebody wrote down, and that nothing would read, is a mistake of theirs that we should name."""
    policy, memory, server = deployment.policy, deployment.memory, deployment.server
    loopback = is_loopback(server.host)
    model, workload = deployment.model, deployment.workload
    traced = workload.trace is not None
    idle = (
        ("model.max_adapters", model, not model.adapter_room, "model.adapters or model.adapter_directory"),
        ("model.max_rank", model, not model.adapter_room, "model.adapters or model.adapter_directory"),
        ("policy.name", policy, policy.compose is not None, "policy.compose: null"),
        ("policy.ageing_s", policy, policy.order not in {"priority", "shortest"}, "policy.order: priority or shortest"),
        ("memory.watermark", memory, memory.kind == "reserved", "memory.kind: paged or prefix_tree"),
        ("memory.evict_idle", memory, memory.kind != "prefix_tree", "memory.kind: prefix_tree"),
        ("memory.host_tier", memory, policy.evict != "swap", "policy.evict: swap"),
        ("server.allow_public_without_key", server, loopback, "server.host: 0.0.0.0"),
        ("workload.prompt_tokens", workload, traced, "workload.trace: null; a trace has its own lengths"),
        ("workload.output_tokens", workload, traced, "workload.trace: null; a trace has its own lengths"),
    )
    for field, section, unused, user in idle:
        name = field.rpartition(".")[2]
        value = getattr(section, name)
        if unused and name in section.model_fields_set and value != type(section).model_fields[name].default:
            raise InvalidDeployment(
                field=field, value=value, why="nothing reads it in this deployment",
                remedy=f"leave it out, or set {user}",
            )  # fmt: skip


def adapters_have_room(deployment: Deployment) -> None:
    model = deployment.model
    if len(model.adapters) > model.max_adapters:
        raise InvalidDeployment(
            field="model.adapters", value=sorted(model.adapters), why=f"there is room for {model.max_adapters}",
            remedy=f"model.max_adapters: {len(model.adapters)}",
        )  # fmt: skip
    if model.adapter_directory is not None and deployment.server.admin_port is None:
        raise InvalidDeployment(
            field="model.adapter_directory", value=model.adapter_directory, why="nobody could ask for an adapter of it",
            remedy="server.admin_port: the listener that takes such requests",
        )  # fmt: skip
    if model.name is not None and model.name in model.adapters:
        raise InvalidDeployment(
            field="model.adapters", value=model.name, why="it is the model's own name", remedy="another name"
        )


def is_loopback(host: str) -> bool:
    """Whether an address to listen on is reachable from this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


RULES: Final = (
    swap_needs_host_memory, public_needs_key, keys_agree, administration_has_a_key, certificate_and_key_come_together,
    budget_holds_a_decode_batch, adapters_have_room, nothing_without_effect,
)  # fmt: skip
