"""Log-probabilities of a prompt's own tokens, read off the rows that a chunk puts through the model anyway.

The row of position p says what it expects at p + 1. So a chunk [start, end) scores tokens start + 1 to end, but none
after the prompt's last; the row that yields the first output token scores nothing. Rows of cached tokens do not run and
could not be scored: control takes nothing from the cache for a request that asks (control/memory/prefix_tree.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

import numpy as np
from torch import Tensor

from penstock.control.news import PromptLogprobs
from penstock.control.step import Chunk
from penstock.engine.sampling.logprobs import token_logprobs
from penstock.engine.sequences import Sequence, Slots

GROUP_LOGITS: Final = 1 << 23
"""Logits that exist at one time, 32 MiB; a chunk of a thousand rows would need ten times that."""


@dataclass(frozen=True, slots=True)
class ScoredRows:
    """Rows of one chunk. `rows` are those of the step's batch."""

    id: str
    start: int
    """Position of the first token scored."""
    rows: np.ndarray
    targets: np.ndarray
    """[len(rows)]: the token that each row should have expected."""
    top: int


def scored_rows(
    chunks: Iterable[Chunk], sequences: dict[str, Sequence], slots: Slots, first_row: int
) -> list[ScoredRows]:
    """What to score of a step whose chunks' rows begin at `first_row`. A prompt that has output was scored before."""
    found: list[ScoredRows] = []
    row = first_row
    for chunk in chunks:
        sequence = sequences[chunk.id]
        slot, top = sequence.slot, sequence.request.sampling.prompt_logprobs
        if top is not None and slot is not None:
            prompt = int(slots.prompt_length[slot])
            count = min(chunk.start + chunk.tokens, prompt - 1) - chunk.start
            if count > 0 and int(slots.length[slot]) == prompt:
                first = chunk.start + 1
                targets = slots.tokens[slot, first : first + count].astype(np.int64)
                found.append(ScoredRows(chunk.id, first, np.arange(row, row + count), targets, top))
        row += chunk.tokens
    return found


def score(
    wanted: Iterable[ScoredRows], hidden: Tensor, logits_of: Callable[[Tensor], Tensor], vocab_size: int
) -> dict[str, PromptLogprobs]:
    """hidden [R, D]: the rows of all `wanted`, one after the other. `logits_of` gives [n, V] in float32 for some."""
    group = max(1, GROUP_LOGITS // vocab_size)
    scored: dict[str, PromptLogprobs] = {}
    at = 0
    for one in wanted:
        news = PromptLogprobs(one.start, [], [], [])
        for first in range(0, len(one.targets), group):
            targets = one.targets[first : first + group].tolist()
            logits = logits_of(hidden[at : at + len(targets)]).float().cpu().numpy()
            at += len(targets)
            for row, token in zip(logits, targets, strict=True):
                found = token_logprobs(row, token, one.top)
                news.chosen.append(found.chosen)
                news.ranks.append(1 + int(np.count_nonzero(row > row[token])))
                news.top.append(found.top)
        scored[one.id] = news
    return scored
