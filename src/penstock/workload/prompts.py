"""What the prompts say: token ids, or words for servers that take only text.

Prompts are noise on purpose: a language model's speed depends on lengths and shared prefixes, not on meaning. Every
piece is made from (seed, what it is), so the same run has the same prompts and two runs with different seeds share
nothing, not even in a prefix cache. A shared prefix block of a trace is made from its id, hence equal wherever it
occurs; the turns of a session are cut from one endless stream.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from penstock.workload.trace import TraceRequest

Ids = NDArray[np.int64]
_OWN, _BLOCK, _SESSION, _STREAM_TOKENS = 1, 2, 3, 1024

UNKNOWN_VOCABULARY: Final = 1024
"""Assumed where the server does not tell: the smallest vocabulary in use is larger."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """Ids that are plain text in practically every tokenizer: [low, high).

    Special and byte tokens sit at either end of a vocabulary, so the first 259 (or an eighth, if that is less) and the
    last tenth are left out.
    """

    low: int
    high: int

    @classmethod
    def of_size(cls, size: int) -> Vocabulary:
        """The safe range of a vocabulary of `size` ids, at least one id wide."""
        low = min(259, size // 8)
        return cls(low, max(low + 1, size * 9 // 10))


@dataclass(frozen=True, slots=True)
class IdPrompts:
    """Prompts as token ids of exactly the length asked for."""

    vocabulary: Vocabulary
    seed: int
    block_tokens: int = 512

    def make(self, index: int, request: TraceRequest) -> list[int]:
        """[prompt_tokens] ids of request number `index`."""
        length = request.prompt_tokens
        parts: list[Ids] = []
        if request.session is not None:
            for piece in range(-(-length // _STREAM_TOKENS)):
                parts.append(self._ids(_STREAM_TOKENS, _SESSION, request.session, piece))
        else:
            parts += [self._ids(self.block_tokens, _BLOCK, block) for block in request.prefix_blocks]
        missing = length - sum(part.size for part in parts)
        if missing > 0:
            parts.append(self._ids(missing, _OWN, index))
        ids: list[int] = np.concatenate(parts)[:length].tolist()
        return ids

    def _ids(self, count: int, *key: int) -> Ids:
        generator = np.random.default_rng([self.seed, *key])
        return generator.integers(self.vocabulary.low, self.vocabulary.high, count)


@dataclass(frozen=True, slots=True)
class TextPrompts:
    """Prompts as words, for servers that tokenise themselves: about the length asked for, never exactly.

    `tokens_per_word` and `overhead_tokens` (chat template, begin-of-sequence) are measured on the server by two short
    requests; what a prompt really had is what the answer's `usage` says.
    """

    seed: int
    tokens_per_word: float = 1.0
    overhead_tokens: int = 0
    block_tokens: int = 512

    def make(self, index: int, request: TraceRequest) -> str:
        """Words that are about `prompt_tokens` tokens, at least one word."""
        words = max(1, round((request.prompt_tokens - self.overhead_tokens) / self.tokens_per_word))
        ids = IdPrompts(Vocabulary(0, len(WORDS)), self.seed, max(1, round(self.block_tokens / self.tokens_per_word)))
        bare = TraceRequest(0.0, words, request.output_tokens, request.prefix_blocks, request.session)
        return " ".join(WORDS[word] for word in ids.make(index, bare))


def phase_seed(seed: int, phase: str) -> int:
    """A seed of its own for each phase of a run, so that a later phase cannot profit from an earlier one's cache."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{phase}".encode()).digest()[:8], "little")


# Common English words: one token each in most vocabularies of 30,000 and more.
_COMMON: Final = """
time year people way day man thing woman life child world school state family student group country problem hand
part place case week company system program question work government number night point home water room mother
area money story fact month lot right study book eye job word business issue side kind head house service friend
father power hour game line end member law car city community name president team minute idea body information
back parent face others level office door health person art war history party result change morning reason
research girl guy moment air teacher force education good new first last long great little own other old big
high different small large next early young important few public bad same able
"""
WORDS: Final = tuple(_COMMON.split())
