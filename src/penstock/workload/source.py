"""What a simulation is fed: requests with a time, drawn one by one, so that a million of them cost no memory.

    for request in source.initial(): ...            what arrives whatever happens, in order of arrival
    following = source.after(request, finished_s)   what its end brings about: a user's next request, or None

An open loop (`OpenLoop`, `Replay`) answers None to every `after`; in a closed loop (`ClosedLoop`, `Sessions`) most
arrivals come from it. A source is a value: each `initial()` starts it anew, and the same seed gives the same bits.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import msgspec

SOURCE_BLOCK_TOKENS = 16
"""Tokens one prefix block of a generated source stands for."""


class TimedRequest(msgspec.Struct, gc=False):
    """One request of a workload. Positional and without frills: a simulator makes tens of thousands per second.

    It holds no reference cycle, so the garbage collector need not look at it.
    """

    index: int
    """0, 1, 2, ... in the order the source made them; unique."""
    arrival_s: float
    """Seconds since the start."""
    prompt_tokens: int
    output_tokens: int
    """The oracle: what the model will say. No policy may look at it."""
    prefix: tuple[int, ...] | None = None
    """Ids of the prompt's leading blocks, `Source.block_tokens` tokens each: an equal id means an equal prefix up to
    the block's end. What lies behind the last of them is shared with nobody; None: nothing is."""
    session: int | None = None
    """Requests of one session are turns of one conversation."""
    turn: int = 0
    tenant: str = ""
    priority: int = 0
    """Lower goes first."""
    cancel_tokens: int = 0
    """The user leaves when this many output tokens have come; 0: stays."""


class Source(Protocol):
    """Where requests come from."""

    @property
    def block_tokens(self) -> int:
        """Tokens one id of `TimedRequest.prefix` stands for."""
        ...

    @property
    def requests(self) -> int | None:
        """How many there will be in all; None where nobody knows."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """What was done to the original, in words, for the report."""
        ...

    # A source may also say `follows = False`: `after` is None whatever is asked, so nobody need ask.

    def initial(self) -> Iterator[TimedRequest]:
        """Requests that do not depend on any answer, ascending in `arrival_s`; starts the source anew.

        To be pulled one by one, as time goes on: it may never end, and where `after` gives requests too, a bound on
        their number is shared out in the order of the calls.
        """
        ...

    def after(self, request: TimedRequest, finished_s: float) -> TimedRequest | None:
        """The request that the end of `request` at `finished_s` brings about: it arrives then or later, never before.

        To be called once for each request, when it ended for whatever reason; None in an open loop or at its end.
        """
        ...


def cut_short(request: TimedRequest, output_tokens: int) -> TimedRequest:
    """The same with an answer of no more than so many tokens. A user who would have left later gets all of it.

    >>> cut_short(TimedRequest(0, 0.0, 40, 8, cancel_tokens=6), 5).cancel_tokens
    0
    """
    leaves = request.cancel_tokens if request.cancel_tokens < output_tokens else 0
    return msgspec.structs.replace(
        request, output_tokens=min(request.output_tokens, output_tokens), cancel_tokens=leaves
    )


def blocks_of(request: TimedRequest, block_tokens: int, size: int) -> tuple[int, ...]:
    """`request.prefix`, given in blocks of `block_tokens`, as ids of whole blocks of `size` tokens of the same prompt.

    A new block's id names the old block its last token lies in and its place in there, so equal ids still mean equal
    prefixes. Where `size` does not divide `block_tokens`, some sharing inside a border block goes unseen; none is
    invented.

    >>> blocks_of(TimedRequest(0, 0.0, 40, 1, (7, 9)), 32, 16)
    (14, 15)
    """
    if not request.prefix:
        return ()
    per_block = -(-block_tokens // size)
    covered = min(request.prompt_tokens, len(request.prefix) * block_tokens) // size
    prefix = request.prefix
    if block_tokens == size:
        return prefix[:covered]
    made = []
    for number in range(covered):
        old = ((number + 1) * size - 1) // block_tokens
        made.append(prefix[old] * per_block + (number - old * block_tokens // size) % per_block)
    return tuple(made)
