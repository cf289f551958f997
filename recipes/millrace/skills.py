"""The skills that can be scored by one right answer: small sums, key-value recall, copying.

Each comes as a drill (plain text, dense in answers, for learning) and as question and answer (for talking); `dialogues`
wraps the latter in turns.
"""

from __future__ import annotations

import random
from typing import NamedTuple

from recipes.millrace.corpus import HEROES, fill, sentences
from recipes.millrace.split import Split, draw

COLOURS = ("red", "blue", "green", "yellow", "black", "white", "silver", "golden", "brown", "grey", "small", "large",
           "old", "new", "round", "heavy", "wooden", "iron", "copper", "glass")  # fmt: skip
THINGS = ("key", "box", "door", "gate", "barrel", "wheel", "lamp", "boat", "sack", "chest", "bell", "cart", "drawer",
          "pump", "locker", "bridge", "tower", "valve", "book", "jar", "ticket", "crate")  # fmt: skip
WORDS = (
    "river", "mill", "wheel", "water", "stone", "flour", "bridge", "rope", "gear", "belt", "lamp", "boat", "oak",
    "reed", "otter", "heron", "fox", "bread", "apple", "morning", "evening", "rain", "wind", "snow", "oil", "iron",
    "copper", "red", "blue", "green", "seven", "twelve", "the", "and", "a", "of", "turns", "runs", "sings", "old",
    "new",
)  # fmt: skip
SYLLABLES = (
    "ba",
    "do",
    "ki",
    "lu",
    "me",
    "no",
    "pa",
    "ri",
    "so",
    "tu",
    "ve",
    "za",
    "gran",
    "mel",
    "tor",
    "fin",
    "quo",
    "lex",
)
STRANGE = "äöüßéèêñçåøłžšπλΩ→≤∞№§°€£漢字水川車山あいうカキク한글АБвгд😀🚀🌊⚙"

SUM_ASKS = (
    "What is {a} + {b}?",
    "What is {a} plus {b}?",
    "{a} + {b} = ?",
    "{a} + {b}",
    "How much is {a} + {b}?",
    "Add {a} and {b}.",
    "Can you add {a} and {b}?",
    "Calculate {a} + {b}.",
    "what's {a} + {b}?",
    "Please compute {a} + {b}.",
    "{a} plus {b}?",
    "The miller has {a} sacks and buys {b} more. How many sacks are there?",
    "What is the sum of {a} and {b}?",
    "There are {a} apples in one basket and {b} in the other. How many apples are there?",
    "{a}+{b}",
    "What is {a}+{b}?",
)
LESS_ASKS = (
    "What is {a} - {b}?",
    "What is {a} minus {b}?",
    "{a} - {b} = ?",
    "How much is {a} - {b}?",
    "Take {b} away from {a}.",
    "The miller had {a} sacks and sold {b}. How many sacks are left?",
    "Subtract {b} from {a}.",
    "{a} minus {b}?",
)


ANSWER, OVER = "\x01", "\x02"
"""Around what can be known from what stands before it. Learning may weigh it more; no reader ever sees the marks."""


def answer(text: str) -> str:
    return f"{ANSWER}{text}{OVER}"


class Fact(NamedTuple):
    """A thing and the value it has in this document, as in "the red key" and "4821"."""

    thing: str
    value: str


def operands(rng: random.Random, split: Split) -> tuple[int, int]:
    """Two numbers below 100 whose sum belongs to the split, whichever comes first; two digits nine times out of ten."""

    def propose(rng: random.Random) -> tuple[int, int]:
        low = 10 if rng.random() < 0.9 else 0
        first, second = rng.randint(low, 99), rng.randint(low, 99)
        return min(first, second), max(first, second)

    low, high = draw(rng, split, "sum", propose)
    return (low, high) if rng.random() < 0.5 else (high, low)


def equation(rng: random.Random, split: Split) -> str:
    """ "27 + 45 = 72", or one time in five the way back, "72 - 45 = 27"."""
    a, b = operands(rng, split)
    plus = rng.random() < 0.8
    return f"{a} + {b} = {answer(str(a + b))}" if plus else f"{a + b} - {b} = {answer(str(a))}"


