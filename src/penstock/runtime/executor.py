"""The seam where engine and twin meet control without knowing of each other."""

from __future__ import annotations

from typing import Protocol

from penstock.control.request import Request
from penstock.control.step import Step, StepResult


class Executor(Protocol):
    """Computes steps, or predicts them. Steps arrive in the order of their numbers, one at a time.

    One that has also `begin(step)` is told of steps that are planned before they are run, and may start on them; its
    `busy()` says whether the oldest of them is still being computed (ahead.py).
    """

    def add(self, request: Request) -> None:
        """Make a request known before the first step that names it. Raises InvalidRequest; nothing is kept then."""

    def run(self, step: Step) -> StepResult:
        """Run one step to its end. A sequence that fails is reported in the result and ends no other."""

    def close(self) -> None:
        """Give back memory and threads. Safe to call twice."""
