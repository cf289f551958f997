"""Engine steps of a chosen shape: so many sequences decoding at a chosen context, beside chunks behind a chosen past.

An engine does what a step says, so a step may say that KV is there already. The pool is filled once with prompts; then
any context costs nothing to set up: a sequence is admitted over blocks that hold somebody's KV, and its attention reads
as many bytes, from as many places, as any other's of that length.
"""

from __future__ import annotations

from itertools import count
from typing import Final

from penstock.control.request import Request, Sampling
from penstock.control.step import Admission, Chunk, Step, StepResult
from penstock.engine.engine import Engine

_FILL_TOKENS: Final = 128


class DesignedSteps:
    """Runs steps on an engine of its own."""

    def __init__(self, engine: Engine, *, blocks: int, block_tokens: int, longest: int) -> None:
        """`longest`: tokens of the longest sequence. All of the pool is written once, so that its pages are real."""
        self._engine, self._size = engine, block_tokens
        self._vocabulary = engine.architecture.vocab_size
        self._numbers, self._names = count(1), count()
        self._gone: list[str] = []
        self._decoding: list[str] = []
        self._joining: list[str] = []
        per_sequence = -(-longest // block_tokens)
        self._for_chunks = list(range(per_sequence))
        """Blocks that chunks write to; no decode has them."""
        self._for_decodes = list(range(per_sequence, blocks))
        per_prompt = max(1, _FILL_TOKENS // block_tokens)
        for first in range(0, blocks, per_prompt):
            held = tuple(range(first, min(first + per_prompt, blocks)))
            self._chunk_step([(self._add(len(held) * block_tokens), held, 0, len(held) * block_tokens)])

    def room_for(self, sequences: int, context: int, steps: int) -> bool:
        """Whether `open` can be asked for this."""
        return sequences * -(-(context + steps) // self._size) <= len(self._for_decodes)

    def open(self, sequences: int, context: int, steps: int) -> None:
        """From the next `step` on, `sequences` decode; the first reads `context` tokens for each, its own included, and
        up to `steps` more follow. What decoded before is gone."""
        self._gone += self._decoding
        each = -(-(context + steps) // self._size)
        prompt = max(1, context - 1)
        # Spread over the pool, as blocks are after hours of serving.
        new = [
            (self._add(prompt, steps + 2), tuple(self._for_decodes[i::sequences][:each]), prompt - 1, 1)
            for i in range(sequences)
        ]
        self._decoding = []
        if new:
            self._chunk_step(new)
            self._gone = []
        self._decoding = self._joining = [name for name, *_ in new]

    def step(self, *chunks: tuple[int, int]) -> StepResult:
        """One step: the decodes that are open, and chunks, each (past, tokens), that end their prompts."""
        if sum(-(-(past + tokens + 1) // self._size) for past, tokens in chunks) > len(self._for_chunks):
            raise ValueError(f"chunks {chunks} need more than {len(self._for_chunks)} blocks")
        free = iter(self._for_chunks)
        new = []
        for past, tokens in chunks:
            blocks = tuple(next(free) for _ in range(-(-(past + tokens + 1) // self._size)))
            new.append((self._add(past + tokens), blocks, past, tokens))
        return self._chunk_step(new)

    def _chunk_step(self, new: list[tuple[str, tuple[int, ...], int, int]]) -> StepResult:
        step = Step(next(self._numbers), release=self._gone, join=self._joining, decoding=len(self._decoding))
        step.admit = [Admission(name, blocks, past) for name, blocks, past, _ in new]
        step.chunks = [Chunk(name, past, tokens, True) for name, _, past, tokens in new]
        self._joining = []
        result = self._engine.run(step)
        self._gone = [name for name, *_ in new]
        return result

    def _add(self, prompt_tokens: int, output_tokens: int = 1) -> str:
        name = str(next(self._names))
        prompt = tuple((7 + 31 * position) % self._vocabulary for position in range(prompt_tokens))
        self._engine.add(
            Request(id=name, prompt=prompt, max_tokens=output_tokens, sampling=Sampling(temperature=0.0))
        )  # fmt: skip
        return name