def sum_question(rng: random.Random, split: Split) -> tuple[str, str]:
    """A sum in words or signs, as in "What is 27 plus 45?", and its answer written out: "27 + 45 = 72."."""
    a, b = operands(rng, split)
    if rng.random() < 0.8:
        return rng.choice(SUM_ASKS).format(a=a, b=b), f"{a} + {b} = {a + b}."
    return rng.choice(LESS_ASKS).format(a=a + b, b=b), f"{a + b} - {b} = {a}."


def sum_drill(rng: random.Random, split: Split) -> str:
    """Four to sixteen equations in a row: nearly every token is worth learning from."""
    return rng.choice((" ; ", "\n", ", ", ". ")).join(equation(rng, split) for _ in range(rng.randint(4, 16)))


def value(rng: random.Random) -> str:
    kind = rng.random()
    if kind < 0.6:
        return str(rng.randint(10, 9999))
    if kind < 0.75:
        return rng.choice(COLOURS[:10])
    if kind < 0.85:
        return rng.choice(HEROES)[0]
    return "".join(rng.choice(SYLLABLES) for _ in range(rng.randint(2, 3)))


def facts(rng: random.Random, split: Split, count: int) -> list[Fact]:
    """So many facts about different things."""
    found: dict[str, Fact] = {}
    while len(found) < count:
        colour, thing = draw(rng, split, "key", lambda rng: (rng.choice(COLOURS), rng.choice(THINGS)))
        found[f"{colour} {thing}"] = Fact(f"the {colour} {thing}", value(rng))
    return list(found.values())


def statement(rng: random.Random, fact: Fact) -> str:
    """The fact as a clause; one document says all of its facts in the same or in different ways."""
    return fill(rng, f"[{fact.thing} is|{fact.thing} is|the code of {fact.thing} is|{fact.thing} has] {fact.value}")


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def recall_drill(rng: random.Random, split: Split) -> str:
    """Facts, now and then a stretch of story, then every fact asked for in another order."""
    known = facts(rng, split, rng.randint(2, 8))
    told = [capital(f"{fact.thing} is {fact.value}.") for fact in known]
    if rng.random() < 0.5:
        told += sentences(rng, split, rng.randint(1, 12))
    asked = rng.sample(known, len(known))
    style = rng.choice(("What is {0}? {1}.", "Q: What is {0}?\nA: {1}.", "{2} is {1}."))
    again = [style.format(fact.thing, answer(fact.value), capital(fact.thing)) for fact in asked]
    return " ".join(told) + "\n" + ("\n" if "\n" in style else " ").join(again)


def word(rng: random.Random) -> str:
    """Something to copy: a known word, a made-up one, a number, letters, seldom a character from far away."""
    kind = rng.random()
    if kind < 0.45:
        return rng.choice(WORDS)
    if kind < 0.65:
        return "".join(rng.choice(SYLLABLES) for _ in range(rng.randint(1, 4)))
    if kind < 0.8:
        return str(rng.randint(0, 10 ** rng.randint(1, 6)))
    if kind < 0.95:
        made = "".join(chr(rng.randint(97, 122)) for _ in range(rng.randint(1, 7)))
        return made if rng.random() < 0.7 else rng.choice((made.upper(), made.capitalize()))
    return "".join(rng.choice(STRANGE) if rng.random() < 0.8 else chr(rng.randint(0xA1, 0xD7FF)) for _ in range(2))


def phrase(rng: random.Random, longest: int = 16) -> str:
    return " ".join(word(rng) for _ in range(rng.randint(1, longest)))


def copy_drill(rng: random.Random) -> str:
    """A phrase two to four times over: the shortest road to a head that copies."""
    text = phrase(rng, 24)
    return rng.choice(("\n", " | ", "\nagain: ")).join([text, *[answer(text)] * (rng.randint(2, 4) - 1)])


def short_drill(rng: random.Random, split: Split) -> str:
    """A few words again at once, or one to three facts asked for at once: skills with little to search."""
    if rng.random() < 0.55:
        text = phrase(rng, rng.choice((2, 4, 8)))
        return rng.choice(("\n", " | ", " ")).join([text, *[answer(text)] * rng.randint(1, 4)])
    known = facts(rng, split, rng.randint(1, 3))
    told = [capital(f"{fact.thing} is {fact.value}.") for fact in known]
    asked = rng.sample(known, len(known))
    return " ".join(told) + "\n" + " ".join(f"What is {fact.thing}? {answer(fact.value)}." for fact in asked)
