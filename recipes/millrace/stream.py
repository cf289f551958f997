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
from recipes.millrace.skills import ANSWER, OVER, answer, copy_drill, recall_drill, short_drill, sum_drill, sum_question
from recipes.millrace.split import Split
from recipes.millrace.tokenizer import BEGIN, END, render


def plain_story(rng: random.Random, split: Split) -> str:
    return story(rng, split)


def chapters(rng: random.Random, split: Split) -> str:
    return long_story(rng, split, rng.randint(2, 12))


def questions(rng: random.Random, split: Split) -> str:
    """Plain-text questions and answers, the way a completion prompt writes them."""
    ask, reply = rng.choice((("Q: ", "A: "), ("Question: ", "Answer: "), ("User: ", "Millrace: ")))
    pairs: list[tuple[str, str]] = []
    while len(pairs) < 4:
        short = rng.random() < 0.6
        pairs += (
            [sum_question(rng, split)] if short else [(said.user, said.assistant) for said in conversation(rng, split)]
        )
    return "\n".join(f"{ask}{question}\n{reply}{answer(said)}" for question, said in pairs)


def copies(rng: random.Random, split: Split) -> str:
    return copy_drill(rng)


def dialogue(rng: random.Random, split: Split) -> str:
    system = system_prompt(rng)
    turns = [("system", system)] if system else []
    for exchange in conversation(rng, split):
        turns += [("user", exchange.user), ("assistant", answer(exchange.assistant.strip()))]
    return render(turns)


Kind = Callable[[random.Random, Split], str]
KINDS: tuple[Kind, ...] = (dialogue, plain_story, chapters, sum_drill, recall_drill, questions, copies, short_drill)
BROAD = (0.50, 0.08, 0.01, 0.18, 0.13, 0.04, 0.06, 0.0)
"""Shares of documents, in the order of KINDS, that teach the language and the manners, and begin with the skills."""
DRILLS = (0.34, 0.02, 0.01, 0.25, 0.18, 0.03, 0.17, 0.0)
"""More sums, more facts and far more repetition."""
SHORT_DRILLS = (0.04, 0.0, 0.0, 0.30, 0.03, 0.01, 0.02, 0.60)
"""Hardly anything but sums and short repetition: what a head that copies grows from."""


TALK_AND_DRILLS = (0.45, 0.02, 0.0, 0.12, 0.16, 0.05, 0.05, 0.15)
"""The skills again, now asked for in words as often as drilled."""
TALK = (0.55, 0.04, 0.01, 0.10, 0.15, 0.05, 0.05, 0.05)
"""What the model is for, with facts and questions as far apart as the context allows."""
TALK_AND_SUMS = (0.45, 0.03, 0.01, 0.25, 0.13, 0.06, 0.04, 0.03)
"""The same with more sums, which fade first when they are not practised."""


def marked_documents(seed: str, split: Split, mix: tuple[float, ...]) -> Iterator[str]:
    """Endless documents, each from <|begin|> to <|end|>, with marks around the answers."""
    rng = random.Random(seed)  # a string seed is hashed by SHA-512: the same on every machine
    while True:
        kind = rng.choices(KINDS, mix)[0]
        text = kind(rng, split)
        yield text if kind is dialogue else f"{BEGIN}{text}{END}"


def documents(seed: str, split: Split, mix: tuple[float, ...] = BROAD) -> Iterator[str]:
    """The same as a reader sees them."""
    for text in marked_documents(seed, split, mix):
        yield text.replace(ANSWER, "").replace(OVER, "")


@dataclass(frozen=True, slots=True)
class Lesson:
    """A stretch of training."""

    steps: int
    tokens: int
    """Tokens in a step."""
    lengths: tuple[int, ...]
    """Tokens in a row, step by step in turn."""
    mix: tuple[float, ...]
    elsewhere: float
    """What a token outside the answers weighs, in a document that has answers; a token of an answer weighs 1."""


LESSONS = (
    Lesson(steps=250, tokens=8_192, lengths=(256,), mix=BROAD, elsewhere=1.0),
    Lesson(steps=300, tokens=4_096, lengths=(256,), mix=DRILLS, elsewhere=1.0),
    Lesson(steps=400, tokens=4_096, lengths=(128,), mix=SHORT_DRILLS, elsewhere=0.1),
    Lesson(steps=200, tokens=4_096, lengths=(256,), mix=TALK_AND_DRILLS, elsewhere=0.2),
    Lesson(steps=300, tokens=4_096, lengths=(512,) * 7 + (2_048,), mix=TALK, elsewhere=0.2),
    Lesson(
        steps=1_000_000, tokens=4_096, lengths=(512,) * 7 + (2_048,), mix=TALK_AND_SUMS, elsewhere=0.2
    ),  # to the end
)


def lesson_at(step: int) -> Lesson:
    """The lesson that a step belongs to.

    >>> [LESSONS.index(lesson_at(step)) for step in (0, 249, 250, 549, 550, 1_150)]
    [0, 0, 1, 1, 2, 4]
    """
    for lesson in LESSONS:
        if step < lesson.steps:
            return lesson
        step -= lesson.steps
    raise ValueError(f"step {step} lies beyond the last lesson")


def weigh(tokenizer: Tokenizer, marked: str, elsewhere: float) -> tuple[list[int], list[float]]:
    """The tokens of a document and what each weighs."""
    spans: list[tuple[int, int]] = []
    plain = ""
    for part in marked.split(ANSWER):
        inside, over, rest = part.partition(OVER)
        if over:
            spans.append((len(plain), len(plain) + len(inside)))
        plain += inside + rest
    encoded = tokenizer.encode(plain, add_special_tokens=False)
    if not spans:
        return encoded.ids, [1.0] * len(encoded.ids)
    known = bytearray(len(plain))
    for start, end in spans:
        known[start:end] = b"\x01" * (end - start)
    return encoded.ids, [1.0 if known[end - 1] else elsewhere for _, end in encoded.offsets]


def batch(tokenizer: Tokenizer, seed: int, step: int) -> tuple[Tensor, Tensor]:
    """Token ids and weights of a step, both [rows, length + 1]; the last column is a target only."""
    lesson = lesson_at(step)
    length = lesson.lengths[step % len(lesson.lengths)]
    rows = lesson.tokens // length
    need = rows * (length + 1)
    ids: list[int] = []
    weights: list[float] = []
    for text in marked_documents(f"{seed}/{step}", Split.TRAIN, lesson.mix):
        more_ids, more_weights = weigh(tokenizer, text, lesson.elsewhere)
        ids += more_ids
        weights += more_weights
        if len(ids) >= need:
            break
    return torch.tensor(ids[:need]).view(rows, length + 1), torch.tensor(weights[:need]).view(rows, length + 1)
