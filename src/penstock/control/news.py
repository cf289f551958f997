"""What there is to tell about a request. These go over the wire (runtime/wire.py), so they are msgspec structs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, final

from msgspec import Struct

FinishReason = Literal["stop", "length", "cancelled"]


class TokenLogprobs(Struct, frozen=True):
    """Log-probabilities (natural log, of the model's own distribution, before penalties and temperature)."""

    chosen: float
    top: tuple[tuple[int, float], ...] = ()
    """(token id, logprob), most likely first."""


class PromptLogprobs(Struct, frozen=True):
    """Of prompt tokens [start, start + len(chosen)), each given the tokens before it: three parallel lists."""

    start: int
    """At least 1: nothing comes before the first token."""
    chosen: list[float]
    """The prompt's own tokens' log-probabilities, as in TokenLogprobs."""
    ranks: list[int]
    """1: the token was the most likely one."""
    top: list[tuple[tuple[int, float], ...]]


@final
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
