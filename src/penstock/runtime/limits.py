"""Budgets of a simulation, and the error of one that cannot go on: nothing hangs."""

from __future__ import annotations

from dataclasses import dataclass

from penstock.errors import PenstockError


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Budgets, so that nothing hangs. None: no limit."""

    wall_s: float | None = None
    events: int | None = None
    virtual_s: float | None = None


class Stuck(PenstockError):
    """Requests are left and nothing can happen any more: a policy that never runs them."""
