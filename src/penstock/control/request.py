"""What arrives: a request is immutable data, all of it known before the first step."""

from __future__ import annotations

from collections.abc import Sequence as Tokens
from typing import Final

from msgspec import Struct

GUIDE_FAILED: Final = "the grammar: "
"""How the reason begins when a request fails by its own grammar, which makes it the client's fault."""


class Guide(Struct, frozen=True, kw_only=True):
    """What the text must look like. Control carries it and never looks inside."""

    grammar: str
    """A grammar of engine/guide/grammar.py."""
    after: str = ""
    """The grammar begins where this text ends, such as </think>; empty: at the first token."""
    opener: str = ""
    """With `after`: the output begins with this token or with the grammar; empty: the prompt began the reasoning."""


class Sampling(Struct, frozen=True, kw_only=True):
    """How the next token is chosen from the logits. Control carries it and never looks inside.

    The order of operations is the one clients know: logit_bias, min_tokens (bans `stop_ids`), repetition, presence
    and frequency penalties, temperature, top_k, top_p, min_p.
    """

    temperature: float = 1.0
    """0 is greedy: the largest logit, ties to the lowest id."""
    top_k: int = 0
    """0: all."""
    top_p: float = 1.0
    min_p: float = 0.0
    """Tokens below min_p x the largest probability are dropped."""
    repetition_penalty: float = 1.0
    """Over prompt and output (Keskar et al., 2019, CTRL)."""
    presence_penalty: float = 0.0
    """Over output only, as is frequency_penalty."""
    frequency_penalty: float = 0.0
    logit_bias: tuple[tuple[int, float], ...] = ()
    seed: int | None = None
    """With a seed, token i of a request depends on (seed, i) and the logits alone, whatever else is in the batch."""
    logprobs: int | None = None
    """None: none. k >= 0: the chosen token's, and those of the k most likely."""
    prompt_logprobs: int | None = None
    """As `logprobs`, for the prompt's tokens: none of it is then taken from the cache, for that has no logits."""
    embed: bool = False
    """The prompt's embedding is wanted, not what comes after it; `max_tokens` is 1 then."""
    stop_ids: tuple[int, ...] = ()
    """End-of-sequence ids and the client's stop_token_ids; empty when ignore_eos was asked for."""
    min_tokens: int = 0
    """No stop id before this many output tokens."""
    guide: Guide | None = None
    """A grammar for the output. Its mask comes before all else."""

    @property
    def reads_prompt(self) -> bool:
        """Something is made of every row of the prompt, so none may be skipped because its KV is there already."""
        return self.prompt_logprobs is not None or self.embed


PLAIN: Final = Sampling()
"""What a request has that asks for nothing."""


class Request(Struct, frozen=True, kw_only=True):
    """One prompt to continue. `n` > 1 is that many requests."""

    id: str
    prompt: Tokens[int]
    """Token ids. Anything sliceable: a tuple of real ids, or a range in a simulation."""
    max_tokens: int
    """Bound on output tokens, `output` included."""
    output: tuple[int, ...] = ()
    """Tokens already produced elsewhere (a restarted worker, another replica): computed again, not emitted again."""
    tenant: str = ""
    """Whose share it counts against; also part of the border that cached prefixes do not cross."""
    prefix_group: str = ""
    """Tenants of one group share cached prefixes; empty: the tenant is alone."""
    weight: float = 1.0
    """Share of its tenant, relative to others, where the order knows shares."""
    salt: str = ""
    """Client's cache_salt: prefixes are shared inside (tenant or group, salt) only."""
    adapter: str = ""
    """Name of the adapter it runs with, unique per load; empty: the model itself. KV of one is of no use to another."""
    priority: int = 0
    """Lower goes first."""
    sampling: Sampling = PLAIN

    @property
    def prefill_tokens(self) -> int:
        """Tokens to compute before the first new one appears."""
        return len(self.prompt) + len(self.output)
