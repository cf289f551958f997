"""The training stream: documents by weight, packed into rows; batch number i is a function of (seed, i) and nothing else.

So there is no loader state to save: a resumed run asks for the next number.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor

from recipes.millrace.corpus import long_story, story
from recipes.millrace.dialogues import conversation, system_prompt
from recipes.millrace.skills import copy_drill, recall_drill, sum_drill, sum_question
from recipes.millrace.split import Split
from recipes.millrace.tokenizer import BEGIN, END, render


def plain_story(rng: random.Random, split: Split) -> str:
    return story(rng, split)


def chapters(rng: random.Random, split: Split) -> str:
    return long_story(rng, split, rng.randint(2, 12))


def questions(rng: random.Random, split: Split) -> str:
    """Plain-text questions and answers, the way a completion prompt writes them."""
    ask, answer = rng.choice((("Q: ", "A: "), ("Question: ", "Answer: "), ("User: ", "Millrace: ")))
    pairs: list[tuple[str, str]] = []
    while len(pairs) < 4:
        pairs += [sum_question(rng, split)] if rng.random() < 0.6 else [tuple(turn) for turn in conversation(rng, split)]  # type: ignore[misc]
    return "\n".join(f"{ask}{question}\n{answer}{reply}" for question, reply in pairs)


def copies(rng: random.Random, split: Split) -> str:
    return copy_drill(rng)


def dialogue(rng: random.Random, split: Split) -> str:
    system = system_prompt(rng)
    turns = [("system", system)] if system else []
    for exchange in conversation(rng, split):
        turns += [("user", exchange.user), ("assistant", exchange.assistant)]
    return render(turns)


MIX: tuple[tuple[Callable[[random.Random, Split], str], float], ...] = (
    (dialogue, 0.50),
    (plain_story, 0.08),
    (chapters, 0.01),
    (sum_drill, 0.18),
    (recall_drill, 0.13),
    (questions, 0.04),
    (copies, 0.06),
)


def documents(seed: str, split: Split) -> Iterator[str]:
    """Endless documents, each from <|begin|> to <|end|>."""
    rng = random.Random(seed)  # a string seed is hashed by SHA-512: the same on every machine
    kinds, weights = zip(*MIX, strict=True)
    while True:
        kind = rng.choices(kinds, weights)[0]
        text = kind(rng, split)
        yield text if kind is dialogue else f"{BEGIN}{text}{END}"


@dataclass(frozen=True, slots=True)
class Stream:
    """Packed batches. Rows are cut from one long run of documents; `tokens` per batch, whatever the length of a row."""

    tokenizer: Tokenizer
    seed: int
    tokens: int

    def batch(self, number: int, length: int) -> Tensor:
        """Token ids [tokens / length, length + 1]: inputs are all but the last column, targets all but the first."""
        rows = self.tokens // length
        need, ids = rows * (length + 1), []
        for text in documents(f"{self.seed}/{number}", Split.TRAIN):
            ids += self.tokenizer.encode(text, add_special_tokens=False).ids
            if len(ids) >= need:
                break
        return torch.tensor(ids[:need], dtype=torch.int64).view(rows, length + 1)
