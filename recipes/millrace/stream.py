"""The training stream: documents by weight, packed into rows. Batch i is a function of (seed, i) and nothing else.

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
        short = rng.random() < 0.6
        pairs += (
            [sum_question(rng, split)] if short else [(said.user, said.assistant) for said in conversation(rng, split)]
        )
    return "\n".join(f"{ask}{question}\n{answer}{reply}" for question, reply in pairs)


def copies(rng: random.Random, split: Split) -> str:
    return copy_drill(rng)


def dialogue(rng: random.Random, split: Split) -> str:
    system = system_prompt(rng)
    turns = [("system", system)] if system else []
    for exchange in conversation(rng, split):
        turns += [("user", exchange.user), ("assistant", exchange.assistant)]
    return render(turns)


Kind = Callable[[random.Random, Split], str]
KINDS: tuple[Kind, ...] = (dialogue, plain_story, chapters, sum_drill, recall_drill, questions, copies)
BROAD = (0.50, 0.08, 0.01, 0.18, 0.13, 0.04, 0.06)
"""Shares of documents, in the order of KINDS, that teach the language and the manners, and begin with the skills."""
DRILLS = (0.34, 0.02, 0.01, 0.25, 0.18, 0.03, 0.17)
"""More sums, more facts and far more repetition: what a head that copies grows from."""


def documents(seed: str, split: Split, mix: tuple[float, ...] = BROAD) -> Iterator[str]:
    """Endless documents, each from <|begin|> to <|end|>."""
    rng = random.Random(seed)  # a string seed is hashed by SHA-512: the same on every machine
    while True:
        kind = rng.choices(KINDS, mix)[0]
        text = kind(rng, split)
        yield text if kind is dialogue else f"{BEGIN}{text}{END}"


@dataclass(frozen=True, slots=True)
class Lesson:
    """A stretch of training: how many steps, tokens in each, the lengths of rows in turn, and the mix of documents."""

    steps: int
    tokens: int
    lengths: tuple[int, ...]
    mix: tuple[float, ...]


LESSONS = (
    Lesson(steps=250, tokens=8_192, lengths=(256,), mix=BROAD),
    Lesson(steps=500, tokens=4_096, lengths=(256,), mix=DRILLS),
    Lesson(steps=1_000_000, tokens=4_096, lengths=(512,) * 7 + (2_048,), mix=DRILLS),  # to the end, however long
)


def lesson_at(step: int) -> Lesson:
    """The lesson that a step belongs to.

    >>> [LESSONS.index(lesson_at(step)) for step in (0, 249, 250, 749, 750, 9_999)]
    [0, 0, 1, 1, 2, 2]
    """
    for lesson in LESSONS:
        if step < lesson.steps:
            return lesson
        step -= lesson.steps
    raise ValueError(f"step {step} lies beyond the last lesson")


def batch(tokenizer: Tokenizer, seed: int, step: int) -> Tensor:
    """Token ids [rows, length + 1] of a step: inputs are all but the last column, targets all but the first."""
    lesson = lesson_at(step)
    length = lesson.lengths[step % len(lesson.lengths)]
    rows = lesson.tokens // length
    need = rows * (length + 1)
    ids: list[int] = []
    for text in documents(f"{seed}/{step}", Split.TRAIN, lesson.mix):
        ids += tokenizer.encode(text, add_special_tokens=False).ids
        if len(ids) >= need:
            break
    return torch.tensor(ids[:need], dtype=torch.int64).view(rows, length + 1)
