"""Penstock serves language models on a control plane that its simulator shares.

Four files first: `deployment/file.py` (the one file that says what is served), `control/replica.py` (every decision),
`runtime/service.py` (a model behind an asynchronous interface), `runtime/simulate.py` (the same at virtual time).
`docs/architecture.md` follows one request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from penstock import compiled

if TYPE_CHECKING:
    from penstock.control.request import Request, Sampling
    from penstock.deployment import Deployment
    from penstock.runtime.service import Service
    from penstock.runtime.simulate import simulate

compiled.install()

__all__ = ["Deployment", "Request", "Sampling", "Service", "simulate"]

_HOMES = {
    "Deployment": "penstock.deployment",
    "Request": "penstock.control.request",
    "Sampling": "penstock.control.request",
    "Service": "penstock.runtime.service",
    "simulate": "penstock.runtime.simulate",
}


def __getattr__(name: str) -> Any:
    """Public names are loaded on use: `penstock --help` must not wait for them."""
    if name in _HOMES:
        from importlib import import_module

        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'penstock' has no attribute {name!r}")
