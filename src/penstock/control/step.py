"""What goes out and what comes back.

A `Step` is a delta (Contract 2): it names what changes. Sequences that merely decode on do not appear in it; each grows
by one token whenever `decoding` > 0, and what it holds follows from the steps so far. An executor therefore keeps the
decode set itself, and must run steps in the order of their numbers. Within a step it applies the fields in the order
they stand in the class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, TypeVar

from penstock.control.news import (
    Failed as Failed,
)
from penstock.control.news import (
    Finished as Finished,
)
from penstock.control.news import (
    FinishReason as FinishReason,
)
from penstock.control.news import (
    NewTokens as NewTokens,
)
from penstock.control.news import (
    PromptLogprobs as PromptLogprobs,
)
from penstock.control.news import (
    TokenLogprobs as TokenLogprobs,
)
from penstock.control.news import (
    Update as Update,
)
from penstock.control.record import Record


class Swap(Record):
    """Whole blocks of one sequence between device and host, pairwise: `device[i]` <-> `host[i]`."""

    __slots__ = ("device", "host", "id")

    def __init__(self, id: str, device: tuple[int, ...], host: tuple[int, ...]) -> None:
        self.id: Final = id
        self.device: Final = device
        self.host: Final = host

    def fields(self) -> tuple[object, ...]:
        return (self.id, self.device, self.host)


class Admission(Record):
    """A sequence gets KV blocks: its table is `blocks`, of which the first `cached_tokens` tokens already hold KV."""

    __slots__ = ("blocks", "cached_tokens", "id")

    def __init__(self, id: str, blocks: tuple[int, ...], cached_tokens: int) -> None:
        self.id: Final = id
        self.blocks: Final = blocks
        self.cached_tokens: Final = cached_tokens

    def fields(self) -> tuple[object, ...]:
        return (self.id, self.blocks, self.cached_tokens)


class Chunk(Record):
    """Positions [start, start + tokens) of a sequence's prompt + output go through the model.

    `last`: the chunk reaches the end, so its final row gives a token.
    """

    __slots__ = ("id", "last", "start", "tokens")

    def __init__(self, id: str, start: int, tokens: int, last: bool) -> None:
        self.id: Final = id
        self.start: Final = start
        self.tokens: Final = tokens
        self.last: Final = last

    def fields(self) -> tuple[object, ...]:
        return (self.id, self.start, self.tokens, self.last)


Item = TypeVar("Item")

_NO_IDS: Final[list[str]] = []
_NO_SWAPS: Final[list[Swap]] = []
_NO_ADMISSIONS: Final[list[Admission]] = []
_NO_CHUNKS: Final[list[Chunk]] = []
_NO_BLOCKS: Final[list[int]] = []
"""What a fresh step has in common with all others: most of its lists stay empty, and making them would cost more than
planning it. Never changed: `added` makes the first item's list."""


def added(items: list[Item], item: Item) -> list[Item]:
    """A step's list with one item more, to be put back where it was."""
    if items:
        items.append(item)
        return items
    return [item]


