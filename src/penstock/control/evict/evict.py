"""What every way of giving way does."""

from __future__ import annotations

from penstock.control.sequence import Sequence


class Evict:
    """Where the KV of a victim goes."""

    host_blocks: int = 0
    """Size of the host pool."""

    def take_host(self, sequence: Sequence) -> tuple[int, ...] | None:
        """One host block per device block of `sequence`, or None: then it is recomputed."""
        raise NotImplementedError

    def give_back(self, sequence: Sequence) -> None:
        """Its host blocks are free again, for copies of later steps."""
        raise NotImplementedError

    @property
    def free_host_blocks(self) -> int:
        """Host blocks nobody holds."""
        raise NotImplementedError
