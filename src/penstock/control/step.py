"""What goes out and what comes back.

A `Step` is a delta (Contract 2): it names what changes. Sequences that merely decode on do not appear in it; each grows
by one token whenever `decoding` > 0, and what it holds follows from the steps so far. An executor therefore keeps the
decode set itself, and must run steps in the order of their numbers. Within a step it applies the fields in the order
they stand in the class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

FinishReason = Literal["stop", "length", "cancelled"]


@dataclass(frozen=True, slots=True)
class Swap:
    """Whole blocks of one sequence between device and host, pairwise: `device[i]` <-> `host[i]`."""

    id: str
    device: tuple[int, ...]
    host: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Admission:
    """A sequence gets KV blocks: its table is `blocks`, of which the first `cached_tokens` tokens already hold KV."""

    id: str
    blocks: tuple[int, ...]
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """Positions [start, start + tokens) of a sequence's prompt + output go through the model.

    `last`: the chunk reaches the end, so its final row gives a token.
    """

    id: str
    start: int
    tokens: int
    last: bool


@dataclass(slots=True)
class Step:
    """One engine iteration, as changes to the one before."""

    number: int
    """1, 2, 3, ... without gaps."""
    release: list[str] = field(default_factory=list)
    """Forget these ids altogether: finished, failed or cancelled (also ones that were never admitted)."""
    evict: list[str] = field(default_factory=list)
    """These lose their blocks and leave the decode set, and keep their tokens: they will be admitted again."""
    swap_out: list[Swap] = field(default_factory=list)
    """Copy device to host; the sequence leaves the decode set and keeps its tokens."""
    swap_in: list[Swap] = field(default_factory=list)
    """Copy host to device; the sequence's table is then `device` and all its KV is valid."""
    admit: list[Admission] = field(default_factory=list)
    pause: list[str] = field(default_factory=list)
    """Leave the decode set, keep the blocks (no block for the next token; or the last token is planned already)."""
    join: list[str] = field(default_factory=list)
    """Enter the decode set. The input of its next row is its own last token, sampled in a step before this one."""
    grow: list[str] = field(default_factory=list)
    """These get one more block at the end of their table: `grow[i]` gets `grow_blocks[i]`."""
    grow_blocks: list[int] = field(default_factory=list)
    chunks: list[Chunk] = field(default_factory=list)
    decoding: int = 0
    """Size of the decode set if it runs in this step, else 0: then every sequence in it rests."""
    decode_context: int = 0
    """Sum of the KV lengths over the decode set before this step, if it runs: what its attention reads."""

    @property
    def tokens(self) -> int:
        """Rows that go through the model."""
        return self.decoding + sum(chunk.tokens for chunk in self.chunks)


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probabilities (natural log, of the model's own distribution, before penalties and temperature)."""

    chosen: float
    top: tuple[tuple[int, float], ...] = ()
    """(token id, logprob), most likely first."""


@dataclass(frozen=True, slots=True)
class Finish:
    """A sequence is complete with this step. The executor reports every one, also those that reach max_tokens."""

    reason: FinishReason
    output: tuple[int, ...] = ()
    """All output tokens, in order; may stay empty where there are none (a simulation)."""
    stop_id: int | None = None
    """The stop id that ended it; it is the last of `output`."""


@dataclass(slots=True)
class StepResult:
    """What an executor found out. Control reads `finished` and `failed`; `tokens` and `logprobs` pass through."""

    number: int
    seconds: float = 0.0
    tokens: dict[str, int] = field(default_factory=dict)
    """New token of each sequence that made one."""
    logprobs: dict[str, TokenLogprobs] = field(default_factory=dict)
    """Only of sequences that asked."""
    finished: dict[str, Finish] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    """Sequences that could not be computed, with the reason. They fail alone."""


@dataclass(frozen=True, slots=True)
class NewTokens:
    """All tokens of one step, of sequences that are still wanted."""

    tokens: Mapping[str, int]
    logprobs: Mapping[str, TokenLogprobs]


@dataclass(frozen=True, slots=True)
class Finished:
    """The last word about a request."""

    id: str
    reason: FinishReason
    stop_id: int | None = None
    cached_tokens: int = 0
    """Prompt tokens that were not computed because their KV was at hand."""


@dataclass(frozen=True, slots=True)
class Failed:
    """The last word about a request that could not be served."""

    id: str
    why: str


Update = NewTokens | Finished | Failed
