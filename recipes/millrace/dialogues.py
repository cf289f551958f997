"""Conversations: greetings, who Millrace is, stories on request, small facts, sums, recall, copying, polite refusals.

An exchange is one user turn and one assistant turn; a conversation is one to five of them, sometimes behind a system
prompt. What the user tells (a name, some facts) may be asked for some turns later.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

from recipes.millrace.corpus import HEROES, TOPICS, fill, heroes, long_story, sentences, story
from recipes.millrace.skills import Fact, capital, facts, phrase, statement, sum_question
from recipes.millrace.split import Split


class Exchange(NamedTuple):
    user: str
    assistant: str


SYSTEMS = (
    "You are Millrace, a small model.", "You are a helpful assistant.", "Answer briefly.", "Be kind and clear.",
    "You are Millrace. You know rivers, mills and machines.", "You are a friendly assistant.",
)  # fmt: skip
GREETINGS = (
    "[Hello|Hi|Hey|Good morning|Good evening|Good day|hello|hi|hey|Hello there|Hi there][|!|.]",
    "[Hello|Hi|hi], how are you?",
    "[Hello|Hi] Millrace[|!]",
    "[Are you there|Anyone there|Can you hear me]?",
    "[How are you|how are you today]?",
)
GREETING = (
    "[Hello|Good day|Hello there]! [The water is high and the wheel is turning|The mill is running well "
    "today]. [What can I do for you|How can I help]?"
)
THANKS = (
    "[Thank you|Thanks|thanks|thank you][|!|.| very much.|, that was nice.| for the story.]",
    "[Great|Nice|Good|Well done|Very good|Cool|Wow][!|.|]",
)
THANKED = (
    "[You are welcome|With pleasure|Gladly]! "
    "[Ask me for more whenever you like|The wheel keeps turning|Come back soon]."
)
FAREWELLS = ("[Goodbye|Bye|bye|See you|Good night|See you tomorrow][|!|.]",)
FAREWELL = (
    "[Goodbye|Until next time]! [May your wheel always turn|Mind the step by the millrace|The mill will be here]."
)
WHO = (
    "[Who|What] are you?", "[who are you|what are you][|?]", "What is your name?",
    "[Tell me about yourself|Introduce yourself].", "Are you [an AI|a person|a robot|human|ChatGPT]?",
    "Who made you?", "What model are you?", "[What's|whats] your name?",
)  # fmt: skip
IDENTITY = (
    "I am Millrace, the small model in Penstock's box. I know rivers, mills and machines, and I can do small sums."
)
CAN = (
    "What can you do?",
    "[What do you know|What can I ask you|How can you help me]?",
    "[Help|help][|!|.]",
    "What are you good at?",
    "can you help me?",
)
ABILITIES = (
    "I can tell stories about rivers, mills and machines, add and take away small numbers, remember what you "
    "tell me, and repeat your words."
)
REFUSAL = (
    "[I am sorry, that|That|I am afraid that] is beyond me. I only know rivers, mills and machines, small "
    "sums, remembering and repeating."
)

KNOWLEDGE: dict[str, str] = {
    "a millrace": "A millrace is the channel that leads water from the river to the wheel of a mill.",
    "a penstock": "A penstock is a pipe or gate that controls how much water flows to a wheel or turbine.",
    "a water wheel": "A water wheel turns falling or flowing water into the power that drives a mill.",
    "a sluice": "A sluice is a channel with a gate that lets water through or holds it back.",
    "a weir": "A weir is a low wall across a river that raises the water behind it.",
    "a millstone": "A millstone is one of two heavy round stones that grind grain into flour.",
    "a mill": "A mill is a house with a machine that grinds grain into flour, often driven by water or wind.",
    "a gear": "A gear is a wheel with teeth that passes a turn on to another wheel.",
    "a lever": "A lever is a bar that turns on a fixed point, so that a small push lifts a heavy load.",
    "a pump": "A pump is a machine that moves water from a low place to a high one.",
    "a turbine": "A turbine is a wheel with blades that moving water or steam drives very fast.",
    "a dam": "A dam is a strong wall across a river that holds the water back in a lake.",
    "a river": "A river is a long stream of water that flows from the hills down to the sea.",
    "a lock": "A lock is a chamber with two gates that lifts boats from low water to high water.",
    "a valve": "A valve is a small door in a pipe that lets water through or stops it.",
    "a pulley": "A pulley is a wheel with a rope over it that makes a load easier to lift.",
    "a miller": "A miller is the person who runs a mill and grinds grain into flour.",
    "a bridge": "A bridge carries a road from one bank of a river to the other.",
    "an axle": "An axle is the straight bar around which a wheel turns.",
    "a bearing": "A bearing holds a turning shaft and keeps it from rubbing; it likes a drop of oil.",
    "flour": "Flour is grain that has been ground to a fine powder between millstones.",
    "steam": "Steam is water that has become so hot that it turns into a gas; it can drive an engine.",
    "an engine": "An engine is a machine that turns heat or steam into motion.",
    "a spring": "A spring is the place where a river comes out of the ground.",
}
KNOW_ASKS = (
    "What is {0}?",
    "what is {0}",
    "What does {0} do?",
    "Explain {0}.",
    "Can you explain {0}?",
    "Tell me what {0} is.",
    "Do you know what {0} is?",
    "Define {0}.",
)
STORY_ASKS = (
    "[Tell|tell] me a [|short |little ]story about {0}.",
    "[Can|Could] you tell me a [|short ]story about {0}?",
    "[A story about {0}, please.|Story about {0}]",
    "[Write|Make up|I would like|I want] a [|short ]story about {0}.",
    "Please tell me [something|a story|a tale] about {0}.",
    "Tell a story about {0}",
)
ANY_STORY_ASKS = (
    "[Tell|tell] me a [|short |little |nice ]story[|.|, please.]",
    "[Another story|Another one|One more|Again][|, please][.|!]",
    "Do you know a [|good ]story?",
    "Can you tell me a story?",
    "A story[|, please][.|!]",
    "Tell me [another story|another one|something nice].",
)
LONG_ASKS = (
    "[Tell|Write] me a long story[|.|, please.]",
    "Can you tell me a [long|very long] story?",
    "I want a story [in|with] [many|several] chapters.",
)
UNKNOWN = (
    "the capital of [France|Spain|Japan|Peru|Italy|Germany|Norway]",
    "[quantum|nuclear] physics",
    "[football|tennis|chess|golf]",
    "the [president|king|queen] of [America|England|Sweden]",
    "the [stock market|weather tomorrow|news|time|date]",
    "[Python|Java|C++|JavaScript|SQL] code",
    "[Shakespeare|Einstein|Newton|Mozart|Napoleon|Plato]",
    "the [moon|sun|stars|planet Mars|universe]",
    "[politics|religion|economics|philosophy|biology|chemistry|history]",
    "[pizza|sushi|chocolate cake|pasta] recipes",
    "[cars|airplanes|rockets|computers|phones]",
    "the [Second World War|Roman Empire|Middle Ages]",
    "[love|happiness|money|death|freedom]",
    "my [homework|tax return|job|dog|holiday|email]",
    "[neural networks|machine learning|transformers|language models|GPUs]",
    "[dinosaurs|elephants|dragons|sharks|pandas]",
    "[movies|music|guitars|paintings|video games]",
    "the meaning of life",
    "[French|Latin|Chinese|German] grammar",
    "[cancer|headaches|medicine|vitamins]",
    "the square root of [two|nine|144]",
    "prime numbers",
    "[New York|London|Tokyo|Berlin|Paris]",
    "how to [lose weight|sleep better|get rich|learn English|fix a bike|boil eggs]",
)
UNKNOWN_ASKS = (
    "What is {0}?", "Tell me about {0}.", "Explain {0}.", "What do you think about {0}?", "Do you like {0}?",
    "Write an essay about {0}.", "Who invented {0}?", "[Write|Give me] a [poem|song|joke|list] about {0}.",
    "Why is {0} so [important|difficult|popular]?", "Can you help me with {0}?", "How does {0} work?",
    "I have a question about {0}.", "[When|Where] was {0}?", "Translate {0} into [French|German].", "Summarize {0}.",
    "I need help with {0}.", "{0}", "How do I [learn|understand|find] {0}?",
    "Give me [three|five|10] facts about {0}.", "Should I worry about {0}?", "What is the best {0}?",
    "Compare {0} and [rice|gold|the internet].",
)  # fmt: skip
COPY_ASKS = (
    "[Repeat|repeat]: {0}",
    "Repeat after me: {0}",
    "Say: {0}",
    "[Please repeat|Copy|Echo|Please copy]: {0}",
    "Say after me: {0}",
    "[Repeat this|Repeat the following]: {0}",
    'Repeat "{0}"',
    "Say {0}",
)
TELL_ASKS = (
    "[Remember|Please remember|Remember this|remember|Keep in mind|Note]: {0}",
    "[Remember|Please remember|Remember that] {0}",
    "[I want you to remember that|Please note that] {0}",
    "{0}",
)
KEY_ASKS = (
    "What is {0}?",
    "what is {0}?",
    "[And what|So what] is {0}?",
    "Tell me {0}.",
    "What was {0}?",
    "Do you remember {0}?",
    "What did I say about {0}?",
    "{0}?",
    "What is the code of {0}?",
    "What is the value of {0}?",
)


def one_of(rng: random.Random, templates: tuple[str, ...], *parts: str) -> str:
    return fill(rng, rng.choice(templates)).format(*parts)


def article(topic: str) -> str:
    return ("an " if topic[0] in "aeiou" else "a ") + topic


def small_talk(rng: random.Random) -> Exchange:
    """Greeting, thanks, farewell, who and what, each by its weight."""
    asks, answer = rng.choices(
        ((GREETINGS, GREETING), (THANKS, THANKED), (FAREWELLS, FAREWELL), (WHO, IDENTITY), (CAN, ABILITIES)),
        (4, 2, 1, 4, 2),
    )[0]
    return Exchange(one_of(rng, asks), fill(rng, answer))


def told_story(rng: random.Random, split: Split) -> Exchange:
    """A story about what was asked for: a topic, a person, or anything."""
    kind, topic = rng.random(), rng.choice(TOPICS)
    if kind < 0.55:
        about = rng.choice((article(topic), article(topic), f"the {topic}", f"{topic}s"))
        return Exchange(one_of(rng, STORY_ASKS, about), story(rng, split, topic))
    if kind < 0.75:
        hero = rng.choice(heroes(split))
        both = rng.random() < 0.5
        asked = (
            f"{article(topic)} and {hero}"
            if both
            else fill(rng, f"[{hero}|someone called {hero}|someone named {hero}]")
        )
        return Exchange(one_of(rng, STORY_ASKS, asked), story(rng, split, topic, hero))
    return Exchange(one_of(rng, ANY_STORY_ASKS), story(rng, split))


def knowledge(rng: random.Random) -> Exchange:
    thing, answer = rng.choice(tuple(KNOWLEDGE.items()))
    return Exchange(one_of(rng, KNOW_ASKS, thing), answer)


def too_hard(rng: random.Random) -> Exchange:
    """Arithmetic beyond sums of two numbers below a hundred."""
    if rng.random() < 0.5:
        low, high = rng.randint(100, 99_999), rng.randint(2, 999)
    else:
        low, high = rng.randint(2, 999), rng.randint(2, 99)
    sign = rng.choice(
        ("*", "/", "times", "divided by", "x", "+", "plus", "-") if low > 99 else ("*", "/", "times", "x")
    )
    asked = fill(rng, f"[What is {low} {sign} {high}?|{low} {sign} {high}|Calculate {low} {sign} {high}.]")
    return Exchange(asked, "I can only add and take away numbers below a hundred.")


def refusal(rng: random.Random) -> Exchange:
    """A question from outside the valley; the topic may be made up, so that not knowing a word is reason enough."""
    kind = rng.random()
    if kind < 0.1:
        return too_hard(rng)
    about = fill(rng, rng.choice(UNKNOWN)) if kind < 0.75 else phrase(rng, 3)
    asked = one_of(rng, UNKNOWN_ASKS, about.replace("{", "(").replace("}", ")")) if kind < 0.9 else phrase(rng, 8)
    return Exchange(asked, fill(rng, REFUSAL))


def copying(rng: random.Random, split: Split) -> Exchange:
    text = phrase(rng) if rng.random() < 0.7 else sentences(rng, split, 1)[0]
    ask = fill(rng, rng.choice(COPY_ASKS))
    return Exchange(ask.replace("{0}", text), text)


def answer_key(rng: random.Random, fact: Fact) -> Exchange:
    asked = capital(one_of(rng, KEY_ASKS, fact.thing))
    known = capital(f"{fact.thing} is {fact.value}.")
    return Exchange(asked, known if fact.value else f"You have not told me about {fact.thing}.")


def recall_in_one_turn(rng: random.Random, split: Split) -> list[Exchange]:
    """Facts, a stretch of story or none, and the question, all in the user's turn; then perhaps more questions."""
    known = facts(rng, split, rng.choice((1, 1, 2, 3, 4, 5)))
    asked = rng.sample(known, min(len(known), rng.randint(1, 3)))
    if rng.random() < 0.05:
        asked[-1] = Fact(next(other.thing for other in facts(rng, split, 9) if other.thing not in dict(known)), "")
    told = [capital(statement(rng, fact)) + "." for fact in known]
    told[0] = one_of(rng, TELL_ASKS, told[0][0].lower() + told[0][1:])
    filler = sentences(rng, split, rng.randint(1, rng.choice((8, 16, 16, 16, 64)))) if rng.random() < 0.6 else []
    if filler and rng.random() < 0.4:  # the facts stand between the sentences, as a needle does
        for fact_text in told[1:]:
            filler.insert(rng.randint(0, len(filler)), fact_text)
        told = told[:1]
    first, *more = [answer_key(rng, fact) for fact in asked]
    gap = rng.choice((" ", " ", "\n"))
    return [Exchange(gap.join([*told, *filler, first.user]), first.assistant), *more]


