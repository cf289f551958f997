"""Who reads which key. In the one file all keys may stand, since what is simulated is what is served; a flag or a
variable is given to one command, and one that this command would not read is a mistake of whoever gave it."""

from __future__ import annotations

from typing import Final, Literal

Reader = Literal["serve", "record", "simulate"]
"""Commands that read the file: over HTTP, the engine alone, the twin."""

_MODELLED: Final = (
    "hardware.name", "hardware.node", "hardware.cluster", "hardware.link", "hardware.network", "memory.device_share",
    "memory.host_tier", "layout.", "precision.", "cluster.", "twin.", "workload.", "slo.",
)  # fmt: skip
_SERVED: Final = (
    "model.name", "model.adapters", "model.adapter_directory", "model.max_adapters", "model.max_rank", "model.pooling",
    "model.normalize", "hardware.device", "hardware.threads", "server.",
)  # fmt: skip


def why_unread(reader: Reader, key: str) -> tuple[str, str] | None:
    """Why this command has no use for a dotted key, and the remedy; None: it reads it.

    >>> why_unread("serve", "hardware.name")[0], why_unread("serve", "hardware.device")
    ('only a simulation reads it', None)
    """
    if reader != "simulate" and _among(key, _MODELLED):
        return "only a simulation reads it", "leave it out, or give it to `penstock simulate`; in a file it may stand"
    if reader == "simulate" and _among(key, _SERVED):
        return "only a server reads it", "leave it out, or give it to `penstock serve`; in a file it may stand"
    if reader == "record" and key.startswith("server."):
        return "nothing listens here", "leave it out, or give it to `penstock serve`; in a file it may stand"
    return None


def _among(key: str, names: tuple[str, ...]) -> bool:
    """Whether it is one of them, or of a section among them."""
    return any(key == name or (name.endswith(".") and key.startswith(name)) for name in names)
