"""Stall-free batching equals its own pseudocode, step by step, on random arrivals under memory pressure.

The reference below is Sarathi-Serve's schedule() as the artifact writes it (pass 1 decodes, pass 2 running prefills,
pass 3 admissions), O(batch) and with no cleverness: it touches every running sequence in every step. Where the artifact
leaves a choice open we say ours: nobody is admitted in a step that evicted somebody (vLLM's rule).
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest

from penstock.control.request import Request
from penstock.testing import Driver, ScriptedExecutor, small_replica

BLOCK = 4


@dataclass
class Seq:
    name: str
    prompt: int
    output: int
    made: int = 0
    computed: int = 0
    target: int = 0
    blocks: int = 0

    @property
    def prefilled(self) -> bool:
        return self.computed >= self.target


@dataclass
class Reference:
    """Blocks are only counted; token values do not matter to the schedule."""

    total: int
    budget: int
    max_seqs: int
    waiting: list[Seq] = field(default_factory=list)
    running: list[Seq] = field(default_factory=list)
    free: int = 0

    def __post_init__(self) -> None:
        self.free = self.total

    def schedule(self) -> tuple[list[str], list[tuple[str, int, int]], list[str]] | None:
        """(decodes, chunks, evicted) of one step; None when there is nothing to do."""
        spent, decodes, chunks, evicted = 0, [], [], []
        self.running.sort(key=lambda seq: seq.name)
        for seq in list(self.running):
            if seq not in self.running or not seq.prefilled:
                continue
            need = -(-(seq.computed + 1) // BLOCK) - seq.blocks
            while need > self.free:
                victim = self.running[-1]
                self.running.remove(victim)
                self.free += victim.blocks
                victim.blocks = victim.computed = 0
                victim.target = victim.prompt + victim.made
                self.waiting.append(victim)
                evicted.append(victim.name)
                if victim is seq:
                    break
            if seq in self.running:
                self.free -= need
                seq.blocks += need
                decodes.append(seq)
                spent += 1
        for seq in self.running:
            size = min(seq.target - seq.computed, self.budget - spent)
            if not seq.prefilled and size > 0:
                chunks.append((seq, seq.computed, size))
                spent += size
        self.waiting.sort(key=lambda seq: seq.name)
        while self.waiting and not evicted and len(self.running) < self.max_seqs and spent < self.budget:
            seq = self.waiting[0]
            need = -(-seq.target // BLOCK)
            if need > self.free:
                break
            self.waiting.pop(0)
            self.running.append(seq)
            self.free -= need
            seq.blocks = need
            size = min(seq.target, self.budget - spent)
            chunks.append((seq, 0, size))
            spent += size
        if not decodes and not chunks:
            return None
        step = ([seq.name for seq in decodes], [(seq.name, start, size) for seq, start, size in chunks], evicted)
        for seq in decodes:
            seq.computed += 1
            seq.made += 1
        for seq, _, size in chunks:
            seq.computed += size
            seq.made += seq.prefilled
        for seq in [*decodes, *(seq for seq, _, _ in chunks)]:
            if seq.made == seq.output:
                self.running.remove(seq)
                self.free += seq.blocks
        return step


@pytest.mark.parametrize("seed", range(40))
def test_the_schedule_equals_the_pseudocode(seed: int) -> None:
    chance = random.Random(seed)
    blocks, budget, max_seqs = chance.randrange(8, 40), chance.randrange(8, 40), chance.randrange(2, 8)
    reference = Reference(blocks, budget, max_seqs)
    replica = small_replica(
        blocks=blocks, block_tokens=BLOCK, policy="sarathi", memory="paged", token_budget=budget, max_seqs=max_seqs
    )
    driver = Driver(replica, ScriptedExecutor(blocks=blocks, block_tokens=BLOCK), check=False)
    decoding: set[str] = set()
    steps = evictions = 0
    for number in range(60):
        prompt, output = chance.randrange(1, 16), chance.randrange(1, 16)
        name = f"{number:03}"
        reference.waiting.append(Seq(name, prompt, output, target=prompt))
        driver.submit(Request(id=name, prompt=tuple(range(prompt)), max_tokens=output))
        for _ in range(chance.randrange(6) if number < 59 else 10_000):
            expected = reference.schedule()
            ran = driver.tick()
            step = driver.steps[-1]
            decoding -= {*step.release, *step.evict, *step.pause}
            if expected is None:
                assert not ran or (step.release and not step.tokens)  # nothing but telling who has ended
                break
            decoding |= set(step.join)
            assert sorted(decoding) == sorted(expected[0])
            assert [(chunk.id, chunk.start, chunk.tokens) for chunk in step.chunks] == expected[1]
            assert sorted(step.evict) == sorted(expected[2])
            steps += 1
            evictions += len(step.evict)
    assert replica.idle
    assert steps > 60
    if blocks < 12:
        assert evictions
