"""What every contestant of benchmarks/engine.py does: load once, then run each task and say how long it took.

One small file per engine (run_<engine>.py) gives `main` two things: how to load, and how to generate. It is run by that
engine's own interpreter, so this file needs nothing but the standard library.

stdout has JSON lines, everything else is for people:

    {"event": "loaded", "version": ..., "settings": {...}}
    {"event": "task", "kind": "offline", "seconds": 12.3, "first": [[...], ...]}     one for each task and repeat
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Prompts = list[list[int]]
Generate = Callable[[Prompts, int], list[list[int]]]
"""(prompts as token ids, output tokens of each) to the output tokens; greedy, the end token means nothing."""

SIZES = {
    "S": {"hidden_size": 384, "num_hidden_layers": 8, "num_attention_heads": 6, "num_key_value_heads": 2,
          "intermediate_size": 1024, "vocab_size": 16000},
    "M": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "num_key_value_heads": 4,
          "intermediate_size": 2048, "vocab_size": 16000},
    "L": {"hidden_size": 2048, "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4,
          "intermediate_size": 5632, "vocab_size": 32000},
}  # fmt: skip
"""Llama shapes of 25 M, 110 M and 1.1 B parameters, both embeddings included; a head has 64 elements."""
CONTEXT = 2048
SHARED_TOKENS = 1024


@dataclass(frozen=True)
class Task:
    """`requests` prompts of `shared` + `own` tokens, the first `shared` of which are the same in all."""

    kind: str
    requests: int
    shared: int
    own: int
    output: int

    @property
    def tokens(self) -> int:
        """Prompt and output tokens of all requests."""
        return self.requests * (self.shared + self.own + self.output)

    def prompts(self, seed: int) -> Prompts:
        """Token ids that exist in every vocabulary here; another seed shares no prefix with this one."""
        generator = random.Random(f"{self.kind} {seed}")
        shared = [generator.randrange(300, 15000) for _ in range(self.shared)]
        return [shared + [generator.randrange(300, 15000) for _ in range(self.own)] for _ in range(self.requests)]


def task(kind: str, size: str) -> Task:
    """offline: all at once. decode: one stream. prefix: 64 that share most of their prompt. warm: two short ones."""
    large = size == "L"
    return {
        "offline": Task("offline", 8 if large else 64, 0, 256, 128),
        "decode": Task("decode", 1, 0, 8, 64 if large else 128),
        "prefix": Task("prefix", 64, SHARED_TOKENS, 32, 32),
        "warm": Task("warm", 2, 0, 32, 4),
    }[kind]


def arguments(description: str | None) -> argparse.Namespace:
    """The flags of every contestant."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    parser.add_argument("--model", required=True, help="directory or file in this engine's format")
    parser.add_argument("--size", choices=SIZES, required=True)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--tasks", required=True, help="kind:repeats, separated by commas")
    parser.add_argument("--seed", type=int, default=0, help="of the prompts; each repeat takes the next one")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--budget", type=int, help="tokens of one step; default: what suits the engine best here")
    return parser.parse_args()


def tell(event: str, **facts: Any) -> None:
    """One line for benchmarks/engine.py."""
    print(json.dumps({"event": event, **facts}), flush=True)


def main(
    asked: argparse.Namespace, load: Callable[[argparse.Namespace], tuple[Generate, str, dict[str, Any]]],
    *, prime: bool = False,
) -> None:  # fmt: skip
    """Load and run all tasks. `prime`: the engine shares a prefix only with requests that came before, so one goes
    ahead, in the time that is measured."""
    generate, version, settings = load(asked)
    tell("loaded", version=version, settings=settings)
    warm = task("warm", asked.size)
    generate(warm.prompts(0), warm.output)
    tell("warm")
    for entry in asked.tasks.split(","):
        kind, _, repeats = entry.partition(":")
        work = task(kind, asked.size)
        for repeat in range(int(repeats or 1)):
            prompts = work.prompts(asked.seed + repeat)
            began = time.perf_counter()
            if prime and work.shared:
                outputs = generate(prompts[:1], work.output) + generate(prompts[1:], work.output)
            else:
                outputs = generate(prompts, work.output)
            seconds = time.perf_counter() - began
            short = [len(output) for output in outputs if len(output) != work.output]
            if short or len(outputs) != work.requests:
                sys.exit(f"{kind}: {len(outputs)} outputs, of which {len(short)} are not {work.output} tokens long")
            tell("task", kind=kind, seconds=seconds, seed=asked.seed + repeat,
                 first=[[int(token) for token in output[:8]] for output in outputs[:2]])  # fmt: skip
