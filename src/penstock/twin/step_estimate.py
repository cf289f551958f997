"""What a step costs, taken apart: by kind of operator, by what the prices rest on, by the model that gave them."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from penstock.twin.operators import Work
from penstock.twin.price import Basis, Estimate


@dataclass(slots=True)
class StepEstimate:
    """One step, taken apart."""

    seconds: float = 0.0
    by_kind: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    """Operator kind to seconds; `host` is what the host adds."""
    by_basis: dict[Basis, float] = field(default_factory=lambda: defaultdict(float))
    by_model: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    work: Work = field(default_factory=Work)
    """Of all operators on one device."""
    joules: float = 0.0
    """Of all devices of the replica; 0 without a power model."""

    def add(self, kind: str, one: Estimate, times: int) -> None:
        """One operator, run so many times."""
        seconds = one.seconds * times
        self.seconds += seconds
        self.by_kind[kind] += seconds
        self.by_basis[one.basis] += seconds
        self.by_model[one.model] += seconds
