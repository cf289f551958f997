"""What goes out and what comes back.

A `Step` is a delta (Contract 2): it names what changes. Sequences that merely decode on do not appear in it; each grows
by one token whenever `decoding` > 0, and what it holds follows from the steps so far. An executor therefore keeps the
decode set itself, and must run steps in the order of their numbers. Within a step it applies the fields in the order
they stand in the class.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from msgspec import Struct

FinishReason = Literal["stop", "length", "cancelled"]


class Swap(Struct, frozen=True):
    """Whole blocks of one sequence between device and host, pairwise: `device[i]` <-> `host[i]`."""

    id: str
    device: tuple[int, ...]
    host: tuple[int, ...]


class Admission(Struct, frozen=True):
    """A sequence gets KV blocks: its table is `blocks`, of which the first `cached_tokens` tokens already hold KV."""

    id: str
    blocks: tuple[int, ...]
    cached_tokens: int


class Chunk(Struct, frozen=True):
    """Positions [start, start + tokens) of a sequence's prompt + output go through the model.

    `last`: the chunk reaches the end, so its final row gives a token.
    """

    id: str
    start: int
    tokens: int
    last: bool


class Step(Struct):
    """One engine iteration, as changes to the one before."""

    number: int
    """1, 2, 3, ... without gaps."""
    release: list[str] = []
    """Forget these ids altogether: finished, failed or cancelled (also ones that were never admitted)."""
    evict: list[str] = []
    """These lose their blocks and leave the decode set, and keep their tokens: they will be admitted again."""
    swap_out: list[Swap] = []
    """Copy device to host; the sequence leaves the decode set and keeps its tokens."""
    swap_in: list[Swap] = []
    """Copy host to device; the sequence's table is then `device` and all its KV is valid."""
    admit: list[Admission] = []
    pause: list[str] = []
    """Leave the decode set, keep the blocks (no block for the next token; or the last token is planned already)."""
    join: list[str] = []
    """Enter the decode set. The input of its next row is its own last token, sampled in a step before this one."""
    grow: list[str] = []
    """These get one more block at the end of their table: `grow[i]` gets `grow_blocks[i]`."""
    grow_blocks: list[int] = []
    chunks: list[Chunk] = []
    decoding: int = 0
    """Size of the decode set if it runs in this step, else 0: then every sequence in it rests."""
    decode_context: int = 0
    """Sum of the KV lengths over the decode set before this step, if it runs: what its attention reads."""

    @property
    def tokens(self) -> int:
        """Rows that go through the model."""
        return self.decoding + sum(chunk.tokens for chunk in self.chunks)

    def repeat(self, steps: int) -> None:
        """Become the step that comes `steps` later, if all of them only decode: what this one announced is done."""
        self.release, self.evict, self.pause, self.join, self.grow = [], [], [], [], []
        self.swap_out, self.swap_in, self.grow_blocks = [], [], []
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


class TokenLogprobs(Struct, frozen=True):
    """Log-probabilities (natural log, of the model's own distribution, before penalties and temperature)."""

    chosen: float
    top: tuple[tuple[int, float], ...] = ()
    """(token id, logprob), most likely first."""


class Finish(Struct, frozen=True):
    """A sequence is complete with this step. The executor reports every one, also those that reach max_tokens."""

    reason: FinishReason
    output: Sequence[int] = ()
    """All output tokens, in order: a tuple, or a range in a simulation; empty where nobody knows them."""
    stop_id: int | None = None
    """The stop id that ended it; it is the last of `output`."""


class StepResult(Struct):
    """What an executor found out. Control reads `finished` and `failed`; `tokens` and `logprobs` pass through."""

    number: int
    seconds: float = 0.0
    tokens: dict[str, int] = {}
    """New token of each sequence that made one."""
    logprobs: dict[str, TokenLogprobs] = {}
    """Only of sequences that asked."""
    finished: dict[str, Finish] = {}
    failed: dict[str, str] = {}
    """Sequences that could not be computed, with the reason. They fail alone."""


class NewTokens(Struct, frozen=True):
    """All tokens of one step, of sequences that are still wanted."""

    tokens: Mapping[str, int]
    logprobs: Mapping[str, TokenLogprobs]


class Finished(Struct, frozen=True):
    """The last word about a request."""

    id: str
    reason: FinishReason
    stop_id: int | None = None
    cached_tokens: int = 0
    """Prompt tokens that were not computed because their KV was at hand."""


class Failed(Struct, frozen=True):
    """The last word about a request that could not be served."""

    id: str
    why: str


Update = NewTokens | Finished | Failed
