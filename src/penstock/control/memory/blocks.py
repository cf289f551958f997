"""What every kind of KV memory does, by block number. The bytes are elsewhere."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, Final, cast

from penstock.control.record import Record
from penstock.control.sequence import Sequence, Tokens
from penstock.errors import ProtocolError


class Occupancy(Record):
    """Where the blocks are: free + cached + held is all of them."""

    __slots__ = ("cached", "free", "held")

    def __init__(self, free: int, cached: int, held: int) -> None:
        self.free: Final = free
        self.cached: Final = cached
        """Hold a prefix nobody uses now; given away when needed."""
        self.held: Final = held

    def fields(self) -> tuple[object, ...]:
        return (self.free, self.cached, self.held)


class Memory:
    """Owner of all blocks of one replica."""

    grows: bool = True
    """Whether a decoding sequence needs more blocks as it goes."""

    def __init__(self, total: int, block_tokens: int) -> None:
        self.total = total
        self.block_tokens = block_tokens

    def available(self) -> int:
        """Blocks that could be handed out now."""
        raise NotImplementedError

    def fits(self, tokens: int) -> bool:
        """Whether a sequence of so many KV tokens fits into an otherwise empty memory."""
        raise NotImplementedError

    def admit(self, sequence: Sequence, tokens: int, spare: int) -> int | None:
        """Give `sequence` blocks for its first `tokens` tokens, all at once so that a half-computed prompt cannot
        deadlock; leave `spare` blocks for others. Returns how many of those tokens hold KV already; None: no room."""
        raise NotImplementedError

    def take(self, count: int) -> list[int]:
        """`count` blocks for growth; never more than `available()`."""
        raise NotImplementedError

    def give(self, table: list[int]) -> None:
        """One block at the end of `table`, as `take(1)` gives it."""
        table += self.take(1)

    def publish(self, sequence: Sequence, computed: int) -> None:
        """The KV of the first `computed` tokens of its prompt is now valid."""
        raise NotImplementedError

    def release(self, sequence: Sequence, tokens: Tokens | None = None) -> None:
        """Take back all its blocks. `tokens`: the ids whose KV is valid, if the memory may keep them for others."""
        raise NotImplementedError

    def forget(self, holders: Iterable[Sequence]) -> None:
        """No request that comes later finds KV of one that came before, `holders` included: all that have ever had
        blocks and have not ended. What nobody uses is free at once."""

    def occupancy(self) -> Occupancy:
        """Counts, O(1)."""
        raise NotImplementedError

    def check(self, holders: Collection[Sequence]) -> None:
        """Recount from scratch. Raises ProtocolError on any difference."""
        raise NotImplementedError


_NUMBERS: Final[list[int]] = []
_FEW: Final = 8


def block_numbers(count: int) -> list[int]:
    """A list of 0 to count - 1, whose numbers all memories of a process have in common: those of sixteen simulated
    replicas would not stay in a core's cache if each had its own."""
    if len(_NUMBERS) < count:
        _NUMBERS.extend(range(len(_NUMBERS), count))
    return _NUMBERS[:count]


def top(stack: list[int], count: int) -> list[int]:
    """Take the last `count` of `stack`, in their order; there must be as many."""
    if count > _FEW:
        taken = stack[-count:]
        del stack[-count:]
        return taken
    # Compiled, a number of a list[int] would be taken out and made anew: `block_numbers` says why that must not be.
    numbers = cast("list[Any]", stack)
    if count == 1:
        return [numbers.pop()]
    few: list[Any] = []
    for _ in range(count):
        few.append(numbers.pop())
    few.reverse()
    return few


def move_top(stack: list[int], table: list[int]) -> None:
    """The last of `stack`, which is not empty, becomes the last of `table`."""
    cast("list[Any]", table).append(cast("list[Any]", stack).pop())


def blocks_for(tokens: int, block_tokens: int) -> int:
    """Blocks that hold `tokens` tokens."""
    return -(-tokens // block_tokens)


def expect(condition: bool, message: str) -> None:
    """For `check`: raises ProtocolError(message) unless `condition`."""
    if not condition:
        raise ProtocolError(message)
