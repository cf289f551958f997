"""Penalties on tokens that were there before: repetition (CTRL, Keskar et al., 2019), presence and frequency.

A request has seen far fewer tokens than the vocabulary holds, so what is kept and touched is its distinct tokens only,
in arrays that grow by one entry per new token.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from penstock.control.request import Request, Sampling

_FAR: Final = np.float32(1e30)
"""Beyond any logit, and far enough from overflow that differences and quotients by a temperature are finite."""


def uses_penalties(sampling: Sampling) -> bool:
    return sampling.repetition_penalty != 1.0 or sampling.presence_penalty != 0.0 or sampling.frequency_penalty != 0.0


class SeenTokens:
    """The distinct tokens of one request, and how often each was produced."""

    def __init__(self, request: Request) -> None:
        sampling = request.sampling
        self._repetition = np.float32(sampling.repetition_penalty)
        self._presence = np.float32(sampling.presence_penalty)
        self._frequency = np.float32(sampling.frequency_penalty)
        # Prompt tokens matter to the repetition penalty alone.
        prompt: Sequence[int] = request.prompt if sampling.repetition_penalty != 1.0 else ()
        distinct = dict.fromkeys((*prompt, *request.output))
        self._index = {token: index for index, token in enumerate(distinct)}
        self._ids = np.fromiter(distinct, np.int64, len(distinct))
        self._produced = np.zeros(len(distinct), np.float32)
        for token in request.output:
            self._produced[self._index[token]] += 1

    def count(self, token: int) -> None:
        """One more `token` was produced."""
        index = self._index.get(token)
        if index is None:
            index = self._index[token] = len(self._index)
            if index == len(self._ids):
                room = max(64, len(self._ids))
                self._ids = np.concatenate([self._ids, np.zeros(room, np.int64)])
                self._produced = np.concatenate([self._produced, np.zeros(room, np.float32)])
            self._ids[index] = token
        self._produced[index] += 1

    def apply(self, row: NDArray[np.float32]) -> None:
        """Change the logits [V] of this request in place. What was finite stays finite, however large the penalties."""
        seen = len(self._index)
        if not seen:
            return
        ids, produced = self._ids[:seen], self._produced[:seen]
        logits = row[ids]
        # A banned token stays at -inf, and a broken row is seen for what it is.
        finite = np.isfinite(logits)
        with np.errstate(over="ignore"):
            if self._repetition != 1:
                logits = np.where(logits > 0, logits / self._repetition, logits * self._repetition)
            change = np.clip(self._frequency * produced + self._presence * (produced > 0), -_FAR, _FAR)
            logits -= change
        row[ids] = np.where(finite, np.clip(logits, -_FAR, _FAR), logits)
