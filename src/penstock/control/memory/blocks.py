"""What every kind of KV memory does, by block number. The bytes are elsewhere."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from penstock.control.sequence import Sequence, Tokens
from penstock.errors import ProtocolError


@dataclass(frozen=True, slots=True)
class Occupancy:
    """Where the blocks are: free + cached + held is all of them."""

    free: int
    cached: int
    """Hold a prefix nobody uses now; given away when needed."""
    held: int


class Memory(Protocol):
    """Owner of all blocks of one replica."""

    block_tokens: int
    total: int
    grows: bool
    """Whether a decoding sequence needs more blocks as it goes."""

    def available(self) -> int:
        """Blocks that could be handed out now."""

    def fits(self, tokens: int) -> bool:
        """Whether a sequence of so many KV tokens fits into an otherwise empty memory."""

    def admit(self, sequence: Sequence, tokens: int, spare: int) -> int | None:
        """Give `sequence` blocks for its first `tokens` tokens, all at once so that a half-computed prompt cannot
        deadlock; leave `spare` blocks for others. Returns how many of those tokens hold KV already; None: no room."""

    def take(self, count: int) -> list[int]:
        """`count` blocks for growth; never more than `available()`."""

    def publish(self, sequence: Sequence, computed: int) -> None:
        """The KV of the first `computed` tokens of its prompt is now valid."""

    def release(self, sequence: Sequence, tokens: Tokens | None = None) -> None:
        """Take back all its blocks. `tokens`: the ids whose KV is valid, if the memory may keep them for others."""

    def occupancy(self) -> Occupancy:
        """Counts, O(1)."""

    def check(self, holders: Collection[Sequence]) -> None:
        """Recount from scratch. Raises ProtocolError on any difference."""


def blocks_for(tokens: int, block_tokens: int) -> int:
    """Blocks that hold `tokens` tokens."""
    return -(-tokens // block_tokens)


def expect(condition: bool, message: str) -> None:
    """For `check`: raises ProtocolError(message) unless `condition`."""
    if not condition:
        raise ProtocolError(message)
