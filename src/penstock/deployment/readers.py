"""Who reads which key. In the one file all keys may stand, since what is simulated is what is served; a flag or a
variable is given to one command, and one that this command would not read is a mistake of whoever gave it."""

from __future__ import annotations

from typing import Final, Literal

Reader = Literal["serve", "chat", "record", "simulate"]
"""Ways to read the file: a server, one that answers this terminal alone, the engine without HTTP, the twin."""

_MODELLED: Final = (
    "hardware.name", "hardware.node", "hardware.cluster", "hardware.link", "hardware.network", "memory.device_share",
    "memory.host_tier", "layout.", "precision.", "cluster.", "twin.", "workload.", "slo.",
)  # fmt: skip
_SERVED: Final = (
    "model.name", "model.adapters", "model.adapter_directory", "model.max_adapters", "model.max_rank", "model.pooling",
    "model.normalize", "hardware.device", "hardware.threads", "server.",
)  # fmt: skip
_OF_CLIENTS: Final = (
    "server.host", "server.port", "server.api_keys", "server.keys", "server.key_file", "server.admin_port",
    "server.tls_certificate", "server.tls_key", "server.allow_public_without_key", "server.cors_origins",
)  # fmt: skip
"""Who reaches a server, and where."""
_FOR_A_SERVER: Final = "leave it out, or give it to `penstock serve`; in a file it may stand"


def why_unread(reader: Reader, key: str) -> tuple[str, str] | None:
    """Why this command has no use for a dotted key, and the remedy; None: it reads it.

    >>> why_unread("serve", "hardware.name")[0], why_unread("serve", "hardware.device")
    ('only a simulation reads it', None)
    """
    if reader != "simulate" and _among(key, _MODELLED):
        return "only a simulation reads it", "leave it out, or give it to `penstock simulate`; in a file it may stand"
    if reader == "simulate" and _among(key, _SERVED):
        return "only a server reads it", _FOR_A_SERVER
    if reader == "chat" and _among(key, _OF_CLIENTS):
        return "its server answers this terminal alone", _FOR_A_SERVER
    if reader == "record" and key.startswith("server."):
        return "nothing listens here", _FOR_A_SERVER
    return None


def _among(key: str, names: tuple[str, ...]) -> bool:
    """Whether it is one of them, or of a section among them."""
    return any(key == name or (name.endswith(".") and key.startswith(name)) for name in names)