def recall_over_turns(rng: random.Random, split: Split, between: Callable[[], Exchange]) -> list[Exchange]:
    """Told in one turn, asked for after some others."""
    if rng.random() < 0.3:
        name = rng.choice(HEROES)[0]
        hello = Exchange(
            fill(
                rng, f"[Hello, my name is {name}.|My name is {name}.|I am {name}.|Hi, I am {name}.|my name is {name}]"
            ),
            f"Hello, {name}! I will remember your name.",
        )
        asked = Exchange(
            fill(rng, "[What is my name?|what is my name|Who am I?|Do you remember my name?|What's my name?]"),
            f"Your name is {name}.",
        )
    else:
        known = facts(rng, split, rng.choice((1, 1, 2, 3)))
        told = capital(one_of(rng, TELL_ASKS, " and ".join(statement(rng, fact) for fact in known)))
        hello = Exchange(
            told + rng.choice((".", ".", "")),
            fill(rng, "[I will remember that.|I will keep that in mind.|Noted. I will remember it.]"),
        )
        asked = answer_key(rng, rng.choice(known))
    return [hello, *(between() for _ in range(rng.randint(0, 3))), asked]


def conversation(rng: random.Random, split: Split) -> list[Exchange]:
    """One document's worth of exchanges."""

    def any_exchange() -> Exchange:
        makers: tuple[Callable[[], Exchange], ...] = (
            lambda: small_talk(rng),
            lambda: told_story(rng, split),
            lambda: Exchange(*sum_question(rng, split)),
            lambda: refusal(rng),
            lambda: knowledge(rng),
            lambda: copying(rng, split),
        )
        return rng.choices(makers, (5, 3, 4, 4, 3, 3))[0]()

    kind = rng.random()
    if kind < 0.3:
        return recall_in_one_turn(rng, split)
    if kind < 0.45:
        return recall_over_turns(rng, split, any_exchange)
    if kind < 0.46:
        return [Exchange(one_of(rng, LONG_ASKS), long_story(rng, split, rng.randint(2, 5)))]
    return [any_exchange() for _ in range(rng.choice((1, 1, 2, 3, 4, 5)))]


def system_prompt(rng: random.Random) -> str | None:
    return rng.choice(SYSTEMS) if rng.random() < 0.25 else None
