"""A step driver of the smallest kind: it hands Steps to an Engine and keeps the block tables a test asks for."""

from __future__ import annotations

from collections.abc import Sequence as Tokens
from dataclasses import dataclass, field
from pathlib import Path

from penstock.control.request import Request, Sampling
from penstock.control.step import Admission, Chunk, Finish, Step, StepResult, Swap
from penstock.engine.engine import Engine

GREEDY = Sampling(temperature=0.0)


def reference(path: Path, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
    """Greedy output of `transformers`, each prompt alone, from a fresh model (dynamic RoPE keeps state)."""
    import torch
    from transformers import AutoModelForCausalLM

    outputs = []
    for prompt in prompts:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
        ids = torch.tensor([prompt])
        with torch.no_grad():
            out = model.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=max_tokens, do_sample=False, eos_token_id=None
            )
        outputs.append(out[0, len(prompt) :].tolist())
    return outputs


@dataclass
class Driver:
    """Plans what a test says, allocates blocks in a scattered order, and collects output.

    The lists of a step are replaced and never changed: steps share their empty ones.
    """

    engine: Engine
    blocks: int
    block_tokens: int
    number: int = 0
    output: dict[str, list[int]] = field(default_factory=dict)
    finished: dict[str, Finish] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    requests: dict[str, Request] = field(default_factory=dict)
    tables: dict[str, list[int]] = field(default_factory=dict)
    computed: dict[str, int] = field(default_factory=dict)
    decoding: list[str] = field(default_factory=list)
    free: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        # Odd blocks first: tables are never runs of neighbours.
        self.free = [*range(0, self.blocks, 2), *range(1, self.blocks, 2)]

    def add(
        self,
        request_id: str,
        prompt: Tokens[int],
        max_tokens: int,
        output: tuple[int, ...] = (),
        sampling: Sampling = GREEDY,
    ) -> None:
        request = Request(id=request_id, prompt=tuple(prompt), max_tokens=max_tokens, output=output, sampling=sampling)
        self.engine.add(request)
        self.requests[request_id] = request
        self.output[request_id] = list(output)

    def length(self, request_id: str) -> int:
        return len(self.requests[request_id].prompt) + len(self.output[request_id])

    def run(self, step: Step) -> StepResult:
        self.number += 1
        step.number = self.number
        result = self.engine.run(step)
        for request_id, token in result.tokens.items():
            self.output[request_id].append(token)
        for request_id, finish in result.finished.items():
            assert request_id not in self.finished
            self.finished[request_id] = finish
            if request_id in self.decoding:
                self.decoding.remove(request_id)
        self.failed.update(result.failed)
        self.decoding = [i for i in self.decoding if i not in result.failed]
        self.engine.check()
        return result

    def admit(self, step: Step, request_id: str, shared: Tokens[int] = ()) -> None:
        """Blocks for all tokens there are, of which `shared` full ones hold KV already."""
        needed = -(-self.length(request_id) // self.block_tokens) - len(shared)
        self.tables[request_id] = [*shared, *(self.free.pop() for _ in range(needed))]
        self.computed[request_id] = len(shared) * self.block_tokens
        step.admit = [*step.admit, Admission(request_id, tuple(self.tables[request_id]), self.computed[request_id])]

    def chunk(self, step: Step, request_id: str, tokens: int | None = None) -> bool:
        """The next `tokens` tokens (None: all that are left). Returns whether it is the last chunk."""
        start, end = self.computed[request_id], self.length(request_id)
        tokens = end - start if tokens is None else min(tokens, end - start)
        last = start + tokens == end
        step.chunks = [*step.chunks, Chunk(request_id, start, tokens, last)]
        self.computed[request_id] += tokens
        return last

    def decode(self, step: Step) -> None:
        """All that decode make a token; grow tables that need it."""
        for request_id in self.decoding:
            if self.length(request_id) > len(self.tables[request_id]) * self.block_tokens:
                block = self.free.pop()
                self.tables[request_id].append(block)
                step.grow = [*step.grow, request_id]
                step.grow_blocks = [*step.grow_blocks, block]
        step.decoding = len(self.decoding)

    def join(self, step: Step, request_id: str) -> None:
        step.join = [*step.join, request_id]
        self.decoding.append(request_id)

    def evict(self, step: Step, request_id: str) -> None:
        step.evict = [*step.evict, request_id]
        self._leave(request_id)

    def swap_out(self, step: Step, request_id: str, host: Tokens[int]) -> None:
        step.swap_out = [*step.swap_out, Swap(request_id, tuple(self.tables[request_id]), tuple(host))]
        self._leave(request_id)

    def swap_in(self, step: Step, request_id: str, host: Tokens[int]) -> None:
        self.tables[request_id] = [self.free.pop() for _ in host]
        step.swap_in = [*step.swap_in, Swap(request_id, tuple(self.tables[request_id]), tuple(host))]

    def _leave(self, request_id: str) -> None:
        if request_id in self.decoding:
            self.decoding.remove(request_id)
        # To the front: the blocks are reused last, by others.
        self.free[:0] = self.tables.pop(request_id)

    def prefill(self, request_id: str, chunk_tokens: int | None = None) -> None:
        """Admit and compute the prompt in steps of its own, then join the decode set."""
        step = Step(0)
        self.admit(step, request_id)
        while not self.chunk(step, request_id, chunk_tokens):
            self.run(step)
            step = Step(0)
        self.run(step)

    def decode_until_done(self) -> None:
        while self.decoding:
            step = Step(0)
            self.decode(step)
            self.run(step)
