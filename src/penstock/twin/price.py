"""What a price is: it turns one operator into seconds, and says what that rests on (Contract 6).

Four prices of the same graph: `roofline` (limits of the hardware), `measured` (operator databases), `calibrated`
(this machine) and `learned` (regression over profiles). A price knows no model, layout or step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

from penstock.twin.operators import Operator

Basis = Literal["measured", "extrapolated", "assumed"]
"""measured: interpolated between measured points. extrapolated: outside them, or from another shape, type or device.
assumed: from datasheets and laws."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """Seconds of one operator on one device, with what they rest on."""

    seconds: float
    model: str
    """The price that gave it: roofline, measured, calibrated, learned."""
    basis: Basis
    joules: float = 0.0
    """0: the price says nothing of energy; twin/energy.py does then."""


class OperatorPrice(Protocol):
    """Prices operators one by one. Must be a pure function: estimates are cached."""

    name: str

    def price(self, operator: Operator) -> Estimate:
        """Seconds of one run of `operator`. Never raises for an operator it has no data for: it falls back, and the
        estimate's `model` and `basis` say so."""