class Step(Record):
    """One engine iteration, as changes to the one before."""

    __slots__ = (
        "admit", "chunks", "decode_context", "decoding", "evict", "grow", "grow_blocks", "join", "number", "pause",
        "release", "swap_in", "swap_out",
    )  # fmt: skip

    def __init__(
        self, number: int, *, release: list[str] | None = None, evict: list[str] | None = None,
        swap_out: list[Swap] | None = None, swap_in: list[Swap] | None = None, admit: list[Admission] | None = None,
        pause: list[str] | None = None, join: list[str] | None = None, grow: list[str] | None = None,
        grow_blocks: list[int] | None = None, chunks: list[Chunk] | None = None, decoding: int = 0,
        decode_context: int = 0,
    ) -> None:  # fmt: skip
        self.number = number
        """1, 2, 3, ... without gaps."""
        self.release: list[str] = _NO_IDS if release is None else release
        """Forget these ids altogether: finished, failed or cancelled (also ones that were never admitted)."""
        self.evict: list[str] = _NO_IDS if evict is None else evict
        """These lose their blocks and leave the decode set, and keep their tokens: they will be admitted again."""
        self.swap_out: list[Swap] = _NO_SWAPS if swap_out is None else swap_out
        """Copy device to host; the sequence leaves the decode set and keeps its tokens."""
        self.swap_in: list[Swap] = _NO_SWAPS if swap_in is None else swap_in
        """Copy host to device; the sequence's table is then `device` and all its KV is valid."""
        self.admit: list[Admission] = _NO_ADMISSIONS if admit is None else admit
        self.pause: list[str] = _NO_IDS if pause is None else pause
        """Leave the decode set, keep the blocks (no block for the next token; or the last token is planned already)."""
        self.join: list[str] = _NO_IDS if join is None else join
        """Enter the decode set. The input of its next row is its own last token, sampled in a step before this one."""
        self.grow: list[str] = _NO_IDS if grow is None else grow
        """These get one more block at the end of their table: `grow[i]` gets `grow_blocks[i]`."""
        self.grow_blocks: list[int] = _NO_BLOCKS if grow_blocks is None else grow_blocks
        self.chunks: list[Chunk] = _NO_CHUNKS if chunks is None else chunks
        self.decoding = decoding
        """Size of the decode set if it runs in this step, else 0: then every sequence in it rests."""
        self.decode_context = decode_context
        """Sum of the KV lengths over the decode set before this step, if it runs: what its attention reads."""

    def fields(self) -> tuple[object, ...]:
        return (
            self.number, self.release, self.evict, self.swap_out, self.swap_in, self.admit, self.pause, self.join,
            self.grow, self.grow_blocks, self.chunks, self.decoding, self.decode_context,
        )  # fmt: skip

    @property
    def tokens(self) -> int:
        """Rows that go through the model."""
        return self.decoding + sum([chunk.tokens for chunk in self.chunks])

    def forget_chunks(self, decoding: int, decode_context: int) -> None:
        """Become a step of decodes alone, of so many over so much KV: those it completed the prompts of included."""
        self.admit = _NO_ADMISSIONS
        self.chunks = _NO_CHUNKS
        self.decoding = decoding
        self.decode_context = decode_context

    def repeat(self, steps: int) -> None:
        """Become the step that comes `steps` later, if all of them only decode: what this one announced is done."""
        self.release = self.evict = self.pause = self.join = self.grow = _NO_IDS
        self.swap_out = self.swap_in = _NO_SWAPS
        self.grow_blocks = _NO_BLOCKS
        self.number += steps
        self.decode_context += steps * self.decoding

    @property
    def plain(self) -> bool:
        """The decode set runs, and nothing changes but that blocks are added."""
        return self.decoding > 0 and not (
            self.chunks
            or self.join
            or self.pause
            or self.release
            or self.admit
            or self.evict
            or self.swap_in
            or self.swap_out
        )


class Finish(Record):
    """A sequence is complete with this step. The executor reports every one, also those that reach max_tokens."""

    __slots__ = ("output", "reason", "stop_id")

    def __init__(self, reason: FinishReason, output: Sequence[int] = (), stop_id: int | None = None) -> None:
        self.reason: Final = reason
        self.output: Final = output
        """All output tokens, in order: a tuple, or a range in a simulation; empty where nobody knows them."""
        self.stop_id: Final = stop_id
        """The stop id that ended it; it is the last of `output`."""

    def fields(self) -> tuple[object, ...]:
        return (self.reason, self.output, self.stop_id)


class StepResult(Record):
    """What an executor found out. Control reads `finished` and `failed`; the rest passes through."""

    __slots__ = (
        "embeddings", "failed", "finished", "logprobs", "number", "prompt_logprobs", "seconds", "tokens",
    )  # fmt: skip

    def __init__(
        self, number: int, seconds: float = 0.0, tokens: dict[str, int] | None = None,
        logprobs: dict[str, TokenLogprobs] | None = None, finished: dict[str, Finish] | None = None,
        failed: dict[str, str] | None = None, prompt_logprobs: dict[str, PromptLogprobs] | None = None,
        embeddings: dict[str, bytes] | None = None,
    ) -> None:  # fmt: skip
        self.number = number
        self.seconds = seconds
        self.tokens: dict[str, int] = {} if tokens is None else tokens
        """New token of each sequence that made one."""
        self.logprobs: dict[str, TokenLogprobs] = {} if logprobs is None else logprobs
        """Only of sequences that asked."""
        self.finished: dict[str, Finish] = {} if finished is None else finished
        self.failed: dict[str, str] = {} if failed is None else failed
        """Sequences that could not be computed, with the reason. They fail alone."""
        self.prompt_logprobs: dict[str, PromptLogprobs] | None = prompt_logprobs
        """Of this step's chunks, where asked for; None: nobody asked. An evicted prompt's come once more."""
        self.embeddings: dict[str, bytes] | None = embeddings
        """Of prompts complete with this step, where asked for: float32, little-endian."""

    def fields(self) -> tuple[object, ...]:
        return (
            self.number, self.seconds, self.tokens, self.logprobs, self.finished, self.failed, self.prompt_logprobs,
            self.embeddings,
        )  # fmt: skip
