"""Another price, but over links or a memory tier that its data knows nothing of: what a deployment names itself."""

from __future__ import annotations

from penstock.catalog.device import Tier
from penstock.twin.operators import Collective, Elementwise, Operator
from penstock.twin.price import Estimate, OperatorPrice


class Rewired:
    """Prices collectives by `links`, and swaps no faster than `tier`; all else as `price` does (an OperatorPrice).

    Args:
        links: knows the links that were named: a roofline of the device with them.
        inside: the link inside a node was named; else only collectives that leave a node are priced by `links`.
        between: the network was named.
        tier: where swapped blocks are kept; None: host memory, as fast as the link to it.
        sharers: devices that swap at the same moment and share the tier: those of a replica.
    """

    def __init__(
        self, price: OperatorPrice, links: OperatorPrice, *, inside: bool = False, between: bool = False,
        tier: Tier | None = None, sharers: int = 1,
    ) -> None:  # fmt: skip
        self.name = price.name
        self.uses_spread = bool(getattr(price, "uses_spread", False))
        self.beside_chunk = getattr(price, "beside_chunk", None)
        self._price, self._links = price, links
        self._inside, self._between = inside, between
        self._latency_s = tier.latency_s.value if tier else 0.0
        # What goes out comes back: the mean of writing a byte and reading it.
        one_way = 0.0 if tier is None else (1 / tier.read_bytes_per_s.value + 1 / tier.write_bytes_per_s.value) / 2
        self._s_per_byte = sharers * one_way

    def price(self, operator: Operator) -> Estimate:
        """Seconds of one run of `operator`."""
        if isinstance(operator, Collective):
            named = self._inside or (self._between and operator.nodes > 1)
            return self._links.price(operator) if named else self._price.price(operator)
        estimate = self._price.price(operator)
        if self._s_per_byte and isinstance(operator, Elementwise) and operator.kind == "swap":
            seconds = self._latency_s + self._s_per_byte * operator.read_bytes
            return estimate if seconds <= estimate.seconds else Estimate(seconds, "roofline", "assumed")
        return estimate
